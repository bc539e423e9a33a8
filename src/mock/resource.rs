//! How the simulated kernel and hypervisor map resources of a domain.

#![expect(unsafe_code, reason = "maps memory at given places")]

use std::io;

use super::device_model::SERVER_FRAMES;
use super::driver::{MockDevice, errno};
use super::fault::Fault;
use super::state::Pte;
use crate::abi;
use crate::backend::Backend;
use crate::types::{FRAME_SIZE, GuestKind};

impl MockDevice {
    /// Maps frames of a resource, or, without an address, says how many it has.
    ///
    /// # Safety
    ///
    /// The range, if any, is the caller's own, and nothing uses it.
    pub(super) unsafe fn map_resource(&self, request: &mut abi::MmapResource) -> io::Result<u64> {
        let kernel = self.host.config.kernel;
        if kernel < (4, 18) {
            return Err(errno(if kernel < (4, 11) { libc::EINVAL } else { libc::ENOTTY }));
        }
        self.check_restricted(Some(request.dom))?;
        let is_question = request.num == 0 && request.addr == 0;
        if (request.num == 0 || request.addr == 0) && !(is_question && kernel >= (5, 12)) {
            return Err(errno(libc::EINVAL));
        }
        let state = &mut self.host.lock();
        let addr = usize::try_from(request.addr).map_err(io::Error::other)?;
        if !is_question && state.vma_at(addr).is_none() {
            return Err(errno(libc::EINVAL));
        }
        if let Some(number) = state.faults.strike(|f| if let Fault::MapResource(e) = f { Some(e) } else { None }) {
            return Err(errno(number));
        }
        let xen = self.host.config.xen;
        if is_question && xen < (4, 15) {
            // For any resource, even of a domain that does not exist: the length of an array on Xen's stack.
            request.num = if xen < (4, 12) { 2 } else { 32 };
            return Ok(0);
        }
        let domain = state.domains.get(&request.dom).filter(|domain| !domain.dying);
        let domain = domain.ok_or_else(|| errno(libc::ESRCH))?;
        if request.type_ > abi::XENMEM_RESOURCE_VMTRACE_BUF {
            if is_question && xen < (4, 20) {
                // Xen returns the errno as a number of frames.
                request.num = u64::from((-libc::EOPNOTSUPP).cast_unsigned());
                return Ok(0);
            }
            return Err(errno(if xen < (4, 20) { libc::EOPNOTSUPP } else { libc::EINVAL }));
        }
        let name = (request.type_, request.id);
        let is_server = request.type_ == abi::XENMEM_RESOURCE_IOREQ_SERVER
            && domain.kind != GuestKind::Pv
            && !domain.resources.contains_key(&name);
        if is_question {
            // For servers Xen does not look whether they exist.
            let pages = domain.resources.get(&name).map(Vec::len).or(is_server.then_some(SERVER_FRAMES));
            request.num = pages.ok_or_else(|| errno(libc::EINVAL))? as u64;
            return Ok(0);
        }
        let first = request.idx as usize;
        let end = usize::try_from(request.num).ok().and_then(|num| first.checked_add(num));
        let frames = first..end.ok_or_else(|| errno(libc::EINVAL))?;
        let pages = if is_server {
            self.host.server_pages(state, request.dom, request.id, frames).map_err(errno)?
        } else {
            let pages = domain.resources.get(&name).and_then(|pages| pages.get(frames));
            pages.ok_or_else(|| errno(libc::EINVAL))?.to_vec()
        };
        let mut ptes: Vec<Pte> = pages.into_iter().map(Pte::Page).collect();
        assert!(
            self.page_size() == FRAME_SIZE || ptes.len() == 1,
            "a kernel with larger pages treats the frames of a resource as pages, and writes past the mapping"
        );
        self.host.check_memory(state, addr)?;
        let Some(mut vma) = state.vmas.remove(&addr) else { return Err(errno(libc::EINVAL)) };
        let frames = ptes.len();
        self.host.pad_last_page(&mut ptes);
        assert!(
            !vma.populated && vma.ptes.len() == ptes.len(),
            "a resource must fill an unpopulated mapping of its own: on Xen this crashes the kernel"
        );
        vma.ptes = ptes;
        // SAFETY: the state had a device mapping there, which the caller owns and does not use.
        let mapped = unsafe { self.host.show(addr, &vma, 0, vma.ptes.len()) };
        vma.populated = true;
        let none_failed = vec![0; frames];
        state.vmas.insert(addr, vma);
        self.host.account_map(state, &none_failed);
        mapped.map(|()| 0)
    }
}
