//! Which process this is, at no system call.

#![expect(unsafe_code, reason = "a page that the kernel wipes on fork")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::Place;
use super::memory::{advise, mmap};

/// Identifies a process among its ancestors.
///
/// A mapping is not inherited over fork (the kernel sets `VM_DONTCOPY`), but the object that owns it is. Its `Drop` in
/// the child must not unmap addresses that may hold something else by then. Asking getpid(2) each time would add a
/// third to the system calls of a map and unmap, and a child in another pid namespace may have its parent's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId(u32);

/// The number that the next process gets. Children inherit it, so they never get one of an ancestor's.
static NEXT: AtomicU32 = AtomicU32::new(1);

impl ProcessId {
    pub(crate) fn current() -> ProcessId {
        let Some(cache) = cache() else {
            return ProcessId(std::process::id());
        };
        match cache.load(Ordering::Relaxed) {
            0 => {
                let new = NEXT.fetch_add(1, Ordering::Relaxed);
                // Another thread may have been faster.
                let chosen = cache.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
                ProcessId(chosen.map_or_else(|other| other, |_| new))
            }
            id => ProcessId(id),
        }
    }
}

/// A word that is 0 in every new child: the kernel wipes its page on fork, however the fork is made. `None` where it
/// cannot (before Linux 4.14).
fn cache() -> Option<&'static AtomicU32> {
    static CACHE: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *CACHE.get_or_init(|| {
        let (place, len) = (Place { addr: 0, flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS }, size_of::<AtomicU32>());
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks addresses that nobody uses.
        let addr = unsafe { mmap(place, len, prot, None) }.ok()?;
        // SAFETY: the page has just been mapped, and nobody knows of it.
        unsafe { advise(addr, len, &[MmapAdvise::MADV_WIPEONFORK]) }.ok()?;
        // SAFETY: the page is zeroed, aligned, never unmapped, and only ever used through this type.
        Some(unsafe { addr.cast::<AtomicU32>().as_ref() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_is_another_process() {
        let parent = ProcessId::current();
        assert_eq!(parent, ProcessId::current());
        // SAFETY: the child only reads the identifier and leaves, without running anything of the parent's.
        match unsafe { libc::fork() } {
            0 => {
                let other = ProcessId::current();
                let same = other == parent || other != ProcessId::current();
                // SAFETY: leaves at once.
                unsafe { libc::_exit(i32::from(same)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for our own child, into our own integer.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
    }
}
