//! The cost of reading a guest's virtual memory in small parts.
//!
//! On Xen (`tests/xen/run pv --lane cost`) a dom0's clock counts all instructions, and in a PV dom0 the bench fails if
//! a read costs more than its limit. Elsewhere it measures nanoseconds, on the simulated host.

#![expect(clippy::print_stdout, reason = "prints what it has measured")]
#![expect(clippy::unwrap_used, reason = "a panic fails the bench")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use xenmap::mock::Dom0;
use xenmap::{AddressSpace, ForeignMemory, Guest, GuestKind, PageTables, PagingMode};

use common::Host;

#[path = "../tests/common/mod.rs"]
mod common;

const FRAME: u64 = common::FRAME as u64;
/// The guest's frames: 128 MiB. The last ones hold the page tables.
const FRAMES: u64 = 1 << 15;
const TABLES: u64 = FRAMES - 64;
/// What is read at random: 64 MiB, through a page of 1 GiB and through pages of 4 KiB.
const RANGE: u64 = 64 << 20;
const LARGE: u64 = 0xFFFF_8880_0000_0000;
const SMALL: u64 = 0xFFFF_C900_0000_0000;

/// Three tasks in each of some blocks of 8 frames, as Linux allocates them.
const TASK: u64 = 0x2600;
const TASKS: u64 = 3 * 96;

const READS: u64 = 20_000;
/// Rounds, of which the cheapest counts.
const ROUNDS: usize = 5;

/// The limits in a PV dom0, in instructions.
const READ_LIMIT: u128 = 400;
const STEP_LIMIT: u128 = 1_000;
const COLD_STEP_LIMIT: u128 = 30_401;
const PAGE_LIMIT: u128 = 5_000;

fn main() {
    let kind = std::env::var("XENMAP_TEST_XEN").ok();
    if kind.is_some() {
        common::on_each_host(|host| measure(host, kind.as_deref() == Some("pv")));
    } else {
        measure(&Host::Mock(common::mock(Dom0::Pv)), false);
    }
}

fn measure(host: &Host, has_limits: bool) {
    let guest = host.create(GuestKind::Hvm, usize::try_from(FRAMES).unwrap());
    write_tables(&guest);
    let memory = host.open();
    let open = || open(&memory, &guest);
    let space = open();

    println!("| what is read | cost |");
    println!("|---|---|");
    let mut is_good = true;
    let mut report = |what: &str, cost: Duration, limit: u128| {
        let cost = cost.as_nanos();
        println!("| {what} | {cost} |");
        if has_limits {
            println!("{} address_space::{}", if cost <= limit { "PASS" } else { "FAIL" }, what.replace(' ', "_"));
            is_good &= cost <= limit;
        }
    };
    report("8 bytes at random in a large page", cheapest(|| random_reads(&space, LARGE)), READ_LIMIT);
    report("8 bytes at random in small pages", cheapest(|| random_reads(&space, SMALL)), READ_LIMIT);
    report("step of a list", cheapest(|| walk_list(&space)), STEP_LIMIT);
    report("step of a list the first time", cheapest(|| walk_list(&open())), COLD_STEP_LIMIT);
    report("all memory in parts of 4 KiB", cheapest(|| read_all(&open())), PAGE_LIMIT);
    if !is_good {
        std::process::exit(1);
    }
}

fn open(memory: &ForeignMemory, guest: &common::Guest) -> AddressSpace {
    let tables = PageTables::X86 { cr3: TABLES * FRAME, mode: PagingMode::FourLevels };
    AddressSpace::new(Guest::open(memory, guest.domid()).unwrap(), tables)
}

/// Writes page tables: the lower part of memory as a page of 1 GiB, and again as pages of 4 KiB.
fn write_tables(guest: &common::Guest) {
    let gfns = guest.gfns();
    let write = |frame: u64, index: u64, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        guest.write(gfns[usize::try_from(frame).unwrap()], usize::try_from(index * 8).unwrap(), &bytes);
    };
    let index = |address: u64, level: u32| address >> (12 + 9 * (level - 1)) & 0x1FF;
    write(TABLES, index(LARGE, 4), &[((TABLES + 1) * FRAME) | 3]);
    write(TABLES + 1, index(LARGE, 3), &[0x83]);
    write(TABLES, index(SMALL, 4), &[((TABLES + 2) * FRAME) | 3]);
    write(TABLES + 2, index(SMALL, 3), &[((TABLES + 3) * FRAME) | 3]);
    for table in 0..RANGE / FRAME / 512 {
        write(TABLES + 3, index(SMALL, 2) + table, &[((TABLES + 4 + table) * FRAME) | 3]);
        let entries: Vec<u64> = (0..512).map(|page| ((table * 512 + page) * FRAME) | 3).collect();
        write(TABLES + 4 + table, 0, &entries);
    }
}

/// Returns the cost of the cheapest round. The first one maps what is missing.
fn cheapest(round: impl Fn() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}

fn random_reads(space: &AddressSpace, start: u64) -> Duration {
    let mut random = 1_u64;
    // Once for each page, so that none is read for the first time below.
    for page in 0..RANGE / FRAME {
        space.read::<u64>(start + page * FRAME).unwrap();
    }
    let began = Instant::now();
    for _ in 0..READS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        black_box(space.read::<u64>(start + (random >> 33) % RANGE / 8 * 8).unwrap());
    }
    began.elapsed() / u32::try_from(READS).unwrap()
}

/// Walks a list of tasks: 3 fields and a name of each.
fn walk_list(space: &AddressSpace) -> Duration {
    let began = Instant::now();
    for task in 0..TASKS {
        // The blocks are scattered over the memory.
        let block = task / 3 * 37 % (TABLES / 8);
        let task = LARGE + block * 8 * FRAME + task % 3 * TASK;
        let mut name = [0; 16];
        black_box(space.read::<u64>(task + 0x4A0).unwrap());
        black_box(space.read::<u32>(task + 0x560).unwrap());
        black_box(space.read::<u64>(task + 0x4F0).unwrap());
        space.read_bytes(task + 0x750, &mut name).unwrap();
        black_box(name);
    }
    began.elapsed() / u32::try_from(TASKS).unwrap()
}

fn read_all(space: &AddressSpace) -> Duration {
    let mut page = vec![0; common::FRAME];
    let began = Instant::now();
    for frame in 0..TABLES {
        space.read_bytes(LARGE + frame * FRAME, &mut page).unwrap();
        black_box(&page);
    }
    began.elapsed() / u32::try_from(TABLES).unwrap()
}
