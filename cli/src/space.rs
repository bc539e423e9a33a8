//! The address spaces of a guest: its physical addresses, and the virtual ones of a vcpu.

use xenmap::{Gfn, Guest, PageTables, PagingMode};

use crate::Result;
use crate::args::SpaceArgs;
use crate::image::{Architecture, Image};
use crate::kernel::{self, Kernel};
use crate::ram::Ram;

pub(crate) enum Space {
    Physical,
    Virtual(PageTables),
}

impl Space {
    pub(crate) fn new(ram: &Ram, args: &SpaceArgs, kernel: &Kernel<'_>) -> Result<Space> {
        if !args.r#virtual {
            return Ok(Space::Physical);
        }
        Ok(Space::Virtual(match ram {
            Ram::Guest(guest) => tables_of_guest(guest, args)?,
            Ram::Dump(image) => tables_of_dump(ram, image, args, kernel)?,
        }))
    }

    pub(crate) fn read(&self, ram: &Ram, address: u64, to: &mut [u8]) -> Result<()> {
        let read = match self {
            Space::Physical => ram.read(address, to),
            Space::Virtual(tables) => ram.read_virtual(tables, address, to),
        };
        read.map_err(|e| ram.explain(e))
    }

    /// Returns the physical address that an address of this space leads to.
    pub(crate) fn translate(&self, ram: &Ram, address: u64) -> Result<u64> {
        match self {
            Space::Physical => {
                Gfn::containing(address)?;
                Ok(address)
            }
            Space::Virtual(tables) => ram.translate(tables, address).map_err(|e| ram.explain(e)),
        }
    }
}

fn tables_of_guest(guest: &Guest, args: &SpaceArgs) -> Result<PageTables> {
    let has_vcpus = || guest.memory().domain_info(guest.domid()).map(|info| info.vcpus != Some(0));
    if args.cr3.is_none() && !has_vcpus()? {
        return Err(format!("domain {} has no vcpus: give --cr3", guest.domid()).into());
    }
    let of_vcpu = guest.page_tables(args.vcpu);
    Ok(match (args.cr3, of_vcpu) {
        (None, of_vcpu) => of_vcpu?,
        (Some(cr3), Ok(PageTables::X86 { mode, .. })) => PageTables::X86 { cr3, mode },
        (Some(ttbr0), Ok(PageTables::Arm64 { ttbr1, tcr, .. })) => PageTables::Arm64 { ttbr0, ttbr1, tcr },
        // Without TCR_EL1, nothing is known of an arm64 guest's tables. Nearly every x86 guest's have four levels.
        (Some(_), Err(e)) if guest.memory().xen_capabilities()?.contains("aarch64") => return Err(e.into()),
        (Some(cr3), _) => PageTables::X86 { cr3, mode: PagingMode::FourLevels },
    })
}

fn tables_of_dump(ram: &Ram, image: &Image, args: &SpaceArgs, kernel: &Kernel<'_>) -> Result<PageTables> {
    let machine = &image.machine;
    let of_vcpu = ram.page_tables(args.vcpu);
    match (args.cr3, of_vcpu) {
        (None, Ok(tables)) => Ok(tables),
        (Some(cr3), Ok(PageTables::X86 { mode, .. })) => Ok(PageTables::X86 { cr3, mode }),
        (Some(cr3), _) if machine.architecture == Some(Architecture::X86) => {
            Ok(PageTables::X86 { cr3, mode: PagingMode::Pae })
        }
        // Nearly every x86 guest's tables have four levels.
        (Some(cr3), _) if machine.architecture != Some(Architecture::Arm64) => {
            Ok(PageTables::X86 { cr3, mode: PagingMode::FourLevels })
        }
        // A vcpu that does not exist.
        (None, Err(e)) if args.vcpu > 0 => Err(e),
        (ttbr0, _) => match (tables_of_kernel(image, kernel)?, ttbr0) {
            (PageTables::Arm64 { ttbr1, tcr, .. }, Some(ttbr0)) => {
                // Programs usually have as many addresses as the kernel, and pages of the same size.
                let [size, granule] = [tcr >> 16 & 0x3F, tcr >> 30 & 3];
                let granule: u64 = match granule {
                    0b01 => 0b10,
                    0b11 => 0b01,
                    _ => 0b00,
                };
                let tcr = tcr & !(1 << 7) | granule << 14 | size;
                Ok(PageTables::Arm64 { ttbr0, ttbr1, tcr })
            }
            (tables, _) => Ok(tables),
        },
    }
}

/// Returns the tables of the kernel that a dump's VMCOREINFO note describes.
fn tables_of_kernel(image: &Image, kernel: &Kernel<'_>) -> Result<PageTables> {
    const NEITHER: &str = "the dump has neither a vcpu's page tables nor a Linux kernel's note (VMCOREINFO) that leads to \
                           them: give --cr3";
    if image.has_machine_frames() {
        return Err("the dump of a PV guest lacks the registers of its vcpus: give --cr3".into());
    }
    Ok(kernel.note()?.and_then(kernel::page_tables).ok_or(NEITHER)?)
}

/// Returns the address of the last of `len` bytes, the first of which is at `first`.
pub(crate) fn last(first: u64, len: u64) -> Result<u64> {
    let after_first = len.checked_sub(1).ok_or("LEN is 0: give at least 1")?;
    Ok(first.checked_add(after_first).ok_or("ADDRESS and LEN reach past the last address")?)
}
