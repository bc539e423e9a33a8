//! A small toolstack for a real Xen 4.17: creates, changes and destroys domains, without xenstore.
//!
//! Numbers and layouts come from xen/include/public/{domctl,memory,xen}.h of that release. They are the same on x86 and
//! Arm, except for architecture-specific fields.

use std::cell::RefCell;

use xenmap::{Domid, ForeignMemory, Gfn, GuestKind};

use super::bytes::Bytes;

const MEMORY_OP: u64 = 12;
const MMUEXT_OP: u64 = 26;
const DOMCTL: u64 = 36;

const DOMCTL_INTERFACE_VERSION: u32 = 0x15;
const DOMCTL_CREATEDOMAIN: u32 = 1;
const DOMCTL_DESTROYDOMAIN: u32 = 2;
const DOMCTL_PAUSEDOMAIN: u32 = 3;
const DOMCTL_UNPAUSEDOMAIN: u32 = 4;
const DOMCTL_SHADOW_OP: u32 = 10;
const DOMCTL_MAX_MEM: u32 = 11;
const DOMCTL_MAX_VCPUS: u32 = 15;
const DOMCTL_SETHVMCONTEXT: u32 = 34;
const DOMCTL_SET_PAGING_MEMPOOL_SIZE: u32 = 86;

const SHADOW_OP_ENABLE_LOGDIRTY: u32 = 2;
const SHADOW_OP_CLEAN: u32 = 11;

const XENMEM_DECREASE_RESERVATION: u64 = 1;
const XENMEM_MACHPHYS_MFN_LIST: u64 = 5;
const XENMEM_POPULATE_PHYSMAP: u64 = 6;
const XENMEM_SET_POD_TARGET: u64 = 16;
const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;

/// Bits of a page-table entry.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 0x80;

const MMUEXT_PIN_L1_TABLE: u32 = 0;
const MMUEXT_UNPIN_TABLE: u32 = 4;

pub struct Toolstack {
    memory: ForeignMemory,
}

pub struct Domain {
    memory: ForeignMemory,
    domid: Domid,
    gfns: RefCell<Vec<Gfn>>,
}

impl Toolstack {
    pub fn new() -> Toolstack {
        Toolstack { memory: ForeignMemory::open().unwrap() }
    }

    /// Creates a domain with `frames` frames, whose vcpu never runs.
    pub fn create_domain(&self, kind: GuestKind, frames: usize) -> Domain {
        self.create_with_vcpus(kind, frames, 0)
    }

    fn create_with_vcpus(&self, kind: GuestKind, frames: usize, vcpus: u32) -> Domain {
        // CDF_hvm | CDF_hap, and the emulated devices. A PVH guest has only a local APIC. On Arm the field selects the
        // interrupt controller, and 0 means the machine's own kind.
        let (flags, emulation) = match kind {
            GuestKind::Pv => (0, 0),
            _ if cfg!(target_arch = "aarch64") => (3, 0),
            GuestKind::Pvh => (3, 1),
            _ => (3, 0x3FF),
        };
        let mut arguments = Bytes::default().u32(0); // ssidref
        arguments.0.extend(super::HANDLE);
        let arguments = arguments
            .u32(flags)
            .u32(0) // iommu_opts
            .u32(vcpus.max(1)) // max_vcpus
            .u32(64) // max_evtchn_port
            .u32(4) // max_grant_frames
            .u32(0) // max_maptrack_frames
            .u32(1) // grant table version
            .u32(0) // vmtrace_size
            .u32(0) // cpupool
            .u32(emulation)
            .u32(0);
        let domid = domctl(&self.memory, DOMCTL_CREATEDOMAIN, 0, arguments).unwrap();
        let domid = Domid::new(domid).unwrap();
        if kind != GuestKind::Pv {
            // Memory for its page tables. Without vcpus, a domain gets it in no other way.
            let bytes = Bytes::default().u64(8 << 20);
            domctl(&self.memory, DOMCTL_SET_PAGING_MEMPOOL_SIZE, domid.get(), bytes).unwrap();
        }
        if vcpus != 0 {
            domctl(&self.memory, DOMCTL_MAX_VCPUS, domid.get(), Bytes::default().u32(vcpus)).unwrap();
        }
        let kib = Bytes::default().u64((frames as u64 + 64) * 4);
        domctl(&self.memory, DOMCTL_MAX_MEM, domid.get(), kib).unwrap();
        let domain = Domain { memory: ForeignMemory::open().unwrap(), domid, gfns: RefCell::default() };
        let pfns: Vec<u64> = (0..frames as u64).collect();
        // For a PV guest, Xen returns the machine frames.
        let gfns = domain.reservation(XENMEM_POPULATE_PHYSMAP, 0, &pfns);
        domain.gfns.borrow_mut().extend(gfns.into_iter().map(|gfn| Gfn::new(gfn).unwrap()));
        domain
    }

    /// Creates a guest that is not PV, with a vcpu for each program, which runs it as 64-bit code once the guest is
    /// [unpaused](Domain::unpause). The page tables map the first 4 GiB to themselves.
    pub fn create_running(&self, kind: GuestKind, frames: usize, programs: &[Vec<u8>]) -> Domain {
        let domain = self.create_with_vcpus(kind, frames, u32::try_from(programs.len()).unwrap());
        let frame = |number: u64, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            domain.write(number, &bytes);
        };
        frame(1, &[0x2000 | PRESENT_WRITABLE]);
        frame(2, &[3, 4, 5, 6].map(|table| table << 12 | PRESENT_WRITABLE));
        for gib in 0..4 {
            let entries: Vec<u64> =
                (0..512).map(|entry| (gib * 512 + entry) << 21 | PRESENT_WRITABLE | LARGE).collect();
            frame(3 + gib, &entries);
        }
        // 16 KiB for each program.
        let entries: Vec<u64> = (0..programs.len() as u64).map(|vcpu| (16 + 4 * vcpu) << 12).collect();
        for (entry, program) in entries.iter().zip(programs) {
            for (gfn, part) in (entry >> 12..).zip(program.chunks(super::FRAME)) {
                domain.write(gfn, part);
            }
        }
        domain.set_registers(&entries);
        domain
    }

    pub fn machine_to_phys_frames(&self) -> Vec<Gfn> {
        let extents = self.memory.hypercall_buffer(8).unwrap();
        // struct xen_machphys_mfn_list: max_extents, extent_start, nr_extents.
        let mut argument = self.memory.hypercall_buffer(24).unwrap();
        argument.bytes_mut()[..4].copy_from_slice(&1_u32.to_ne_bytes());
        argument.bytes_mut()[8..16].copy_from_slice(&extents.address().to_ne_bytes());
        let arg = [XENMEM_MACHPHYS_MFN_LIST, argument.address(), 0, 0, 0];
        // SAFETY: Xen reads the structure, and writes one frame number to `extents`; both live until after the call.
        unsafe { self.memory.hypercall("XENMEM_machphys_mfn_list", MEMORY_OP, arg) }.unwrap();
        let first = u64::from_ne_bytes(extents.bytes().try_into().unwrap());
        (first..first + 4).map(|mfn| Gfn::new(mfn).unwrap()).collect()
    }
}

impl Domain {
    pub fn domid(&self) -> Domid {
        self.domid
    }

    pub fn gfns(&self) -> Vec<Gfn> {
        self.gfns.borrow().clone()
    }

    pub fn balloon_out(&self, gfn: Gfn) {
        self.reservation(XENMEM_DECREASE_RESERVATION, 0, &[gfn.get()]);
        self.gfns.borrow_mut().retain(|&other| other != gfn);
    }

    pub fn populate(&self, gfn: Gfn) {
        self.reservation(XENMEM_POPULATE_PHYSMAP, 0, &[gfn.get()]);
        self.gfns.borrow_mut().push(gfn);
        self.gfns.borrow_mut().sort();
    }

    pub fn populate_on_demand(&self, gfns: &[Gfn], pool: usize) {
        let gfns: Vec<u64> = gfns.iter().map(|gfn| gfn.get()).collect();
        self.reservation(XENMEM_POPULATE_PHYSMAP, XENMEMF_POPULATE_ON_DEMAND, &gfns);
        let target = self.memory.current_reservation(self.domid).unwrap() + pool as u64;
        // struct xen_pod_target: target_pages, three numbers that Xen writes, domid.
        let fields = Bytes::default().u64(target).up_to(32).u16(self.domid.get()).up_to(40);
        let mut argument = self.memory.hypercall_buffer(fields.0.len()).unwrap();
        argument.bytes_mut().copy_from_slice(&fields.0);
        let arg = [XENMEM_SET_POD_TARGET, argument.address(), 0, 0, 0];
        // SAFETY: Xen reads and writes one structure, `argument`, which lives until after the call.
        unsafe { self.memory.hypercall("XENMEM_set_pod_target", MEMORY_OP, arg) }.unwrap();
    }

    pub fn pin_page_table(&self, gfn: Gfn) -> std::io::Result<()> {
        self.mmuext(MMUEXT_PIN_L1_TABLE, gfn)
    }

    pub fn unpin_page_table(&self, gfn: Gfn) {
        self.mmuext(MMUEXT_UNPIN_TABLE, gfn).unwrap();
    }

    fn write(&self, gfn: u64, bytes: &[u8]) {
        let gfns = [Gfn::new(gfn).unwrap()];
        let frame = self.memory.map_foreign_batch(self.domid, xenmap::Protection::ReadWrite, &gfns).unwrap();
        xenmap::Access::write_bytes(&frame.view(), 0, bytes).unwrap();
    }

    /// Sets the registers of all vcpus to run 64-bit code from an entry each, and brings them up. (Xen takes down those
    /// that are not in the context.)
    fn set_registers(&self, entries: &[u64]) {
        // Records of a saved context, each with type, instance and length: header, vcpus, end.
        let mut context = Bytes::default().u16(1).u16(0).u32(24).u32(0x5438_1286).u32(1).up_to(32);
        for (vcpu, &rip) in (0..).zip(entries) {
            context = context.u16(2).u16(vcpu).u32(1032);
            context.0.extend(registers(rip).0);
        }
        let context = context.u16(0).u16(0).u32(0);
        let mut buffer = self.memory.hypercall_buffer(context.0.len()).unwrap();
        buffer.bytes_mut().copy_from_slice(&context.0);
        // struct xen_domctl_hvmcontext: size, buffer.
        let arguments = Bytes::default().u32(u32::try_from(context.0.len()).unwrap()).u32(0).u64(buffer.address());
        // SAFETY: `buffer` has as many bytes as the structure says, and lives until after the call.
        unsafe { domctl_with_addresses(&self.memory, DOMCTL_SETHVMCONTEXT, self.domid.get(), arguments) }.unwrap();
    }

    /// Makes Xen log which frames are modified.
    pub fn log_dirty(&self) {
        let arguments = Bytes::default().u32(SHADOW_OP_ENABLE_LOGDIRTY);
        // SAFETY: this operation does not use the structure's address, which is 0.
        unsafe { domctl_with_addresses(&self.memory, DOMCTL_SHADOW_OP, self.domid.get(), arguments) }.unwrap();
    }

    /// Returns the frames, of the first 1024, that were modified since the last call.
    pub fn take_dirty(&self) -> Vec<Gfn> {
        const FRAMES: usize = 1024;
        let bitmap = self.memory.hypercall_buffer(FRAMES / 8).unwrap();
        // struct xen_domctl_shadow_op: op, mode, mb, dirty_bitmap, pages, statistics.
        let arguments = Bytes::default().u32(SHADOW_OP_CLEAN).up_to(16).u64(bitmap.address()).u64(FRAMES as u64);
        // SAFETY: `bitmap` has as many bits as the structure has pages, and lives until after the call.
        unsafe { domctl_with_addresses(&self.memory, DOMCTL_SHADOW_OP, self.domid.get(), arguments) }.unwrap();
        let is_dirty = |&frame: &usize| bitmap.bytes()[frame / 8] >> (frame % 8) & 1 == 1;
        (0..FRAMES).filter(is_dirty).map(|frame| Gfn::new(frame as u64).unwrap()).collect()
    }

    /// Pauses it once more; a new domain is paused once.
    pub fn pause(&self) {
        domctl(&self.memory, DOMCTL_PAUSEDOMAIN, self.domid.get(), Bytes::default()).unwrap();
    }

    pub fn unpause(&self) {
        domctl(&self.memory, DOMCTL_UNPAUSEDOMAIN, self.domid.get(), Bytes::default()).unwrap();
    }

    pub fn destroy(&self) {
        // Xen works in pieces, and returns EAGAIN or ERESTART in between.
        loop {
            match domctl(&self.memory, DOMCTL_DESTROYDOMAIN, self.domid.get(), Bytes::default()) {
                Ok(_) => return,
                Err(libc::EAGAIN | libc::ERESTART | libc::EINTR) => {}
                Err(errno) => panic!("destroying domain {}: {}", self.domid, std::io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Makes a memory operation on frames, and returns the frame numbers as Xen leaves them.
    fn reservation(&self, command: u64, flags: u32, gfns: &[u64]) -> Vec<u64> {
        let mut extents = self.memory.hypercall_buffer(gfns.len() * 8).unwrap();
        for (bytes, gfn) in extents.bytes_mut().chunks_exact_mut(8).zip(gfns) {
            bytes.copy_from_slice(&gfn.to_ne_bytes());
        }
        // struct xen_memory_reservation: extent_start, nr_extents, extent_order, mem_flags, domid.
        let fields = Bytes::default().u64(extents.address()).u64(gfns.len() as u64).u32(0).u32(flags);
        let fields = fields.u16(self.domid.get()).up_to(32);
        let mut argument = self.memory.hypercall_buffer(fields.0.len()).unwrap();
        argument.bytes_mut().copy_from_slice(&fields.0);
        let arg = [command, argument.address(), 0, 0, 0];
        // SAFETY: Xen reads the structure, and reads and writes `nr_extents` frame numbers in `extents`, which holds as
        // many; both live until after the call.
        let done = unsafe { self.memory.hypercall("memory_op", MEMORY_OP, arg) }.unwrap();
        assert_eq!(done, gfns.len() as u64, "memory_op {command} handled only a part");
        extents.bytes().chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap())).collect()
    }

    fn mmuext(&self, command: u32, gfn: Gfn) -> std::io::Result<()> {
        // struct mmuext_op: cmd, mfn, and a third word that is not used here.
        let fields = Bytes::default().u32(command).u32(0).u64(gfn.get()).u64(0);
        let mut argument = self.memory.hypercall_buffer(fields.0.len()).unwrap();
        argument.bytes_mut().copy_from_slice(&fields.0);
        let arg = [argument.address(), 1, 0, self.domid.get().into(), 0];
        // SAFETY: Xen reads one structure, `argument`, which lives until after the call.
        let done = unsafe { self.memory.hypercall("mmuext_op", MMUEXT_OP, arg) };
        done.map(|_| ()).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}

/// Returns the registers of a vcpu that runs 64-bit code (`struct hvm_hw_cpu`).
fn registers(rip: u64) -> Bytes {
    // The FPU, 16 general registers, rip, rflags, cr0, cr2, cr3, cr4.
    let mut cpu = Bytes::default().up_to(640).u64(rip).u64(2).u64(0x8000_0011).u64(0).u64(0x1000).u64(0x20);
    // Debug registers, selectors.
    cpu = cpu.up_to(768);
    // Limits: cs, ds, es, fs, gs, ss, tr, ldtr, idtr, gdtr.
    for limit in [u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x67, 0, 0, 0] {
        cpu = cpu.u32(limit);
    }
    cpu = cpu.up_to(888); // bases
    // Attributes, in the same order, without those of idtr and gdtr. The code segment is 64-bit code.
    for attributes in [0xA9B, 0xC93, 0xC93, 0xC93, 0xC93, 0xC93, 0x8B, 0x82] {
        cpu = cpu.u32(attributes);
    }
    cpu.up_to(992).u64(0x500).up_to(1032) // EFER: long mode
}

/// Makes a domctl without addresses, and returns the domid that Xen leaves in the structure, or the errno.
fn domctl(memory: &ForeignMemory, command: u32, domid: u16, arguments: Bytes) -> Result<u16, i32> {
    assert!(!matches!(command, DOMCTL_SETHVMCONTEXT | DOMCTL_SHADOW_OP));
    // SAFETY: the other commands of this file have no addresses in their structures.
    unsafe { domctl_with_addresses(memory, command, domid, arguments) }
}

/// Makes a domctl that may contain addresses.
///
/// # Safety
///
/// Each address in the arguments is that of a hypercall buffer that is alive and has as many bytes as the other
/// arguments say.
unsafe fn domctl_with_addresses(
    memory: &ForeignMemory,
    command: u32,
    domid: u16,
    arguments: Bytes,
) -> Result<u16, i32> {
    let fields = Bytes::default().u32(command).u32(DOMCTL_INTERFACE_VERSION).u16(domid).up_to(16);
    let arguments = arguments.up_to(128);
    let mut buffer = memory.hypercall_buffer(144).unwrap();
    buffer.bytes_mut()[..16].copy_from_slice(&fields.0);
    buffer.bytes_mut()[16..].copy_from_slice(&arguments.0);
    // SAFETY: Xen reads and writes one struct xen_domctl, which fits into `buffer`; what it points to is the caller's
    // promise.
    unsafe { memory.hypercall("domctl", DOMCTL, [buffer.address(), 0, 0, 0, 0]) }.map_err(|e| e.errno())?;
    Ok(u16::from_ne_bytes(buffer.bytes()[8..10].try_into().unwrap()))
}
