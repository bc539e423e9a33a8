//! The cost of mapping and unmapping a guest's frames on the mock, compared with the bare system calls that the mock
//! makes.
//!
//! It shows whether the mock stays fast enough for tests. The ratio is **not** what the library costs on Xen: the mock
//! is also the hypervisor and the kernel, and keeps the state of both (a lock, a look-up of each frame, page tables as
//! a `Vec`), while the bare calls know nothing of frames. `benches/xen_cost.rs` measures on Xen.

#![expect(unsafe_code, reason = "maps memory files")]

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use xenmap::mock::{MockDomain, MockHost};
use xenmap::{FRAME_SIZE, ForeignMemory, Gfn, GuestKind, Protection};

const SIZES: [usize; 5] = [1, 16, 512, 8192, 32768];

fn main() {
    let xenmap = Xenmap::new();
    let bare = Bare::new();
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches` only checks that it works. Criterion would print a lot.
        for frames in SIZES {
            xenmap.map_unmap(frames);
            bare.map_unmap(frames);
        }
        return;
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("map+unmap");
    for frames in SIZES {
        group.throughput(Throughput::Elements(frames as u64));
        group.bench_function(format!("{frames} frames/xenmap on the mock"), |b| b.iter(|| xenmap.map_unmap(frames)));
        group.bench_function(format!("{frames} frames/bare system calls"), |b| b.iter(|| bare.map_unmap(frames)));
    }
    group.finish();
    criterion.final_summary();
}

/// Consecutive frames of an HVM guest, mapped by a PV dom0.
struct Xenmap {
    memory: ForeignMemory,
    guest: MockDomain,
    gfns: Vec<Gfn>,
}

impl Xenmap {
    fn new() -> Xenmap {
        let host = MockHost::new();
        let guest = host.create_domain(GuestKind::Hvm, SIZES[SIZES.len() - 1]);
        Xenmap { memory: host.open().expect("the mock opens"), gfns: guest.frames(), guest }
    }

    fn map_unmap(&self, frames: usize) {
        let gfns = &self.gfns[..frames];
        let mapping = self.memory.map_foreign_batch(self.guest.domid(), Protection::ReadWrite, gfns);
        drop(mapping.expect("the guest has these frames"));
    }
}

/// Exactly the calls that the mock makes for one device mapping of consecutive frames: the mmap(2) of an empty file,
/// for the mapping before it is populated; another over it, of the file that is the guest's RAM; after each, the two
/// madvise(2) that keep it from children and core dumps, like a foreign mapping; and one munmap(2).
///
/// For 32768 frames the library makes two device mappings inside one reservation, which takes 8 more calls.
struct Bare {
    empty: File,
    ram: File,
}

impl Bare {
    fn new() -> Bare {
        let file = |name| File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a memory file"));
        let bare = Bare { empty: file(c"bench-empty"), ram: file(c"bench-ram") };
        bare.ram.set_len((SIZES[SIZES.len() - 1] * FRAME_SIZE) as u64).expect("a sparse file");
        bare
    }

    fn map_unmap(&self, frames: usize) {
        let len = NonZeroUsize::new(frames * FRAME_SIZE).expect("at least one frame");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks unused addresses.
        let mapped = unsafe { mman::mmap(None, len, prot, MapFlags::MAP_SHARED, &self.empty, 0) };
        let addr = mapped.expect("mmap");
        advise(addr, len);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: the range has just been mapped, and nothing uses it.
        let mapped = unsafe { mman::mmap(Some(addr.addr()), len, prot, flags, &self.ram, 0) };
        advise(mapped.expect("mmap over the first"), len);
        // SAFETY: it is the whole mapping, which nothing uses.
        unsafe { mman::munmap(addr, len.get()) }.expect("munmap");
    }
}

fn advise(addr: NonNull<c_void>, len: NonZeroUsize) {
    for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
        // SAFETY: the range is mapped, and the advice changes nothing for this process.
        unsafe { mman::madvise(addr, len.get(), advice) }.expect("madvise");
    }
}
