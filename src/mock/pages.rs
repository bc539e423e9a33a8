//! The memory at the addresses of a device mapping: pages of memory files.

#![expect(unsafe_code, reason = "maps memory files where the kernel would map foreign frames")]

use std::io;
use std::ptr::NonNull;

use super::machine::Host;
use super::memory::{JUNK_BYTES, unmap};
use super::state::{Pte, State, Vma};
use crate::backend::Place;
use crate::types::FRAME_SIZE;

impl Host {
    /// Maps the memory of pages `first..first + num` of a device mapping.
    ///
    /// # Safety
    ///
    /// These pages are mapped, and nothing uses them.
    pub(super) unsafe fn show(&self, start: usize, vma: &Vma, first: usize, num: usize) -> io::Result<()> {
        for (from, to, pte) in vma.runs().filter(|&(from, to, _)| from < first + num && first < to) {
            let (from_here, to) = (from.max(first), to.min(first + num));
            let len = (to - from_here) * FRAME_SIZE;
            let addr = address(start + from_here * FRAME_SIZE)?;
            match pte {
                Pte::None => {}
                Pte::Page(page) => {
                    let offset = (page + from_here - from) * FRAME_SIZE;
                    // SAFETY: the caller's promise.
                    unsafe { self.ram.map_at(Place::over(addr), offset, len, vma.protection) }?;
                }
                Pte::Fatal(page) => {
                    let offset = (page + from_here - from) * FRAME_SIZE;
                    // SAFETY: the caller's promise.
                    unsafe { self.fatal.map_at(Place::over(addr), offset, len, vma.protection) }?;
                }
                Pte::Junk => {
                    for done in (0..len).step_by(JUNK_BYTES) {
                        let addr = address(start + from_here * FRAME_SIZE + done)?;
                        // SAFETY: the caller's promise.
                        unsafe { self.junk.map_private_over(addr, JUNK_BYTES.min(len - done), vma.protection) }?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Undoes [`show`](Host::show).
    ///
    /// # Safety
    ///
    /// As for [`show`](Host::show).
    pub(super) unsafe fn show_unpopulated(&self, start: usize, vma: &Vma, first: usize, num: usize) -> io::Result<()> {
        let addr = address(start + first * FRAME_SIZE)?;
        // SAFETY: the caller's promise.
        unsafe { self.empty.map_at(Place::over(addr), first * FRAME_SIZE, num * FRAME_SIZE, vma.protection) }?;
        Ok(())
    }

    /// Keeps a mapping's references after it is unmapped, by mapping its frames once more elsewhere.
    pub(super) fn leak(&self, state: &mut State, start: usize) -> io::Result<()> {
        let Some(vma) = state.vmas.get(&start) else { return Ok(()) };
        let mut leaks = Vec::new();
        for (from, to, pte) in vma.runs() {
            if let Pte::Page(page) = pte {
                let len = (to - from) * FRAME_SIZE;
                let addr = self.ram.map(page * FRAME_SIZE, len, vma.protection)?;
                leaks.push((addr.as_ptr().addr(), len));
            }
        }
        state.leaks.extend(leaks);
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let state = &mut *self.lock();
        for (addr, len) in state.leaks.drain(..).chain(state.taken_ranges.drain(..)) {
            if let Ok(addr) = address(addr) {
                // SAFETY: only the state knew of this mapping, and it has just been taken out.
                let unmapped = unsafe { unmap(addr, len) };
                unmapped.unwrap_or_else(|e| log::error!("the mock cannot unmap a mapping of its own: {e}"));
            }
        }
    }
}

pub(super) fn address(addr: usize) -> io::Result<NonNull<u8>> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(addr)).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
}
