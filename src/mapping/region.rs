//! Address ranges: the one reserved for a mapping to come, and the one a mapping owns.

#![expect(unsafe_code, reason = "owns and releases address ranges")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags};

use crate::backend::{Place, ProcessId, Unmapper, mmap, munmap};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// How many mappings of this process (of a large one: pieces of 64 MiB) could not be unmapped when they were dropped,
/// so that their references are held until it exits.
///
/// It stays 0 unless the kernel refuses a munmap(2) of a whole mapping, which it does for sealed memory (mseal) and may
/// do when out of memory. It also counts a mapping that mmap(2) failed to replace, to ask again for frames that are
/// paged out, even though that mapping may be gone. Each case is logged as an error.
#[must_use]
pub fn leaked_mappings() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// One contiguous range of device mappings, each `vma_len` bytes (the last may be shorter); dropping it unmaps them.
///
/// The kernel knows a device mapping as a whole only: unmapping a part of one frees frames twice on kernels before
/// XSA-487, and is refused since. So each is unmapped by a call of its own, which also keeps the address space
/// unlocked in between for other threads.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    vma_len: usize,
    /// Whether the addresses stay taken when it is dropped.
    keeps_addresses: bool,
    unmapper: Unmapper,
    process: ProcessId,
}

// SAFETY: a range of addresses means the same on every thread. Of a mapping, the memory is accessed by the functions of
// mapping/copy and by system calls, which any number of threads may make at once; of a hypercall buffer, by references
// that borrow its owner. An `Unmapper` is Send.
unsafe impl Send for Region {}
// SAFETY: as above, and what changes a region takes `&mut self` or `self`. An `Unmapper` is Sync.
unsafe impl Sync for Region {}

impl Region {
    /// Takes over the `len` mapped bytes at `base`: device mappings of `vma_len` bytes each.
    ///
    /// # Safety
    ///
    /// They are mapped through `unmapper`'s device, and nobody else unmaps them.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, vma_len: usize, unmapper: Unmapper) -> Region {
        Region { base, len, vma_len, keeps_addresses: false, unmapper, process: ProcessId::current() }
    }

    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Takes over the `len` bytes after the last one.
    ///
    /// # Safety
    ///
    /// They are one device mapping, made as the others were, and nobody else unmaps it; the last one has `vma_len`
    /// bytes.
    pub(crate) unsafe fn grow(&mut self, len: usize) {
        self.len += len;
    }

    /// Has memory that cannot be accessed take its place when it is dropped: the addresses are somebody's already.
    pub(crate) fn keep_addresses(&mut self) {
        self.keeps_addresses = true;
    }

    /// Unmaps nothing when it is dropped: somebody else does.
    pub(crate) fn release(mut self) -> NonNull<u8> {
        self.truncate(0);
        self.base
    }

    /// Forgets what is past the first `len` bytes: it is not ours to unmap any more.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets everything past the first `len` bytes, after mmap(2) failed to replace it.
    ///
    /// The kernel may have failed before it unmapped them, or after, when another thread may have got the addresses:
    /// nobody can tell, so nothing is unmapped. Unless the addresses are free, it counts as leaked.
    pub(crate) fn abandon(&mut self, len: usize) {
        let lost = self.len.saturating_sub(len);
        self.truncate(len);
        // SAFETY: at most the end of the range.
        let addr = unsafe { self.base.add(self.len) };
        match Reservation::at(addr, lost) {
            Ok(free) if self.keeps_addresses => free.keep(),
            Ok(_) => {}
            Err(e) => {
                LEAKED.fetch_add(1, Ordering::Relaxed);
                log::error!(
                    "{lost} bytes at {addr:p} could not be replaced: {e}; if they are still mapped, their references \
                     are held until this process ends"
                );
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // A forked child has this object but not the mapping, and may have something else at these addresses.
        if self.process != ProcessId::current() {
            return;
        }
        for start in (0..self.len).step_by(self.vma_len) {
            let len = self.vma_len.min(self.len - start);
            // SAFETY: `start` is below `len`, and all `len` bytes are mapped.
            let addr = unsafe { self.base.add(start) };
            let unmapped = if self.keeps_addresses {
                // If it fails it may have unmapped all the same, and another thread may have the addresses by now.
                // SAFETY: this is one whole mapping of ours (`new`, `grow`), and whoever uses it borrows this object.
                unsafe { reserve(Some(addr), len, MapFlags::MAP_FIXED) }.map(|_| ())
            } else {
                // SAFETY: this is one whole mapping of ours (`new`, `grow`), and whoever uses it borrows this object.
                unsafe { self.unmapper.munmap(addr, len) }
            };
            if let Err(e) = unmapped {
                LEAKED.fetch_add(1, Ordering::Relaxed);
                log::error!(
                    "cannot unmap {len} bytes at {addr:p}: {e}; their references are held until this process ends"
                );
            }
        }
    }
}

/// Maps memory that cannot be accessed and costs nothing, so that nobody else gets its addresses.
///
/// # Safety
///
/// If `flags` have it go over something, that is the caller's own, all `len` bytes of it, and nothing uses them.
pub(crate) unsafe fn reserve(addr: Option<NonNull<u8>>, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
    let place = Place { addr: addr.map_or(0, |addr| addr.as_ptr().expose_provenance()), flags: flags.bits() };
    // SAFETY: the caller's promise.
    unsafe { mmap(place, len, ProtFlags::PROT_NONE, None) }
}

/// A range of addresses that nobody else gets, and that is not backed by anything; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    len: usize,
}

impl Reservation {
    pub(crate) fn new(len: usize) -> io::Result<Reservation> {
        // SAFETY: the kernel picks addresses that nobody uses.
        let base = unsafe { reserve(None, len, MapFlags::empty()) }?;
        Ok(Reservation { base, len })
    }

    /// The `len` bytes at an address; EEXIST if anything is there.
    pub(crate) fn at(addr: NonNull<u8>, len: usize) -> io::Result<Reservation> {
        // SAFETY: nothing is replaced.
        let base = unsafe { reserve(Some(addr), len, MapFlags::MAP_FIXED_NOREPLACE) }?;
        let reservation = Reservation { base, len };
        // Linux before 4.17 takes the address for a hint; what it gave goes back.
        if base == addr { Ok(reservation) } else { Err(io::Error::from_raw_os_error(libc::EEXIST)) }
    }

    /// Leaves the addresses taken.
    pub(crate) fn keep(mut self) {
        self.len = 0;
    }

    /// Where what is left of it begins.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Forgets the first `len` bytes: something else is there now, or may be.
    pub(crate) fn give_up(&mut self, len: usize) {
        let len = len.min(self.len);
        // SAFETY: at most the end of the range.
        self.base = unsafe { self.base.add(len) };
        self.len -= len;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: what has not been given up is ours alone.
        if let Err(e) = unsafe { munmap(self.base, self.len) } {
            log::warn!("cannot give back {} reserved bytes: {e}", self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::ptr;

    use super::*;
    use crate::types::FRAME_SIZE;

    /// An address where nothing is, far from where the kernel puts what may be anywhere.
    const FREE: usize = 0x1000_0000_0000;
    const BYTES: usize = 3 * FRAME_SIZE;

    /// Runs a test in a process of its own, in which no other test maps or unmaps anything.
    fn alone(name: &str, test: impl FnOnce()) {
        const VARIABLE: &str = "XENMAP_TEST_ALONE";
        if std::env::var_os(VARIABLE).is_some() {
            return test();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("mapping::region::tests::{name}");
        let output = command.args(["--exact", &name, "--nocapture"]).env(VARIABLE, "1").output().unwrap();
        let shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && shown.contains("1 passed"), "{}: {shown}", output.status);
    }

    /// The access rights at an address, unless nothing is there.
    fn access_at(addr: usize) -> Option<String> {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
            range.contains(&addr).then(|| rest[..4].to_owned())
        })
    }

    /// Frees what the test has at an address.
    fn free(range: NonNull<u8>) {
        // SAFETY: the test's own memory, or nothing: no other test runs in this process.
        unsafe { munmap(range, BYTES) }.unwrap();
    }

    #[test]
    fn range_that_is_free_after_a_failed_retry_stays_reserved_and_is_no_leak() {
        alone("range_that_is_free_after_a_failed_retry_stays_reserved_and_is_no_leak", || {
            for is_callers in [true, false] {
                let range = NonNull::new(ptr::with_exposed_provenance_mut(FREE)).unwrap();
                Reservation::at(range, BYTES).unwrap().keep();
                // SAFETY: the test's own memory, which nobody else unmaps but `free`.
                let mut region = unsafe { Region::new(range, BYTES, BYTES, Unmapper::default()) };
                if is_callers {
                    region.keep_addresses();
                }
                // As a kernel leaves it that ran out of memory after it had unmapped what was to be replaced.
                free(range);

                region.abandon(0);

                assert_eq!(access_at(FREE).as_deref(), is_callers.then_some("---p"));
                assert_eq!(leaked_mappings(), 0);
                free(range);
            }
        });
    }
}
