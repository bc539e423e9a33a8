//! The cost of small reads of a running Linux guest: by an [`AddressSpace`], by the one-shot methods of [`Guest`], and
//! by libvmi (`tests/xen/libvmi.c`). All read the same.
//!
//! `tests/xen/run pv --lane cost` runs it in a dom0 whose clock counts instructions, and fails if an address space
//! costs more than its limits. `--lane vmi` adds libvmi.

#![expect(clippy::print_stdout, reason = "prints what it has measured")]
#![expect(clippy::unwrap_used, reason = "a panic fails the bench")]

use std::ops::Range;
use std::process::Command;
use std::time::Instant;

use xenmap::{Access, AddressSpace, Domid, FRAME_SIZE, ForeignMemory, Guest, GuestKind, PageTables, Protection};

/// Where Linux maps its RAM, without address-space randomisation.
const DIRECT_MAP: u64 = 0xFFFF_8880_0000_0000;
/// Physical addresses.
const LARGE: Range<u64> = 32 << 20..96 << 20;
const SMALL: Range<u64> = 32 << 20..33 << 20;
/// As in libvmi.c.
const READS: u64 = 4_000;
/// Rounds, of which the cheapest counts. If translations and frames are remembered, only the first is slow.
const ROUNDS: usize = 2;

/// The limits in a PV dom0, in instructions.
const READ_LIMIT: u64 = 400;
const STEP_LIMIT: u64 = 1_000;
const COLD_STEP_LIMIT: u64 = 30_401;
const PAGE_LIMIT: u64 = 5_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [domid, libvmi @ ..] = arguments.as_slice() else {
        println!("needs a guest on Xen: tests/xen/run pv --lane cost");
        return;
    };
    let memory = ForeignMemory::open().unwrap();
    let guest = Guest::open(&memory, Domid::new(domid.parse().unwrap()).unwrap()).unwrap();
    let plan = Plan::new(&guest);
    let one_shot = measure(&mut OneShot { guest: guest.clone(), tables: plan.tables }, &plan);
    let remembered = measure(&mut Remembered(AddressSpace::new(guest.clone(), plan.tables)), &plan);
    let libvmi = libvmi.first().map(|program| run_libvmi(program, &guest, &plan));

    let kind = if plan.is_pv { "pv" } else { "pvh" };
    let has_limits = std::env::var("XENMAP_TEST_XEN").as_deref() == Ok("pv");
    let mut all_good = true;
    let mut verdict = |is_good: bool, what: &str| {
        println!("{} small_reads::{kind}_{}", if is_good { "PASS" } else { "FAIL" }, what.replace(' ', "_"));
        all_good &= is_good;
    };
    println!("| {kind} guest | libvmi | Guest | AddressSpace |");
    println!("|---|---|---|---|");
    for (index, ours) in remembered.iter().enumerate() {
        let theirs = libvmi.as_ref().map(|rows| rows[index].clone());
        let cost = theirs.as_ref().map_or_else(|| "-".to_owned(), |row| row.cost.to_string());
        println!("| {} | {cost} | {} | {} |", ours.what, one_shot[index].cost, ours.cost);
        let others = [Some(one_shot[index].clone()), theirs];
        verdict(others.iter().flatten().all(|row| row.sum == ours.sum), &format!("{} reads the same", ours.what));
        if let Some(limit) = ours.limit.filter(|_| has_limits) {
            verdict(ours.cost <= limit, &ours.what);
        }
    }
    if !all_good {
        std::process::exit(1);
    }
}

/// What is read.
struct Plan {
    tables: PageTables,
    is_pv: bool,
    /// All RAM that is contiguous.
    ram: Range<u64>,
    /// The list of tasks: the virtual address of its head, and the distance from a task's entry to its name.
    tasks: u64,
    name: u64,
}

impl Plan {
    fn new(guest: &Guest) -> Plan {
        let tables = guest.page_tables(0).unwrap();
        let ranges = guest.ram_map().unwrap().ranges();
        let frames = ranges.iter().max_by_key(|range| range.len()).unwrap();
        let ram = frames.start() * FRAME_SIZE as u64..frames.end() * FRAME_SIZE as u64;
        assert!(ram.start <= LARGE.start && ram.end >= LARGE.end, "{ram:x?}");
        let (tasks, name) = find_tasks(guest, tables, &ram);
        Plan { tables, is_pv: guest.kind() == GuestKind::Pv, ram, tasks, name }
    }
}

/// Finds the list of tasks, by the names of the first two.
fn find_tasks(guest: &Guest, tables: PageTables, ram: &Range<u64>) -> (u64, u64) {
    let space = AddressSpace::new(guest.clone(), tables);
    let mut memory = vec![0; usize::try_from(ram.end - ram.start).unwrap()];
    guest.read(ram.start, &mut memory).unwrap();
    let names = (0..memory.len()).step_by(8).filter(|&at| memory[at..].starts_with(b"swapper/0\0"));
    for name in names.map(|at| DIRECT_MAP + ram.start + at as u64) {
        for distance in (8..0x800).step_by(8) {
            let Ok(next) = space.read::<u64>(name - distance) else { break };
            if space.read_c_string(next.wrapping_add(distance), 16).is_ok_and(|name| name == b"init") {
                // The entry of the first task, by the address that the kernel uses.
                return (space.read(next + 8).unwrap(), distance);
            }
        }
    }
    panic!("the guest has no list of tasks that begins with swapper/0 and init");
}

/// A way to read a guest.
trait Reader {
    fn physical(&self, address: u64, to: &mut [u8]);
    fn read(&self, address: u64) -> u64;
    fn read_bytes(&self, address: u64, to: &mut [u8]);
    /// Forgets what is mapped and translated.
    fn forget(&mut self);
}

struct OneShot {
    guest: Guest,
    tables: PageTables,
}

impl Reader for OneShot {
    fn physical(&self, address: u64, to: &mut [u8]) {
        self.guest.read(address, to).unwrap();
    }

    fn read(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read_bytes(address, &mut bytes);
        u64::from_ne_bytes(bytes)
    }

    fn read_bytes(&self, address: u64, to: &mut [u8]) {
        self.guest.read_virtual(&self.tables, address, to).unwrap();
    }

    fn forget(&mut self) {}
}

struct Remembered(AddressSpace);

impl Reader for Remembered {
    fn physical(&self, address: u64, to: &mut [u8]) {
        self.0.cache().get(Protection::ReadOnly, address, to.len()).unwrap().read_bytes(0, to).unwrap();
    }

    fn read(&self, address: u64) -> u64 {
        self.0.read(address).unwrap()
    }

    fn read_bytes(&self, address: u64, to: &mut [u8]) {
        self.0.read_bytes(address, to).unwrap();
    }

    fn forget(&mut self) {
        self.0 = AddressSpace::new(self.0.guest().clone(), self.0.page_tables());
    }
}

#[derive(Clone)]
struct Row {
    what: String,
    /// Nanoseconds for each; in the lab, instructions.
    cost: u64,
    sum: u64,
    limit: Option<u64>,
}

/// The physical addresses of a PV guest are not those of libvmi, which are machine addresses.
fn measure<R: Reader>(reader: &mut R, plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: &str, limit: u64, is_cold, read: &dyn Fn(&R) -> (u64, u64)| {
        // For each part of a PV guest that is mapped, its p2m is read first, which costs as much again.
        let limit = Some(limit).filter(|_| !(plan.is_pv && is_cold));
        let mut row = Row { what: what.to_owned(), cost: u64::MAX, sum: 0, limit };
        for _ in 0..ROUNDS {
            if is_cold {
                reader.forget();
            }
            let began = Instant::now();
            let (count, sum) = read(reader);
            row.cost = row.cost.min(u64::try_from(began.elapsed().as_nanos()).unwrap() / count);
            row.sum = sum;
        }
        rows.push(row);
    };
    if !plan.is_pv {
        add("physical at random", READ_LIMIT, false, &|reader| {
            at_random(&LARGE, |address| {
                let mut bytes = [0; 8];
                reader.physical(address, &mut bytes);
                u64::from_ne_bytes(bytes)
            })
        });
    }
    let virtual_range = |range: Range<u64>| DIRECT_MAP + range.start..DIRECT_MAP + range.end;
    let (large, small) = (virtual_range(LARGE), virtual_range(SMALL));
    add("virtual at random", READ_LIMIT, false, &|reader| at_random(&large, |address| reader.read(address)));
    add("virtual within 1 MiB", READ_LIMIT, false, &|reader| at_random(&small, |address| reader.read(address)));
    add("task", STEP_LIMIT, false, &|reader| walk_tasks(reader, plan));
    add("task the first time", COLD_STEP_LIMIT, true, &|reader| walk_tasks(reader, plan));
    if !plan.is_pv {
        add("all RAM by 4 KiB", PAGE_LIMIT, true, &|reader| read_all(reader, &plan.ram));
    }
    rows
}

fn at_random(range: &Range<u64>, mut read: impl FnMut(u64) -> u64) -> (u64, u64) {
    let (mut random, mut sum) = (1_u64, 0_u64);
    for _ in 0..READS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        sum = sum.wrapping_add(read(range.start + (random >> 33) % (range.end - range.start) / 8 * 8));
    }
    (READS, sum)
}

/// Reads of each task the pointers to the next and the previous one, the word before its name, and its name.
fn walk_tasks(reader: &impl Reader, plan: &Plan) -> (u64, u64) {
    let (mut count, mut sum, mut task) = (0, 0_u64, plan.tasks);
    loop {
        let mut name = [0; 16];
        let next = reader.read(task);
        let others = reader.read(task + 8).wrapping_add(reader.read(task + plan.name - 8));
        reader.read_bytes(task + plan.name, &mut name);
        sum = sum.wrapping_add(next).wrapping_add(others).wrapping_add(ends(&name));
        count += 1;
        if next == plan.tasks {
            return (count, sum);
        }
        assert!(count < 10_000, "the list of tasks has no end");
        task = next;
    }
}

fn read_all(reader: &impl Reader, ram: &Range<u64>) -> (u64, u64) {
    let (mut page, mut sum) = ([0; FRAME_SIZE], 0_u64);
    for address in ram.clone().step_by(FRAME_SIZE) {
        reader.physical(address, &mut page);
        sum = sum.wrapping_add(ends(&page));
    }
    ((ram.end - ram.start) / FRAME_SIZE as u64, sum)
}

/// Returns the sum of the first and the last 8 bytes.
fn ends(bytes: &[u8]) -> u64 {
    let (first, last) = (bytes.first_chunk().unwrap(), bytes.last_chunk().unwrap());
    u64::from_ne_bytes(*first).wrapping_add(u64::from_ne_bytes(*last))
}

/// Runs libvmi.c, which prints a line for each row: its cost, and the sum.
fn run_libvmi(program: &str, guest: &Guest, plan: &Plan) -> Vec<Row> {
    let PageTables::X86 { cr3, .. } = plan.tables else { panic!("not an x86 guest") };
    let mut command = Command::new(program);
    command.arg(guest.domid().to_string()).arg(if plan.is_pv { "pv" } else { "pvh" });
    let numbers = [cr3, plan.tasks, plan.name, plan.ram.start, plan.ram.end];
    let output = command.args(numbers.map(|number| format!("{number:#x}"))).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let (cost, sum) = line.split_once(' ').unwrap();
        Row { what: String::new(), cost: cost.parse().unwrap(), sum: sum.parse().unwrap(), limit: None }
    };
    lines.lines().map(row).collect()
}
