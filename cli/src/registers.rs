//! The registers of an x86-64 vcpu, in the forms in which dumps have them.

use xenmap::{PageTables, PagingMode};

/// Bits of the control registers (Intel's manual, volume 3, "Control Registers").
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;

/// Those that are not known are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    /// R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI: the order of Linux and Xen.
    pub(crate) general: [u64; 15],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) selectors: Selectors,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    /// The base that SWAPGS exchanges with `gs_base`.
    pub(crate) other_gs_base: u64,
    pub(crate) gdt_base: u64,
    pub(crate) idt_base: u64,
    /// CR0 to CR4.
    pub(crate) control: [u64; 5],
    /// Whether a PV guest's kernel runs, whose privilege level is that of a program.
    pub(crate) in_pv_kernel: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selectors {
    pub(crate) cs: u64,
    pub(crate) ds: u64,
    pub(crate) es: u64,
    pub(crate) fs: u64,
    pub(crate) gs: u64,
    pub(crate) ss: u64,
}

impl Selectors {
    /// Returns the level that the vcpu runs at: 0 for a kernel, 3 for a program.
    fn privilege_level(self) -> u64 {
        self.cs & 3
    }
}

/// The index of each of [`Registers::general`] in QEMU's order: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15.
const IN_QEMU: [usize; 15] = [15, 14, 13, 12, 7, 1, 11, 10, 9, 8, 0, 2, 3, 4, 5];
const RSP_IN_QEMU: usize = 6;

/// Bits of a segment in QEMU's note: those of its descriptor's second word.
const CODE_64: u64 = 0x00AF_9B00;

impl Registers {
    /// Bytes of a Linux `struct elf_prstatus` of x86-64, and where its registers begin.
    pub(crate) const PRSTATUS: usize = 336;
    const PRSTATUS_REGISTERS: usize = 112;
    /// Bytes of QEMU's `QEMUCPUState` (`target/i386/arch_dump.c`).
    pub(crate) const QEMU: usize = 440;
    const QEMU_VERSION_AND_SIZE: u64 = 1 | (Registers::QEMU as u64) << 32;
    /// Bytes of Xen's `struct vcpu_guest_context` of x86-64 (xen/include/public/arch-x86/xen.h).
    pub(crate) const XEN: usize = 5168;
    const XEN_REGISTERS: usize = 520;
    const XEN_CONTROL: usize = 4984;
    const XEN_BASES: usize = 5144;
    const XEN_FLAGS: usize = 512;
    /// `VGCF_in_kernel`.
    const XEN_IN_KERNEL: u64 = 1 << 2;

    /// Returns the page tables that the vcpu uses; `None` if they are not known or not supported.
    pub(crate) fn page_tables(&self) -> Option<PageTables> {
        let [cr0, _, _, cr3, cr4] = self.control;
        let has_five_levels = cr4 & CR4_LA57 != 0;
        let mode = if has_five_levels { PagingMode::FiveLevels } else { PagingMode::FourLevels };
        (cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0).then_some(PageTables::X86 { cr3, mode })
    }

    /// Returns the page tables that the vcpu of a 64-bit PV guest uses; `None` if they are not known. Xen does not report
    /// all bits of such a vcpu's CR0 and CR4.
    pub(crate) fn page_tables_of_pv(&self) -> Option<PageTables> {
        let cr3 = self.control[3];
        (cr3 != 0).then_some(PageTables::X86 { cr3, mode: PagingMode::FourLevels })
    }

    fn is_in_kernel(&self) -> bool {
        self.in_pv_kernel || self.selectors.privilege_level() == 0
    }

    /// Reads the content of a note `NT_PRSTATUS`.
    pub(crate) fn from_prstatus(status: &[u8]) -> Option<Registers> {
        let words: [u64; 27] = words(status, Registers::PRSTATUS_REGISTERS)?;
        // The word after the general registers is that of a system call.
        let [rip, cs, rflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs] = *words.last_chunk()?;
        let selectors = Selectors { cs, ds, es, fs, gs, ss };
        let general = *words.first_chunk()?;
        Some(Registers { general, rip, rflags, rsp, selectors, fs_base, gs_base, ..Registers::default() })
    }

    /// Returns the content of a note `NT_PRSTATUS`.
    pub(crate) fn to_prstatus(&self, vcpu: u32) -> Vec<u8> {
        /// The offset of the process, by which debuggers tell threads apart.
        const PID: usize = 32;
        let mut status = vec![0; Registers::PRSTATUS];
        status[PID..PID + 4].copy_from_slice(&vcpu.saturating_add(1).to_le_bytes());
        let Selectors { cs, ds, es, fs, gs, ss } = self.selectors;
        let others = [u64::MAX, self.rip, cs, self.rflags, self.rsp, ss, self.fs_base, self.gs_base, ds, es, fs, gs];
        write(&mut status, Registers::PRSTATUS_REGISTERS, self.general.iter().chain(&others));
        status
    }

    /// Reads QEMU's note: version and size, general registers, RIP, RFLAGS, 10 segments of 3 words (selector and limit,
    /// flags, base), control registers, and the other GS base.
    pub(crate) fn from_qemu(state: &[u8]) -> Option<Registers> {
        let words: [u64; Registers::QEMU / 8] = words(state, 0)?;
        let (general, segments): (&[u64; 16], &[u64; 30]) = (words[1..].first_chunk()?, words[19..].first_chunk()?);
        let selector = |segment: usize| segments[3 * segment] & 0xFFFF;
        let base = |segment: usize| segments[3 * segment + 2];
        let [cs, ds, es, fs, gs, ss] = [0, 1, 2, 3, 4, 5].map(selector);
        let is_known = words[0] & u64::from(u32::MAX) == 1;
        is_known.then_some(Registers {
            general: IN_QEMU.map(|index| general[index]),
            rip: words[17],
            rflags: words[18],
            rsp: general[RSP_IN_QEMU],
            selectors: Selectors { cs, ds, es, fs, gs, ss },
            fs_base: base(3),
            gs_base: base(4),
            other_gs_base: words[54],
            gdt_base: base(8),
            idt_base: base(9),
            control: *words[49..].first_chunk()?,
            in_pv_kernel: false,
        })
    }

    /// Returns the content of QEMU's note.
    pub(crate) fn to_qemu(&self) -> Vec<u8> {
        let mut general = [0; 16];
        IN_QEMU.iter().zip(self.general).for_each(|(index, register)| general[*index] = register);
        general[RSP_IN_QEMU] = self.rsp;
        let Selectors { cs, ds, es, fs, gs, ss } = self.selectors;
        let mut words = vec![Registers::QEMU_VERSION_AND_SIZE];
        words.extend(general);
        words.extend([self.rip, self.rflags]);
        for (selector, flags, base) in [
            (cs, CODE_64, 0),
            (ds, 0, 0),
            (es, 0, 0),
            (fs, 0, self.fs_base),
            (gs, 0, self.gs_base),
            (ss, 0, 0),
            (0, 0, 0),
            (0, 0, 0),
            (0, 0, self.gdt_base),
            (0, 0, self.idt_base),
        ] {
            words.extend([selector, flags, base]);
        }
        words.extend(self.control);
        words.push(self.other_gs_base);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Reads Xen's context of a vcpu.
    pub(crate) fn from_xen(context: &[u8]) -> Option<Registers> {
        let words_at_registers: [u64; 25] = words(context, Registers::XEN_REGISTERS)?;
        // The word after the general registers is that of an interrupt.
        let [rip, cs, rflags, rsp, ss, es, ds, fs, gs] = *words_at_registers.last_chunk()?;
        let [fs_base, kernel_gs_base, user_gs_base] = words(context, Registers::XEN_BASES)?;
        let [cs, ds, es, fs, gs, ss] = [cs, ds, es, fs, gs, ss].map(|word| word & 0xFFFF);
        let selectors = Selectors { cs, ds, es, fs, gs, ss };
        let [flags] = words(context, Registers::XEN_FLAGS)?;
        let is_in_ring_0 = selectors.privilege_level() == 0;
        let in_pv_kernel = !is_in_ring_0 && flags & Registers::XEN_IN_KERNEL != 0;
        let [gs_base, other_gs_base] =
            if is_in_ring_0 || in_pv_kernel { [kernel_gs_base, user_gs_base] } else { [user_gs_base, kernel_gs_base] };
        Some(Registers {
            general: *words_at_registers.first_chunk()?,
            rip,
            rflags,
            rsp,
            selectors,
            fs_base,
            gs_base,
            other_gs_base,
            control: words(context, Registers::XEN_CONTROL)?,
            in_pv_kernel,
            ..Registers::default()
        })
    }

    /// Returns Xen's context of a vcpu.
    pub(crate) fn to_xen(&self) -> Vec<u8> {
        let Selectors { cs, ds, es, fs, gs, ss } = self.selectors;
        let bases = if self.is_in_kernel() {
            [self.fs_base, self.gs_base, self.other_gs_base]
        } else {
            [self.fs_base, self.other_gs_base, self.gs_base]
        };
        let others = [0, self.rip, cs, self.rflags, self.rsp, ss, es, ds, fs, gs];
        let mut context = vec![0; Registers::XEN];
        write(&mut context, Registers::XEN_REGISTERS, self.general.iter().chain(&others));
        let flags = if self.in_pv_kernel { Registers::XEN_IN_KERNEL } else { 0 };
        write(&mut context, Registers::XEN_FLAGS, &[flags]);
        write(&mut context, Registers::XEN_CONTROL, &self.control);
        write(&mut context, Registers::XEN_BASES, &bases);
        context
    }
}

/// Returns words of 8 bytes from an offset on; `None` if there are not as many.
fn words<const N: usize>(bytes: &[u8], at: usize) -> Option<[u64; N]> {
    let (words, _) = bytes.get(at..)?.as_chunks::<8>();
    Some(words.first_chunk::<N>()?.map(u64::from_le_bytes))
}

/// Writes words of 8 bytes from an offset on.
fn write<'a>(to: &mut [u8], at: usize, words: impl IntoIterator<Item = &'a u64>) {
    let places = to[at..].as_chunks_mut::<8>().0;
    places.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_le_bytes());
}
