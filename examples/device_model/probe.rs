//! The guest's side on the simulated host: how a driver finds a virtio device by PCI.

use xenmap::device_model::Sbdf;
use xenmap::mock::MockVcpu;

use super::Result;

/// Where the guest puts the memory of the first function that it finds.
const MEMORY: u64 = 0xE000_0000;

/// A virtio function, and the guest-physical addresses of its registers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) common: u64,
    pub(crate) notify: u64,
    pub(crate) notify_step: u64,
    pub(crate) configuration: u64,
    pub(crate) messages: u64,
    /// The function, and where its MSI-X capability is.
    pub(crate) msix: Option<(Sbdf, u8)>,
}

/// Finds a disk on bus 0, and gives its memory an address.
pub(crate) fn find_disk(vcpu: &MockVcpu) -> Result<Found> {
    vcpu.port_out(0xCFB, 1, 1)?; // as Linux does, before it looks whether the port is there
    vcpu.port_out(0xCF8, 4, 0x8000_0000)?;
    if vcpu.port_in(0xCF8, 4)? != 0x8000_0000 {
        return Err("the guest has no PCI".into());
    }
    for device in 0..32 {
        let function = Sbdf::new(0, 0, device, 0).ok_or("no such device")?;
        if vcpu.pci_read(function, 0, 4)? == 0x1042_1AF4 {
            return set_up(vcpu, function);
        }
    }
    Err("the guest has no disk".into())
}

fn set_up(vcpu: &MockVcpu, function: Sbdf) -> Result<Found> {
    // The size of the memory is that of the bits that cannot be set.
    vcpu.pci_write(function, 0x10, 4, u64::from(u32::MAX))?;
    let size = (!vcpu.pci_read(function, 0x10, 4)? & u64::from(u32::MAX)) + 1;
    vcpu.pci_write(function, 0x10, 4, MEMORY)?;
    vcpu.pci_write(function, 4, 2, 6)?; // decode memory, be a bus master

    let mut found = Found::default();
    let mut at = u8::try_from(vcpu.pci_read(function, 0x34, 1)?)?;
    while at != 0 {
        let read = |offset, size| vcpu.pci_read(function, at + offset, size);
        let (capability, kind, offset) = (read(0, 1)?, read(3, 1)?, read(8, 4)?);
        match (capability, kind) {
            (0x09, 1) => found.common = MEMORY + offset,
            (0x09, 2) => (found.notify, found.notify_step) = (MEMORY + offset, read(16, 4)?),
            (0x09, 4) => found.configuration = MEMORY + offset,
            (0x11, _) => (found.messages, found.msix) = (MEMORY + read(4, 4)?, Some((function, at))),
            _ => {}
        }
        at = u8::try_from(read(1, 1)?)?;
    }
    let all = [found.common, found.notify, found.configuration, found.messages];
    if all.iter().all(|address| (MEMORY..MEMORY + size).contains(address)) {
        Ok(found)
    } else {
        Err(format!("the disk lacks registers: {found:x?}").into())
    }
}

impl Found {
    /// Fills in the messages of the first vectors, whose data are `first` and the following, and switches MSI-X on.
    pub(crate) fn enable_messages(&self, vcpu: &MockVcpu, first: u32, count: u16) -> Result<()> {
        for (vector, data) in (0..count).zip(first..) {
            let entry = self.messages + 16 * u64::from(vector);
            vcpu.write(entry, 8, 0xFEE0_0000)?;
            vcpu.write(entry + 8, 8, data.into())?; // with the mask bit off
        }
        let (function, at) = self.msix.ok_or("no msi-x")?;
        Ok(vcpu.pci_write(function, at + 2, 2, 0x8000)?)
    }
}
