//! Address ranges: a [`Reservation`] for a mapping to be made, and the [`Region`] that a mapping owns.

#![expect(unsafe_code, reason = "owns and releases address ranges")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags};

use crate::backend::{Place, ProcessId, Unmapper, mmap, munmap};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Returns how many mappings of this process could not be unmapped when they were dropped. Their references are held
/// until the process exits.
///
/// The count stays 0 unless the kernel refuses a munmap(2) of a whole mapping, which it does for sealed memory (mseal)
/// and may do when out of memory. A large mapping counts in pieces of 64 MiB. If mmap(2) fails to replace a mapping in
/// order to retry frames that are paged out, that mapping counts too, even though it may be gone. Each case is logged
/// as an error.
///
/// ```
/// assert_eq!(xenmap::leaked_mappings(), 0);
/// ```
#[must_use]
pub fn leaked_mappings() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// One contiguous range of device mappings, each `vma_len` bytes (the last may be shorter); dropping it unmaps them.
///
/// A device mapping can only be unmapped as a whole: unmapping a part of one frees frames twice on kernels before
/// XSA-487, and is refused since. So each is unmapped by a call of its own, which also lets other threads use the
/// address space in between.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    vma_len: usize,
    /// Whether `drop` leaves `PROT_NONE` memory at the addresses.
    keeps_addresses: bool,
    unmapper: Unmapper,
    process: ProcessId,
}

// SAFETY: an address range means the same on every thread. The memory of a mapping is accessed only by the functions of
// mapping/copy and by system calls, which any number of threads may use at once; that of a hypercall buffer only by
// references that borrow its owner. An `Unmapper` is Send.
unsafe impl Send for Region {}
// SAFETY: as above, and whatever changes a region takes `&mut self` or `self`. An `Unmapper` is Sync.
unsafe impl Sync for Region {}

impl Region {
    /// Takes ownership of the `len` mapped bytes at `base`: device mappings of `vma_len` bytes each.
    ///
    /// # Safety
    ///
    /// They are mapped through `unmapper`'s device, and nothing else unmaps them.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, vma_len: usize, unmapper: Unmapper) -> Region {
        Region { base, len, vma_len, keeps_addresses: false, unmapper, process: ProcessId::current() }
    }

    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Takes ownership of the `len` bytes after the end.
    ///
    /// # Safety
    ///
    /// They are one device mapping, made as the others were, and nothing else unmaps it; the mapping before it has
    /// `vma_len` bytes.
    pub(crate) unsafe fn grow(&mut self, len: usize) {
        self.len += len;
    }

    /// On drop, replaces the mapping with `PROT_NONE` memory, because the caller owns these addresses.
    pub(crate) fn keep_addresses(&mut self) {
        self.keeps_addresses = true;
    }

    /// Returns the address, and gives up the ownership: the caller unmaps.
    pub(crate) fn release(mut self) -> NonNull<u8> {
        self.truncate(0);
        self.base
    }

    /// Gives up the ownership of everything past the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gives up the ownership of everything past the first `len` bytes, after mmap(2) failed to replace it.
    ///
    /// The kernel may have failed before it unmapped the bytes or afterwards, when another thread may have got the
    /// addresses. There is no way to tell, so nothing is unmapped. Unless the addresses are free, this counts as a
    /// leak.
    pub(crate) fn abandon(&mut self, len: usize) {
        let lost = self.len.saturating_sub(len);
        self.truncate(len);
        // SAFETY: at most one past the end of the range.
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
        // A forked child has a copy of this object but not the mapping, and may have something else at these addresses.
        if self.process != ProcessId::current() {
            return;
        }
        for start in (0..self.len).step_by(self.vma_len) {
            let len = self.vma_len.min(self.len - start);
            // SAFETY: `start` is below `len`, and all `len` bytes are mapped.
            let addr = unsafe { self.base.add(start) };
            let unmapped = if self.keeps_addresses {
                // SAFETY: this is one whole mapping that we own (`new`, `grow`), and whatever uses it borrows this
                // object.
                unsafe { reserve(Some(addr), len, MapFlags::MAP_FIXED) }.map(|_| ())
            } else {
                // SAFETY: this is one whole mapping that we own (`new`, `grow`), and whatever uses it borrows this
                // object.
                unsafe { self.unmapper.munmap(addr, len) }
            };
            if let Err(e) = unmapped {
                // No retry: a failed replacement may have unmapped all the same, and another thread may have the
                // addresses by now.
                LEAKED.fetch_add(1, Ordering::Relaxed);
                log::error!(
                    "cannot unmap {len} bytes at {addr:p}: {e}; their references are held until this process ends"
                );
            }
        }
    }
}

/// Maps `PROT_NONE` memory, which costs nothing, so that nothing else gets its addresses.
///
/// # Safety
///
/// If `flags` make it replace anything, the caller owns all `len` bytes of it, and nothing uses them.
pub(crate) unsafe fn reserve(addr: Option<NonNull<u8>>, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
    let place = Place { addr: addr.map_or(0, |addr| addr.as_ptr().expose_provenance()), flags: flags.bits() };
    // SAFETY: the caller's promise.
    unsafe { mmap(place, len, ProtFlags::PROT_NONE, None) }
}

/// A range of addresses that nothing else gets and that no memory backs; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    len: usize,
}

impl Reservation {
    pub(crate) fn new(len: usize) -> io::Result<Reservation> {
        // SAFETY: the kernel picks addresses that nothing uses.
        let base = unsafe { reserve(None, len, MapFlags::empty()) }?;
        Ok(Reservation { base, len })
    }

    /// Reserves the `len` bytes at an address; EEXIST if anything is mapped there.
    pub(crate) fn at(addr: NonNull<u8>, len: usize) -> io::Result<Reservation> {
        // SAFETY: nothing is replaced.
        let base = unsafe { reserve(Some(addr), len, MapFlags::MAP_FIXED_NOREPLACE) }?;
        let reservation = Reservation { base, len };
        // Linux before 4.17 takes the address as a hint; if it chose another one, `drop` frees that.
        if base == addr { Ok(reservation) } else { Err(io::Error::from_raw_os_error(libc::EEXIST)) }
    }

    /// Leaves the addresses reserved forever.
    pub(crate) fn keep(mut self) {
        self.len = 0;
    }

    /// Returns where the rest of the range begins.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Gives up the ownership of the first `len` bytes, because something else is or may be there now.
    pub(crate) fn give_up(&mut self, len: usize) {
        let len = len.min(self.len);
        // SAFETY: at most one past the end of the range.
        self.base = unsafe { self.base.add(len) };
        self.len -= len;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: we own what has not been given up, and nothing uses it.
        if let Err(e) = unsafe { munmap(self.base, self.len) } {
            log::warn!("cannot free {} reserved bytes: {e}", self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::ptr;

    use super::*;
    use crate::types::FRAME_SIZE;

    /// An address where nothing is mapped, far from where the kernel puts mappings by default.
    const FREE: usize = 0x1000_0000_0000;
    const BYTES: usize = 3 * FRAME_SIZE;

    /// Runs a test in a process of its own, where no other test maps or unmaps anything.
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

    /// Returns the access rights at an address; `None` if nothing is mapped there.
    fn access_at(addr: usize) -> Option<String> {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
            range.contains(&addr).then(|| rest[..4].to_owned())
        })
    }

    /// Unmaps what the test has mapped at an address.
    fn free(range: NonNull<u8>) {
        // SAFETY: the test owns the memory, or nothing is mapped: no other test runs in this process.
        unsafe { munmap(range, BYTES) }.unwrap();
    }

    #[test]
    fn range_that_is_free_after_a_failed_retry_stays_reserved_and_is_no_leak() {
        alone("range_that_is_free_after_a_failed_retry_stays_reserved_and_is_no_leak", || {
            for is_callers in [true, false] {
                let range = NonNull::new(ptr::with_exposed_provenance_mut(FREE)).unwrap();
                Reservation::at(range, BYTES).unwrap().keep();
                // SAFETY: the test owns the memory, which only `free` unmaps.
                let mut region = unsafe { Region::new(range, BYTES, BYTES, Unmapper::default()) };
                if is_callers {
                    region.keep_addresses();
                }
                // The state that a kernel leaves if it runs out of memory after it has unmapped the old mapping.
                free(range);

                region.abandon(0);

                assert_eq!(access_at(FREE).as_deref(), is_callers.then_some("---p"));
                assert_eq!(leaked_mappings(), 0);
                free(range);
            }
        });
    }
}
