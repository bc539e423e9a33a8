//! The simulated kernel: the system calls on the device.

#![expect(unsafe_code, reason = "follows the pointers of ioctls, and maps memory at given places")]

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::config::Dom0;
use super::device_model::MockEvents;
use super::fatal;
use super::fault::{Fault, leave_frame_numbers, without_page_table};
use super::machine::Host;
use super::memory::{MemoryFile, unmap};
use super::pages::address;
use super::state::{Frame, Pte, State, Vma};
use crate::abi;
use crate::backend::{Backend, EventDevice, Ioctl, Place, Unmap, Unmapper};
use crate::types::{Architecture, Domid, FRAME_SIZE, HostKind, Protection};

/// `DOMID_INVALID`, which stands for no restriction.
const DOMID_INVALID: u16 = 0x7FF4;
/// `DOMID_IDLE`, which no guest has.
const DOMID_IDLE: u16 = 0x7FFF;
/// The most frames of a mapping that a kernel can populate: it allocates 8 bytes for each, and at most `INT_MAX` in
/// all. Linux fails only when it populates the mapping. The mock, which keeps state of every page, fails when it is
/// created.
const MAX_FRAMES: usize = (1 << 28) - 1;
/// Frame numbers that the kernel reads at a time.
const BLOCK: usize = 512;

/// An open file of the device.
#[derive(Debug)]
pub(super) struct MockDevice {
    pub(super) host: Arc<Host>,
    access: Protection,
    /// The domain to which the file is restricted, or [`DOMID_INVALID`]. Threads share it with the file.
    restricted: AtomicU32,
}

pub(super) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl MockDevice {
    pub(super) fn new(host: Arc<Host>, access: Protection) -> MockDevice {
        let restricted = match host.config.unprivileged {
            None => DOMID_INVALID,
            Some(None) => DOMID_IDLE,
            Some(Some(domid)) => domid.get(),
        };
        MockDevice { host, access, restricted: AtomicU32::new(restricted.into()) }
    }
}

// SAFETY: `mmap_at` and `map_hypercall_buffer` map pages of a file by mmap(2), the latter for reading and writing. The
// host keeps their addresses only to replace a mapping's pages when it is populated; only its `Unmap` unmaps them.
unsafe impl Backend for MockDevice {
    unsafe fn mmap_at(&self, place: Place, len: usize, protection: Protection) -> io::Result<NonNull<u8>> {
        self.check_access(protection)?;
        assert!(len.is_multiple_of(self.page_size()), "{len} bytes are not whole pages: the kernel would map more");
        if len / FRAME_SIZE > MAX_FRAMES {
            return Err(errno(libc::ENOMEM));
        }
        let state = &mut self.host.lock();
        if let Some(number) = state.faults.strike(|f| if let Fault::MmapEarly(e) = f { Some(e) } else { None }) {
            return Err(errno(number));
        }
        if place.is_over() {
            // SAFETY: the caller's promise.
            unsafe { self.make_room(state, address(place.addr)?, len) }?;
        } else if let Some(error) = strike_mmap(state) {
            return Err(error);
        }
        // SAFETY: the caller's promise.
        let addr = unsafe { self.host.empty.map_at(place, 0, len, protection) }?;
        let start = addr.as_ptr().addr();
        // If the range was free, other code has unmapped the mappings that the state still has there.
        self.host.forget(state, start, start + len);
        state.vmas.insert(start, unpopulated(len, protection));
        Ok(addr)
    }

    unsafe fn ioctl(&self, call: Ioctl<'_>) -> io::Result<u64> {
        match call {
            // SAFETY: the caller's promise.
            Ioctl::MmapBatchV2(batch) => unsafe { self.map_batch(batch) },
            // SAFETY: the caller's promise.
            Ioctl::MmapResource(resource) => unsafe { self.map_resource(resource) },
            Ioctl::Restrict(domid) => self.restrict(*domid),
            Ioctl::Hypercall(hypercall) => {
                self.check_restricted(None)?;
                // SAFETY: the caller's promise.
                unsafe { self.host.hypercall(hypercall) }
            }
            Ioctl::DmOp(call) => {
                self.check_restricted(Some(call.dom))?;
                let state = &mut self.host.lock();
                // SAFETY: the caller's promise.
                unsafe { self.host.dm_op(state, call) }.map_err(errno).map(|()| 0)
            }
            Ioctl::Unimplemented => {
                Err(errno(if self.host.config.kernel < (4, 11) { libc::EINVAL } else { libc::ENOTTY }))
            }
        }
    }

    fn map_hypercall_buffer(&self, len: usize) -> io::Result<NonNull<u8>> {
        let addr = MemoryFile::zeros(len)?.map(0, len, Protection::ReadWrite)?;
        self.host.lock().buffers.insert(addr.as_ptr().addr(), len);
        Ok(addr)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.host.empty.fd()
    }

    fn unmapper(&self) -> Unmapper {
        let host: Arc<dyn Unmap> = self.host.clone();
        Unmapper::new(host)
    }

    fn page_size(&self) -> usize {
        self.host.config.page_size
    }

    fn host_kind(&self) -> HostKind {
        self.host.host_kind()
    }

    fn architecture(&self) -> Architecture {
        self.host.architecture()
    }

    fn open_events(&self) -> Result<Box<dyn EventDevice>, (PathBuf, io::Error)> {
        match MockEvents::open(&self.host) {
            Ok(events) => Ok(Box::new(events)),
            Err(e) => Err(("(the mock's device of event channels)".into(), e)),
        }
    }

    fn domain_names(&self, domids: &[Domid]) -> Vec<Option<String>> {
        let state = self.host.lock();
        domids.iter().map(|domid| state.domains.get(&domid.get())?.name.clone()).collect()
    }
}

impl MockDevice {
    /// Does what the kernel does with the mappings in a range before it maps something else there.
    ///
    /// # Safety
    ///
    /// The range is the caller's own, and nothing uses it.
    unsafe fn make_room(&self, state: &mut State, addr: NonNull<u8>, len: usize) -> io::Result<()> {
        let start = addr.as_ptr().addr();
        let end = start.checked_add(len).ok_or_else(|| errno(libc::ENOMEM))?;
        let split = [start, end - 1].into_iter().any(|at| {
            state.vma_at(at).is_some_and(|(first, vma)| first < start || first + vma.ptes.len() * FRAME_SIZE > end)
        });
        if split && !self.host.config.allows_splits {
            return Err(errno(if self.host.config.kernel < (6, 12) { libc::ENOMEM } else { libc::EINVAL }));
        }
        let Some(error) = strike_mmap(state) else { return Ok(()) };
        self.host.forget(state, start, end);
        // The kernel removes the old mapping before it can fail, and then any thread may get these addresses. The mock
        // acts as if one did.
        // SAFETY: the caller's promise.
        unsafe { self.host.junk.map_at(Place::over(addr), 0, len, Protection::ReadOnly) }?;
        state.taken_ranges.push((start, len));
        Err(error)
    }

    fn check_access(&self, protection: Protection) -> io::Result<()> {
        if self.access == Protection::ReadOnly && protection == Protection::ReadWrite {
            return Err(errno(libc::EACCES));
        }
        Ok(())
    }

    fn restrict(&self, domid: u16) -> io::Result<u64> {
        if self.host.config.kernel < (4, 11) {
            return Err(errno(libc::EINVAL));
        }
        let (unrestricted, domid) = (u32::from(DOMID_INVALID), u32::from(domid));
        match self.restricted.compare_exchange(unrestricted, domid, Ordering::SeqCst, Ordering::SeqCst) {
            Err(before) if before != domid => Err(errno(libc::EINVAL)),
            _ => Ok(0),
        }
    }

    /// Checks that the file is not restricted to another domain. `None` stands for calls that a restricted file may not
    /// make at all.
    pub(super) fn check_restricted(&self, domid: Option<u16>) -> io::Result<()> {
        let restricted = self.restricted.load(Ordering::SeqCst);
        if restricted == u32::from(DOMID_INVALID) || domid.map(u32::from) == Some(restricted) {
            return Ok(());
        }
        Err(errno(libc::EPERM))
    }

    /// Answers the batch call, with the checks in the order of Linux's `privcmd_ioctl_mmap_batch`.
    ///
    /// # Safety
    ///
    /// `arr` has `num` frame numbers that can be read and `err` as many integers that can be written, unless they are
    /// null. The range is the caller's own, and nothing uses it.
    unsafe fn map_batch(&self, batch: &mut abi::MmapBatchV2) -> io::Result<u64> {
        let num = batch.num as usize;
        if batch.err.is_null() {
            return Err(errno(libc::EFAULT));
        }
        self.check_restricted(Some(batch.dom))?;
        if num == 0 {
            return Err(errno(libc::EINVAL));
        }
        if batch.arr.is_null() {
            return Err(errno(libc::EFAULT));
        }
        // SAFETY: the caller's promise.
        let gfns = unsafe { std::slice::from_raw_parts(batch.arr, num) };
        // SAFETY: the caller's promise.
        let errors = unsafe { std::slice::from_raw_parts_mut(batch.err, num) };
        errors.fill(0);
        let state = &mut self.host.lock();
        let addr = usize::try_from(batch.addr).map_err(io::Error::other)?;
        let (start, first) = self.check_range(state, addr, num)?;
        if let Some(number) = state.faults.strike(|f| if let Fault::MapBatch(e) = f { Some(e) } else { None }) {
            return Err(errno(number));
        }
        self.host.check_memory(state, start)?;
        let Some(mut vma) = state.vmas.remove(&start) else { return Err(errno(libc::EINVAL)) };
        let mut ptes = self.host.look_up(state, batch.dom, vma.protection, gfns, errors);
        self.host.strike_page_table(state, addr, gfns, errors, &mut ptes);
        self.host.pad_last_page(&mut ptes);
        let here = first..first + ptes.len();
        let before = vma.ptes[here.clone()].to_vec();
        vma.ptes[here.clone()].copy_from_slice(&ptes);
        // SAFETY: `check_range` found a device mapping there, which the caller owns and does not use.
        let mapped = unsafe { self.host.show(start, &vma, here.start, here.len()) };
        if let Err(e) = mapped {
            vma.ptes[here.clone()].copy_from_slice(&before);
            // SAFETY: as above.
            unsafe { self.host.show_unpopulated(start, &vma, here.start, here.len()) }?;
            state.vmas.insert(start, vma);
            return Err(e);
        }
        vma.populated = true;
        state.vmas.insert(start, vma);
        self.host.account_map(state, errors);
        if let Some(number) = state.faults.strike(|f| if let Fault::MapBatchLate(e) = f { Some(e) } else { None }) {
            return Err(errno(number));
        }
        if self.host.reports_paged_out(errors) { Err(errno(libc::ENOENT)) } else { Ok(0) }
    }

    /// Checks that a range can be populated. Returns where its mapping starts, and the index of the range's first page.
    fn check_range(&self, state: &mut State, addr: usize, num: usize) -> io::Result<(usize, usize)> {
        let invalid = || errno(libc::EINVAL);
        let (start, vma) = state.vma_at(addr).ok_or_else(invalid)?;
        let first = (addr - start) / FRAME_SIZE;
        let whole = first == 0 && self.host.in_whole_pages(num) == vma.ptes.len();
        if !vma.populated {
            return if whole { Ok((start, first)) } else { Err(invalid()) };
        }
        // In an auto-translated domain failed frames count as populated; old kernels populate a mapping only once.
        let single_shot = self.host.config.dom0 != Dom0::Pv || self.host.config.kernel < (3, 12);
        let range = vma.ptes.get(first..first + num).ok_or_else(invalid)?;
        if single_shot || range.iter().any(|&pte| pte != Pte::None) {
            return Err(invalid());
        }
        Ok((start, first))
    }
}

fn strike_mmap(state: &mut State) -> Option<io::Error> {
    state.faults.strike(|fault| if let Fault::Mmap(number) = fault { Some(errno(number)) } else { None })
}

fn unpopulated(len: usize, protection: Protection) -> Vma {
    Vma { protection, populated: false, ptes: vec![Pte::None; len / FRAME_SIZE] }
}

impl Unmap for Host {
    /// Unmaps. For a part of a mapping, it does what the kernel does.
    unsafe fn munmap(&self, addr: NonNull<u8>, len: usize) -> io::Result<()> {
        let state = &mut self.lock();
        let start = addr.as_ptr().addr();
        if state.buffers.remove(&start).is_some() {
            // SAFETY: the caller's promise.
            return unsafe { unmap(addr, len) };
        }
        if let Some(number) = state.faults.strike(|f| if let Fault::Munmap(e) = f { Some(e) } else { None }) {
            return Err(errno(number));
        }
        let Some((first, vma)) = state.vma_at(start) else {
            // SAFETY: the caller's promise.
            return unsafe { unmap(addr, len) };
        };
        if first != start || vma.ptes.len() * FRAME_SIZE != len {
            if !self.config.allows_splits {
                return Err(errno(libc::EINVAL));
            }
            assert_eq!(
                self.config.dom0,
                Dom0::Pv,
                "a part of a mapping was unmapped: this kernel frees its frames twice"
            );
        }
        if state.faults.strike(|fault| (fault == Fault::Leak).then_some(())).is_some() {
            self.leak(state, start)?;
        }
        self.forget(state, start, start + len);
        // SAFETY: the caller's promise.
        unsafe { unmap(addr, len) }
    }
}

impl Host {
    /// Rounds a number of frames up to whole pages of the kernel.
    fn in_whole_pages(&self, frames: usize) -> usize {
        frames.next_multiple_of(self.config.page_size / FRAME_SIZE)
    }

    /// If a page-table fault is due, unmaps the frames for which the kernel has no page table.
    fn strike_page_table(&self, state: &mut State, addr: usize, gfns: &[u64], errors: &mut [i32], ptes: &mut [Pte]) {
        let index = state.faults.strike(|f| if let Fault::PageTable { index } = f { Some(index) } else { None });
        let Some(index) = index else { return };
        let page_size = self.config.page_size;
        let at_once = if self.config.dom0 == Dom0::Pv { 16 } else { 1 };
        let lost = without_page_table(index, gfns.len(), addr, page_size, at_once);
        ptes[lost.clone()].fill(Pte::None);
        let block = lost.start - lost.start % (page_size / 8)..lost.end;
        leave_frame_numbers(&gfns[block.clone()], &mut errors[block.clone()], lost.start - block.start);
    }

    /// Adds the memory that follows the last frame in its page.
    pub(super) fn pad_last_page(&self, ptes: &mut Vec<Pte>) {
        let frames = ptes.len();
        ptes.extend((frames..self.in_whole_pages(frames)).map(|index| Pte::Fatal(fatal::page_past_end(index))));
    }

    /// Checks that dom0 has enough memory left to populate a mapping.
    pub(super) fn check_memory(&self, state: &mut State, start: usize) -> io::Result<()> {
        let Some(limit) = self.config.dom0_free_frames.filter(|_| self.config.dom0 != Dom0::Pv) else { return Ok(()) };
        let is_enough = |state: &State| {
            let taken = state.vmas.iter().filter(|&(&addr, vma)| addr == start || vma.populated);
            taken.map(|(_, vma)| vma.ptes.len()).sum::<usize>() <= limit
        };
        if !is_enough(state) {
            // Until references are counted, the state still has mappings that other code unmapped.
            self.reclaim(state);
        }
        if is_enough(state) { Ok(()) } else { Err(errno(libc::ENOMEM)) }
    }

    /// Looks up each frame of a batch, and writes its error, or 0, to `errors`.
    fn look_up(
        &self,
        state: &mut State,
        domid: u16,
        protection: Protection,
        gfns: &[u64],
        errors: &mut [i32],
    ) -> Vec<Pte> {
        let dying = state.domains.get(&domid).is_some_and(|domain| domain.dying);
        let counted = dying.then(|| self.reclaim(state));
        let referenced = |page| counted.as_ref().is_some_and(|references| references.of(page) != 0);
        let faults = state.faults.strike_frames();
        let writes = self.config.dom0 == Dom0::Pv && protection == Protection::ReadWrite;
        let failed = |gfn| match self.config.dom0 {
            // Before Linux 4.4 it was a hole, as in a PV dom0.
            Dom0::Pvh if self.config.kernel >= (4, 4) => Pte::Junk,
            Dom0::Arm => Pte::Fatal(fatal::page_of(gfn)),
            _ => Pte::None,
        };
        let mut ptes = Vec::with_capacity(gfns.len());
        for (index, (&gfn, error)) in gfns.iter().zip(errors).enumerate() {
            self.touch(state, domid, gfn, writes);
            let frames = state.domains.get(&domid).map(|domain| &domain.frames);
            if self.config.dom0 == Dom0::Pv && matches!(frames.and_then(|f| f.get(&gfn)), Some(Frame::PagedOut(_, 0))) {
                self.page_in(state, domid, gfn);
            }
            let injected = faults.iter().find(|(at, _)| *at == index);
            let found = match injected {
                Some(&(_, error)) => Err(error),
                None => state.frame(self.config.dom0, domid, gfn, protection, referenced).map_err(|errno| -errno),
            };
            *error = found.err().unwrap_or(0);
            ptes.push(found.unwrap_or_else(|_| failed(gfn)));
        }
        ptes
    }

    pub(super) fn account_map(&self, state: &mut State, errors: &[i32]) {
        let failed: Vec<bool> = errors.iter().map(|&error| error != 0).collect();
        match self.config.dom0 {
            Dom0::Pv => state.hypercalls.map_pv(&failed),
            Dom0::Pvh | Dom0::Arm => {
                state.hypercalls.translate(self.in_whole_pages(failed.len()) / (self.config.page_size / FRAME_SIZE));
            }
        }
    }

    /// Returns whether the batch call as a whole fails with ENOENT.
    fn reports_paged_out(&self, errors: &[i32]) -> bool {
        let paged_out = |error: &i32| *error == -libc::ENOENT;
        if self.config.kernel < (4, 1) {
            return errors.iter().any(paged_out);
        }
        // The status of a block is that of its last hypercall.
        self.config.dom0 == Dom0::Pv && errors.chunks(BLOCK).any(|block| block.last().is_some_and(paged_out))
    }

    /// Removes a range from the state, but keeps the parts of mappings outside of it.
    pub(super) fn forget(&self, state: &mut State, start: usize, end: usize) {
        let hit: Vec<usize> = state.vmas.range(..end).map(|(&start, _)| start).collect();
        for first in hit.into_iter().rev() {
            let Some(vma) = state.vmas.remove(&first) else { continue };
            let last = first + vma.ptes.len() * FRAME_SIZE;
            if last <= start {
                state.vmas.insert(first, vma);
                break;
            }
            let part = |from: usize, to: usize| Vma {
                protection: vma.protection,
                populated: vma.populated,
                ptes: vma.ptes[(from - first) / FRAME_SIZE..(to - first) / FRAME_SIZE].to_vec(),
            };
            if first < start {
                state.vmas.insert(first, part(first, start));
            }
            if end < last {
                state.vmas.insert(end, part(end, last));
            }
            self.account_unmap(state, &part(first.max(start), last.min(end)));
        }
    }
}
