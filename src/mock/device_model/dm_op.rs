//! How the simulated hypervisor answers device model operations.

#![expect(unsafe_code, reason = "reads and writes the buffers of operations")]

use super::interrupts::Wire;
use crate::abi;
use crate::mock::fault::Fault;
use crate::mock::machine::Host;
use crate::mock::state::{DOM0, Domain, State};
use crate::types::{Architecture, GuestKind};

/// Linux's limits of a call: `dm_op_max_nr_bufs` and `dm_op_buf_max_size`.
const MAX_BUFFERS: usize = 16;
const MAX_BUFFER_SIZE: usize = 4096;

/// The delivery modes of a message that Xen has.
const FIXED: u32 = 0;
const LOWEST_PRIORITY: u32 = 1;
/// The bits of a message's address that hold the number of a pirq, if it has no vector.
const PIRQ: u64 = 0xFFFF_FF00_000F_F000;

/// Bytes before the structure of an operation: its number, and padding.
const HEADER: usize = 8;

/// The first buffer, as Xen copies it in.
struct Argument([u8; MAX_BUFFER_SIZE]);

impl Argument {
    fn u8(&self, at: usize) -> u8 {
        self.0[HEADER + at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.u8(at), self.u8(at + 1)])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[HEADER + at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn is_zero(&self, bytes: std::ops::Range<usize>) -> Result<(), i32> {
        if bytes.into_iter().all(|at| self.u8(at) == 0) { Ok(()) } else { Err(libc::EINVAL) }
    }
}

impl Host {
    /// Answers a device model operation.
    ///
    /// # Safety
    ///
    /// `ubufs` has `num` buffers that can be read, and the first one can be written.
    pub(in crate::mock) unsafe fn dm_op(&self, state: &mut State, call: &abi::DmOp) -> Result<(), i32> {
        if self.config.kernel < (4, 11) {
            return Err(libc::EINVAL);
        }
        if !self.is_in_creator() {
            return Err(libc::ENODEV);
        }
        if call.num == 0 {
            return Ok(());
        }
        if usize::from(call.num) > MAX_BUFFERS {
            return Err(libc::E2BIG);
        }
        // SAFETY: the caller's promise.
        let buffers = unsafe { std::slice::from_raw_parts(call.ubufs, call.num.into()) };
        if buffers.len() > 2 || buffers.iter().any(|buffer| buffer.size > MAX_BUFFER_SIZE) {
            return Err(libc::E2BIG);
        }
        let mut argument = Argument([0; MAX_BUFFER_SIZE]);
        let first = buffers[0];
        // SAFETY: the caller's promise; the local array is as large as the largest buffer.
        unsafe { std::ptr::copy_nonoverlapping(first.uptr.cast::<u8>(), argument.0.as_mut_ptr(), first.size) };
        let list = buffers.get(1).map(|second| {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts(second.uptr.cast::<u8>(), second.size) }.to_vec()
        });
        state.hypercalls.dm_op += 1;
        // Xen has device models on Arm only if it is built with CONFIG_IOREQ_SERVER.
        if self.architecture() == Architecture::Arm64 {
            return Err(libc::ENOSYS);
        }
        if call.dom == DOM0 {
            return Err(libc::EPERM);
        }
        self.forget_if_gone(state, call.dom);
        let domain = state.domains.get(&call.dom).filter(|_| call.dom < abi::FIRST_RESERVED_DOMID);
        let domain = domain.ok_or(libc::ESRCH)?;
        if domain.kind == GuestKind::Pv {
            return Err(libc::EINVAL);
        }
        if let Some(number) = state.faults.strike(|f| if let Fault::DmOp(e) = f { Some(e) } else { None }) {
            return Err(number);
        }
        if first.size < HEADER {
            return Err(libc::EFAULT);
        }
        let op = u32::from_ne_bytes([argument.0[0], argument.0[1], argument.0[2], argument.0[3]]);
        let size = size_of_op(op).ok_or(libc::EOPNOTSUPP)?;
        if first.size < HEADER + size {
            return Err(libc::EFAULT);
        }
        if argument.0[4..HEADER] != [0; 4] {
            return Err(libc::EINVAL);
        }
        self.answer_dm_op(state, call.dom, op, &mut argument, list.as_deref())?;
        // SAFETY: the caller's promise; the buffer has at least this many bytes.
        let to = unsafe { first.uptr.cast::<u8>().add(HEADER) };
        // SAFETY: as above, and the local array is as large.
        unsafe { std::ptr::copy_nonoverlapping(argument.0[HEADER..].as_ptr(), to, size) };
        Ok(())
    }

    /// Removes a domain that was a zombie when its memory was last counted, and no longer is.
    pub(super) fn forget_if_gone(&self, state: &mut State, domid: u16) {
        if state.domains.get(&domid).is_some_and(|domain| domain.dying) {
            self.reclaim(state);
        }
    }

    fn answer_dm_op(
        &self,
        state: &mut State,
        domid: u16,
        op: u32,
        argument: &mut Argument,
        list: Option<&[u8]>,
    ) -> Result<(), i32> {
        let kind = state.domains.get(&domid).ok_or(libc::ESRCH)?.kind;
        let domain = state.domains.get_mut(&domid).ok_or(libc::ESRCH)?;
        match op {
            abi::XEN_DMOP_CREATE_IOREQ_SERVER => {
                let handling = argument.u8(0);
                argument.is_zero(1..4)?;
                let id = domain.create_server(handling)?;
                argument.set(4, &id.to_ne_bytes());
                Ok(())
            }
            abi::XEN_DMOP_GET_IOREQ_SERVER_INFO => {
                let flags = u32::from(argument.u16(2));
                if flags & !abi::XEN_DMOP_NO_GFNS != 0 {
                    return Err(libc::EINVAL);
                }
                let server = domain.server(argument.u16(0))?;
                if flags & abi::XEN_DMOP_NO_GFNS == 0 {
                    // The guest has no frames for it.
                    return Err(if server.page.is_some() { libc::EPERM } else { libc::ENOMEM });
                }
                if server.has_buffer() {
                    let port = server.buffer_port;
                    argument.set(4, &port.to_ne_bytes());
                }
                Ok(())
            }
            abi::XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER => {
                argument.is_zero(2..4)?;
                let ends = (argument.u64(8), argument.u64(16));
                domain.server(argument.u16(0))?.ranges(argument.u32(4), ends)?.add(ends.0, ends.1)
            }
            abi::XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER => {
                argument.is_zero(2..4)?;
                let ends = (argument.u64(8), argument.u64(16));
                domain.server(argument.u16(0))?.ranges(argument.u32(4), ends)?.remove(ends.0, ends.1)
            }
            abi::XEN_DMOP_SET_IOREQ_SERVER_STATE => {
                argument.is_zero(3..4)?;
                let server = domain.server(argument.u16(0))?;
                self.enable_server(server, argument.u8(2) != 0);
                Ok(())
            }
            abi::XEN_DMOP_DESTROY_IOREQ_SERVER => {
                argument.is_zero(2..4)?;
                state.destroy_server(domid, argument.u16(0))?;
                self.changed.notify_all();
                Ok(())
            }
            abi::XEN_DMOP_SET_PCI_INTX_LEVEL => {
                let (segment, bus, device) = (argument.u16(0), argument.u8(2), argument.u8(3));
                let (pin, level) = (argument.u8(4), argument.u8(5));
                if segment != 0 || bus != 0 || device > 31 || pin > 3 || level > 1 {
                    return Err(libc::EINVAL);
                }
                // Other guests have no interrupt controller with such lines: Xen does nothing.
                if kind == GuestKind::Hvm {
                    domain.device_model.interrupts.set(Wire::Pci { device, pin }, level == 1);
                    self.changed.notify_all();
                }
                Ok(())
            }
            abi::XEN_DMOP_SET_ISA_IRQ_LEVEL => {
                let (irq, level) = (argument.u8(0), argument.u8(1));
                if irq > 15 || level > 1 {
                    return Err(libc::EINVAL);
                }
                assert_eq!(
                    kind,
                    GuestKind::Hvm,
                    "an ISA interrupt was set for a {kind:?} guest, which has no legacy interrupt controller: \
                     Xen does not check that, and uses one that does not exist"
                );
                domain.device_model.interrupts.set(Wire::Isa(irq), level == 1);
                self.changed.notify_all();
                Ok(())
            }
            abi::XEN_DMOP_MODIFIED_MEMORY => domain.mark_modified(argument.u32(0), argument.u32(4), list),
            abi::XEN_DMOP_INJECT_MSI => {
                argument.is_zero(4..8)?;
                let (data, address) = (argument.u32(0), argument.u64(8));
                if data.to_le_bytes()[0] == 0 {
                    // Then the address holds the number of a pirq.
                    if address & PIRQ == 0 {
                        return Err(libc::ERANGE);
                    }
                } else if !matches!(data >> 8 & 7, FIXED | LOWEST_PRIORITY) {
                    return Err(libc::EINVAL);
                }
                domain.device_model.interrupts.messages.push_back((address, data));
                self.changed.notify_all();
                Ok(())
            }
            abi::XEN_DMOP_NR_VCPUS => {
                let vcpus = domain.vcpu_count();
                argument.set(0, &vcpus.to_ne_bytes());
                Ok(())
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }
}

/// Returns the size of an operation's structure.
fn size_of_op(op: u32) -> Option<usize> {
    Some(match op {
        abi::XEN_DMOP_CREATE_IOREQ_SERVER => size_of::<abi::CreateIoreqServer>(),
        abi::XEN_DMOP_GET_IOREQ_SERVER_INFO => size_of::<abi::IoreqServerInfo>(),
        abi::XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER | abi::XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER => {
            size_of::<abi::IoreqServerRange>()
        }
        abi::XEN_DMOP_SET_IOREQ_SERVER_STATE => size_of::<abi::IoreqServerState>(),
        abi::XEN_DMOP_DESTROY_IOREQ_SERVER => size_of::<abi::DestroyIoreqServer>(),
        abi::XEN_DMOP_SET_PCI_INTX_LEVEL => size_of::<abi::PciIntxLevel>(),
        abi::XEN_DMOP_SET_ISA_IRQ_LEVEL => size_of::<abi::IsaIrqLevel>(),
        abi::XEN_DMOP_MODIFIED_MEMORY => size_of::<abi::ModifiedMemory>(),
        abi::XEN_DMOP_INJECT_MSI => size_of::<abi::InjectMsi>(),
        abi::XEN_DMOP_NR_VCPUS => size_of::<abi::NrVcpus>(),
        _ => return None,
    })
}

impl Domain {
    /// Records that frames were modified, if Xen logs that.
    fn mark_modified(&mut self, count: u32, opaque: u32, list: Option<&[u8]>) -> Result<(), i32> {
        let list = list.ok_or(libc::EINVAL)?;
        let highest = self.highest;
        let Some(dirty) = &mut self.device_model.dirty else { return Ok(()) };
        if opaque != 0 {
            return Err(libc::EINVAL);
        }
        let extents = list.as_chunks::<16>().0.get(..count as usize).ok_or(libc::EINVAL)?;
        // Xen starts with the last one.
        for extent in extents.iter().rev() {
            let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| extent[at + i]));
            let (nr, first) = (number(0) & u64::from(u32::MAX), number(8));
            let end = first.checked_add(nr).filter(|&end| nr != 0 && end - 1 <= highest).ok_or(libc::EINVAL)?;
            dirty.extend((first..end).filter(|gfn| self.frames.contains_key(gfn)));
        }
        Ok(())
    }
}
