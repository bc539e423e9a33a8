//! The RAM that a command looks at: a guest's, or a dump's.

use std::ops::Range;

use xenmap::{
    Domid, Error, FRAME_SIZE, FrameError, Gfn, Guest, GuestKind, NumberRange, PageTables, PagingMode, Protection,
};

use crate::Result;
use crate::image::{Architecture, Image};
use crate::registers::Registers;
use crate::window::{MappedWindows, Window, windows_of_dump};

pub(crate) enum Ram {
    Guest(Guest),
    Dump(Image),
}

impl Ram {
    /// Returns the guest; `None` if it is a dump.
    pub(crate) fn guest(&self) -> Option<&Guest> {
        match self {
            Ram::Guest(guest) => Some(guest),
            Ram::Dump(_) => None,
        }
    }

    pub(crate) fn domid(&self) -> Option<Domid> {
        self.guest().map(Guest::domid)
    }

    pub(crate) fn is_pv(&self) -> bool {
        match self {
            Ram::Guest(guest) => guest.kind() == GuestKind::Pv,
            Ram::Dump(image) => image.has_machine_frames(),
        }
    }

    /// Returns the architecture that a dump names; otherwise that of this host, which is a guest's and probably a dump's.
    pub(crate) fn architecture(&self) -> Architecture {
        let of_host = if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::X86_64 };
        match self {
            Ram::Guest(_) => of_host,
            Ram::Dump(image) => image.machine.architecture.unwrap_or(of_host),
        }
    }

    /// Returns frames in windows of at most `size`. Zeros or missing frames of a dump are one window, of any size.
    pub(crate) fn windows(&self, pfns: Range<u64>, size: u64) -> Box<dyn Iterator<Item = Result<Window<'_>>> + '_> {
        match self {
            Ram::Guest(guest) => {
                let windows = MappedWindows::new(guest, pfns, size);
                Box::new(windows.map(|window| Ok(window.map(|(pfns, mapping)| Window::mapped(pfns, mapping))?)))
            }
            Ram::Dump(image) => Box::new(windows_of_dump(image, pfns, size).map(Ok)),
        }
    }

    /// Returns some frames without those at the end that certainly cannot be read, and the reason why these cannot.
    pub(crate) fn without_missing_end(&self, pfns: Range<u64>) -> Result<(Range<u64>, String)> {
        let Ram::Guest(guest) = self else { return Ok((pfns, String::new())) };
        // The guest has never had a frame above the highest. So if the first of them is no RAM, none is.
        let highest = guest.memory().maximum_gpfn(guest.domid()).unwrap_or(u64::MAX);
        let end = highest.saturating_add(1).clamp(pfns.start, pfns.end);
        if end == pfns.end {
            return Ok((pfns, String::new()));
        }
        let above = guest.map_partial(Protection::ReadOnly, NumberRange::try_from(end..end + 1)?)?;
        Ok(match above.failed().first() {
            Some(e) if e.errno == libc::EINVAL => (pfns.start..end, e.reason()),
            _ => (pfns, String::new()),
        })
    }

    /// Returns why bytes cannot be read, given the errno of a window's hole.
    pub(crate) fn reason(&self, errno: i32) -> String {
        match self {
            // The library describes an errno as the error of a frame.
            Ram::Guest(_) => FrameError::new(0, Gfn::MAX, errno).reason(),
            Ram::Dump(_) => "not in the dump".to_owned(),
        }
    }

    /// Copies bytes from a physical address on. [`Ram::explain`] an error.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> xenmap::Result<()> {
        match self {
            Ram::Guest(guest) => guest.read(address, to),
            Ram::Dump(image) => image.read(address, to).map_err(not_in_dump),
        }
    }

    /// Copies bytes from a virtual address on. [`Ram::explain`] an error.
    pub(crate) fn read_virtual(&self, tables: &PageTables, address: u64, to: &mut [u8]) -> xenmap::Result<()> {
        match self {
            Ram::Guest(guest) => guest.read_virtual(tables, address, to),
            Ram::Dump(image) => read_virtual_in_dump(image, tables, address, to),
        }
    }

    /// Returns the physical address that a virtual address leads to. [`Ram::explain`] an error.
    pub(crate) fn translate(&self, tables: &PageTables, address: u64) -> xenmap::Result<u64> {
        match self {
            Ram::Guest(guest) => guest.translate(tables, address),
            Ram::Dump(image) => Ok(translate_in_dump(image, tables, address)?.start),
        }
    }

    /// Returns the error to show for one that an access returned.
    pub(crate) fn explain(&self, error: Error) -> Box<dyn std::error::Error> {
        match (self, &error) {
            (Ram::Dump(_), Error::GuestAddress { address, .. }) => {
                format!("cannot read at {address:#x}: not in the dump").into()
            }
            _ => error.into(),
        }
    }

    /// Returns the page tables that a vcpu is using.
    pub(crate) fn page_tables(&self, vcpu: u32) -> Result<PageTables> {
        match self {
            Ram::Guest(guest) => Ok(guest.page_tables(vcpu)?),
            Ram::Dump(Image { machine, .. }) => {
                let registers = usize::try_from(vcpu).ok().and_then(|vcpu| machine.vcpus.get(vcpu));
                let of = if self.is_pv() { Registers::page_tables_of_pv } else { Registers::page_tables };
                let tables = registers.and_then(of);
                Ok(tables.ok_or_else(|| format!("the dump lacks the control registers of vcpu {vcpu}"))?)
            }
        }
    }

    /// Returns the registers of each vcpu that has been started, if they are those of x86-64 and Xen or the dump has them.
    pub(crate) fn registers(&self) -> Vec<Registers> {
        match self {
            Ram::Guest(guest) => registers_of_guest(guest),
            Ram::Dump(image) => image.machine.vcpus.clone(),
        }
    }

    /// Returns the text of the kernel's note, if a dump has it besides RAM.
    pub(crate) fn vmcoreinfo(&self) -> Option<&[u8]> {
        match self {
            Ram::Guest(_) => None,
            Ram::Dump(image) => image.machine.vmcoreinfo.as_deref(),
        }
    }

    /// Returns the frames that are mapped to access some frames, in a PV guest machine frames.
    pub(crate) fn gfns(&self, pfns: Range<u64>) -> Result<Vec<Option<Gfn>>> {
        match self {
            Ram::Guest(guest) => Ok(guest.gfns(NumberRange::try_from(pfns)?)?),
            Ram::Dump(image) => {
                let gfn = |number: u64| Gfn::new(number).ok();
                Ok(match image.machine_frames(pfns.clone()) {
                    Some(frames) => frames.into_iter().map(|mfn| mfn.and_then(gfn)).collect(),
                    None => pfns.map(gfn).collect(),
                })
            }
        }
    }
}

/// Returns the registers of a guest's vcpus; none if Xen does not report them, or in another form.
fn registers_of_guest(guest: &Guest) -> Vec<Registers> {
    // Numbers of vcpus may have gaps, and Xen counts those that are online.
    const MAX_NUMBER: u32 = 4096;
    let is_x86 = guest.memory().xen_capabilities().is_ok_and(|capabilities| capabilities.contains("x86"));
    let info = guest.memory().domain_info(guest.domid());
    let online = info.ok().and_then(|info| info.vcpus).filter(|_| is_x86).unwrap_or(0);
    let registers = |vcpu: u32| {
        let context = guest.raw_registers(vcpu).ok()?;
        // A 32-bit PV guest's are in another form.
        let is_32_bit_pv = guest.kind() == GuestKind::Pv
            && matches!(guest.page_tables(vcpu), Ok(PageTables::X86 { mode: PagingMode::Pae, .. }));
        let registers = Registers::from_xen(&context).filter(|_| !is_32_bit_pv)?;
        let idt_base = guest.registers(vcpu).ok().and_then(|registers| registers.idt_base).unwrap_or(0);
        Some(Registers { idt_base, ..registers })
    };
    (0..MAX_NUMBER).filter_map(registers).take(usize::try_from(online).unwrap_or(0)).collect()
}

/// Returns the error for a physical address that a dump lacks. It is one of the library, as those of translation are, and
/// names a domain that no dump has.
pub(crate) fn not_in_dump(address: u64) -> Error {
    Error::GuestAddress { domid: Domid::XEN, address, errno: libc::ENXIO }
}

/// Returns the physical addresses from that of a virtual address to the end of its page.
fn translate_in_dump(image: &Image, tables: &PageTables, address: u64) -> xenmap::Result<Range<u64>> {
    let found = tables.translate_with(address, |at| {
        let mut entry = [0; 8];
        image.address(at).and_then(|at| image.read(at, &mut entry)).map_err(not_in_dump)?;
        Ok::<u64, Error>(u64::from_le_bytes(entry))
    })?;
    let first = image.address(found.physical).map_err(not_in_dump)?;
    // A PV guest's frames that follow each other in the machine may be anywhere.
    let page = if image.has_machine_frames() { FRAME_SIZE as u64 } else { found.page_size };
    Ok(first..(first | (page - 1)) + 1)
}

fn read_virtual_in_dump(image: &Image, tables: &PageTables, address: u64, to: &mut [u8]) -> xenmap::Result<()> {
    let mut done = 0;
    while done < to.len() {
        let page = translate_in_dump(image, tables, address.wrapping_add(done as u64))?;
        let len = usize::try_from(page.end - page.start).map_or(to.len() - done, |page| page.min(to.len() - done));
        image.read(page.start, &mut to[done..done + len]).map_err(not_in_dump)?;
        done += len;
    }
    Ok(())
}
