//! Identifies the current process without a system call.

#![expect(unsafe_code, reason = "maps a page that the kernel wipes on fork")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MmapAdvise, ProtFlags};

use super::Place;
use super::memory::{advise, mmap};

/// Identifies a process among its ancestors.
///
/// A forked child does not inherit a mapping (the kernel sets `VM_DONTCOPY`), but it does inherit the object that owns
/// it. In the child, `Drop` must not unmap the addresses, which may hold something else by then. Calling getpid(2) each
/// time would add a third to the system calls of a map and unmap, and a child in another pid namespace may have its
/// parent's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId(u32);

/// The number that the next process gets. Children inherit it, so they never get an ancestor's number.
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

/// Returns a word that is 0 in every new child: the kernel wipes its page on fork, however the fork is made. `None` if
/// the kernel cannot do that (before Linux 4.14).
fn cache() -> Option<&'static AtomicU32> {
    static CACHE: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *CACHE.get_or_init(|| {
        let (place, len) = (Place { addr: 0, flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS }, size_of::<AtomicU32>());
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks addresses that nothing uses.
        let addr = unsafe { mmap(place, len, prot, None) }.ok()?;
        // SAFETY: the page has just been mapped, and nothing else refers to it.
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
        // SAFETY: the child only reads the identifier and exits, without running any of the parent's code.
        match unsafe { libc::fork() } {
            0 => {
                let other = ProcessId::current();
                let same = other == parent || other != ProcessId::current();
                // SAFETY: exits at once.
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
