//! The cost of mapping on a real Xen, from Rust and through our C library, compared with Debian's libxenforeignmemory.
//! It opens both C libraries at run time.
//!
//! `tests/xen/run pv --lane cost` (or `pvh`, `arm64`) runs it in a dom0 whose clock counts instructions, so that the
//! figures are repeatable and their ratios can be asserted. `xen_cost --syscalls ours|drop-in|theirs` lets strace(1)
//! count the system calls.

#![expect(unsafe_code, reason = "calls a C library, and counts allocations")]
#![expect(clippy::print_stdout, reason = "prints what it has measured")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use xenmap::{Domid, ForeignMemory, Gfn, GuestKind, Protection};

#[path = "../tests/common/mod.rs"]
mod common;

/// The frames of a call, the number of rounds, and how much more than theirs ours may cost.
const SIZES: [(u32, usize, f64); 5] =
    [(1, 401, 1.05), (16, 101, 1.02), (512, 21, 1.02), (8192, 7, 1.02), (32768, 3, 1.02)];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    if std::env::var_os("XENMAP_TEST_XEN").is_none() {
        println!("needs a real Xen: tests/xen/run pv --lane cost");
        return;
    }
    match (arguments.next().as_deref(), arguments.next().as_deref()) {
        (None, None) => compare(),
        (Some("--syscalls"), Some("ours")) => make_system_calls(&Ours::open()),
        (Some("--syscalls"), Some("drop-in")) => make_system_calls(&CLibrary::open(DROP_IN)),
        (Some("--syscalls"), Some("theirs")) => make_system_calls(&CLibrary::open(THEIRS)),
        _ => panic!("usage: xen_cost [--syscalls ours|drop-in|theirs]"),
    }
}

fn with_guest(run: impl Fn(Domid, &[Gfn])) {
    common::on_each_host(|host| {
        // A few more frames than the largest size.
        let guest = host.create(GuestKind::Hvm, 33_000);
        run(guest.domid(), &guest.gfns());
    });
}

/// A library to compare.
trait Maps {
    /// Maps frames read-write and unmaps them, and returns how long both took.
    fn map_unmap(&self, domid: Domid, gfns: &[Gfn]) -> Cost;
}

#[derive(Clone, Copy)]
struct Cost {
    map: Duration,
    unmap: Duration,
}

struct Ours(ForeignMemory);

impl Ours {
    fn open() -> Ours {
        Ours(ForeignMemory::open().expect("a dom0"))
    }
}

impl Maps for Ours {
    fn map_unmap(&self, domid: Domid, gfns: &[Gfn]) -> Cost {
        let start = Instant::now();
        let mapping = self.0.map_foreign_batch(domid, Protection::ReadWrite, gfns).expect("frames of the guest");
        let mapped = Instant::now();
        drop(mapping);
        Cost { map: mapped - start, unmap: mapped.elapsed() }
    }
}

/// Debian's library, and ours with the same name, where the lab installs it.
const THEIRS: &CStr = c"libxenforeignmemory.so.1";
const DROP_IN: &CStr = c"/tests/libxenforeignmemory.so.1";

/// The functions that are called here, with the types of xenforeignmemory.h in Debian 12.
struct CLibrary {
    handle: *mut c_void,
    map: unsafe extern "C" fn(*mut c_void, u32, c_int, usize, *const u64, *mut c_int) -> *mut c_void,
    unmap: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
}

impl CLibrary {
    fn open(path: &CStr) -> CLibrary {
        // SAFETY: the constructors of this library have no preconditions.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "{} is missing", path.to_string_lossy());
        // SAFETY: the type is that of the header.
        let open: unsafe extern "C" fn(*mut c_void, c_uint) -> *mut c_void =
            unsafe { function(library, c"xenforeignmemory_open") };
        // SAFETY: the logger may be null.
        let handle = unsafe { open(std::ptr::null_mut(), 0) };
        assert!(!handle.is_null(), "xenforeignmemory_open: {}", std::io::Error::last_os_error());
        CLibrary {
            handle,
            // SAFETY: the type is that of the header.
            map: unsafe { function(library, c"xenforeignmemory_map") },
            // SAFETY: the type is that of the header.
            unmap: unsafe { function(library, c"xenforeignmemory_unmap") },
            // SAFETY: the type is that of the header.
            close: unsafe { function(library, c"xenforeignmemory_close") },
        }
    }
}

/// # Safety
///
/// `F` is the type of the function pointer.
unsafe fn function<F: Copy>(library: *mut c_void, name: &CStr) -> F {
    // SAFETY: `library` is open, and the name is a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!address.is_null(), "libxenforeignmemory has no {}", name.to_string_lossy());
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the caller's promise; the sizes are the same.
    unsafe { std::mem::transmute_copy(&address) }
}

impl Maps for CLibrary {
    fn map_unmap(&self, domid: Domid, gfns: &[Gfn]) -> Cost {
        // A `Gfn` is a `u64` (`repr(transparent)`). None of this is measured.
        let (arr, pages, dom) = (gfns.as_ptr().cast::<u64>(), gfns.len(), domid.get().into());
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let start = Instant::now();
        // SAFETY: `arr` has `pages` entries. Without an array for errors it maps all frames or none, as ours does.
        let addr = unsafe { (self.map)(self.handle, dom, prot, pages, arr, std::ptr::null_mut()) };
        let mapped = Instant::now();
        assert!(!addr.is_null(), "xenforeignmemory_map: {}", std::io::Error::last_os_error());
        let before = Instant::now();
        // SAFETY: just mapped, and nothing uses it.
        let result = unsafe { (self.unmap)(self.handle, addr, pages) };
        let unmap = before.elapsed();
        assert_eq!(result, 0, "xenforeignmemory_unmap: {}", std::io::Error::last_os_error());
        Cost { map: mapped - start, unmap }
    }
}

impl Drop for CLibrary {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and not used any more.
        unsafe { (self.close)(self.handle) };
    }
}

fn compare() {
    let all_good = Cell::new(true);
    let verdict = |good: bool, name: &str| {
        println!("{} cost::{name}", if good { "PASS" } else { "FAIL" });
        all_good.set(all_good.get() && good);
    };
    with_guest(|domid, gfns| {
        // Theirs first: if ours were loaded already, the loader would find ours by the same name.
        let theirs = CLibrary::open(THEIRS);
        let (ours, drop_in) = (Ours::open(), CLibrary::open(DROP_IN));
        println!(
            "| frames | ours map | theirs map | ours unmap | theirs unmap | ratio of the sum | of the C library's |"
        );
        println!("|---|---|---|---|---|---|---|");
        for (frames, rounds, limit) in SIZES {
            // Not frame 0, which takes another system call if it is mapped alone (src/handle/populated.rs).
            let gfns = &gfns[1..=frames as usize];
            // The first round of a size warms up. The libraries take turns, also in going first, so that other load
            // affects all of them equally, even if it recurs once a round.
            let all: [&dyn Maps; 3] = [&ours, &drop_in, &theirs];
            let mut costs = [const { Vec::new() }; 3];
            for round in 0..=rounds {
                for which in (0..3).map(|turn| (round + turn) % 3) {
                    costs[which].push(all[which].map_unmap(domid, gfns));
                }
            }
            let [ours, drop_in, theirs] = costs.map(|costs: Vec<Cost>| costs[1..].to_vec());
            let [map, unmap, sum] = [|c: &Cost| c.map, |c: &Cost| c.unmap, |c: &Cost| c.map + c.unmap];
            let per_frame = |costs: &[Cost], part| (cheapest(costs, part) / frames).as_nanos();
            let [ratio, c_ratio] =
                [ours.as_slice(), &drop_in].map(|o| cheapest(o, sum).div_duration_f64(cheapest(&theirs, sum)));
            println!(
                "| {frames} | {} | {} | {} | {} | {ratio:.4} | {c_ratio:.4} |",
                per_frame(&ours, map),
                per_frame(&theirs, map),
                per_frame(&ours, unmap),
                per_frame(&theirs, unmap),
            );
            verdict(ratio <= limit, &format!("map_unmap_{frames}_frames"));
            verdict(c_ratio <= limit, &format!("map_unmap_{frames}_frames_from_c"));
        }
        let [(calls_512, bytes_512), (calls_32768, bytes_32768)] = [512, 32768].map(|frames| {
            let (calls, bytes) = allocated(|| ours.map_unmap(domid, &gfns[..frames]));
            println!("| ours, {frames} frames: {calls} allocations, {bytes} bytes");
            (calls, bytes)
        });
        verdict(calls_512 == calls_32768 && calls_512 <= 4, "allocations_do_not_grow_with_frames");
        // A copy of a frame number would take 8 bytes; the error that the kernel writes for each frame takes 4.
        verdict(bytes_512 < 8 * 512 && bytes_32768 < 8 * 32768, "gfns_are_not_copied");
    });
    if !all_good.get() {
        std::process::exit(1);
    }
}

/// Returns the cost of the cheapest round. Other work of the kernel adds to the cost of rounds, at some sizes of most.
fn cheapest(costs: &[Cost], part: fn(&Cost) -> Duration) -> Duration {
    costs.iter().map(part).min().unwrap_or_default()
}

/// Maps and unmaps 16 frames 16 times, between two calls of getppid(2) that strace(1) shows.
fn make_system_calls(maps: &impl Maps) {
    let mark = std::os::unix::process::parent_id;
    with_guest(|domid, gfns| {
        maps.map_unmap(domid, &gfns[..16]);
        let before = mark();
        for _ in 0..16 {
            maps.map_unmap(domid, &gfns[..16]);
        }
        assert_eq!(mark(), before, "the parent is the same");
    });
}

/// Returns how many allocations a function makes, and their total size in bytes.
fn allocated<T>(run: impl FnOnce() -> T) -> (usize, usize) {
    let now = || (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    let before = now();
    run();
    let after = now();
    (after.0 - before.0, after.1 - before.1)
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The system allocator, with counters. It adds a few instructions to our side of the comparison only.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: forwards every call to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(old, layout) }
    }
}
