//! Interrupts of a device to its guest.

use std::sync::{Mutex, PoisonError};

use super::range::Sbdf;
use crate::abi;
use crate::backend::ProcessId;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::types::GuestKind;

/// Interrupts a guest, as its devices do. Works with restricted handles.
///
/// A PVH guest can only be interrupted by messages (MSI), an HVM guest also by lines.
///
/// ```
/// use xenmap::device_model::Interrupts;
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// let memory = host.open()?;
///
/// let interrupts = Interrupts::new(Guest::open(&memory, domain.domid())?);
/// interrupts.send_msi(0xFEE0_0000, 0x21)?; // what the guest's driver has written to the MSI-X table
/// assert_eq!(domain.wait_for_msi(), Some((0xFEE0_0000, 0x21)));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interrupts {
    guest: Guest,
}

/// A line that interrupts the guest for as long as it is raised. Dropping it lowers it; in a forked child, dropping it
/// does nothing.
///
/// Xen combines the lines of devices that share an interrupt. But a pin is one line: have only one `InterruptLine` for
/// it, which threads may share.
///
/// ```
/// use xenmap::device_model::{Interrupts, Sbdf};
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let memory = host.open()?;
/// let interrupts = Interrupts::new(Guest::open(&memory, domain.domid())?);
///
/// let disk = Sbdf::new(0, 0, 6, 0).ok_or("no such function")?;
/// let line = interrupts.pci_line(disk, 0)?; // INTA
/// line.raise()?; // the device has something to report
/// assert!(domain.pci_line(disk, 0).is_raised);
/// line.lower()?; // its driver has read the status register
/// assert!(!domain.pci_line(disk, 0).is_raised);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct InterruptLine {
    guest: Guest,
    wire: Wire,
    is_raised: Mutex<bool>,
    process: ProcessId,
}

#[derive(Clone, Copy, Debug)]
enum Wire {
    Pci { device: Sbdf, pin: u8 },
    Isa(u8),
}

impl Interrupts {
    /// Returns the interrupts of a guest.
    #[must_use]
    pub fn new(guest: Guest) -> Interrupts {
        Interrupts { guest }
    }

    /// Sends a message signalled interrupt (MSI), with the address and the data that the guest has written to the
    /// device's MSI capability or MSI-X table.
    ///
    /// Pass them on unchanged, whatever their values: those of an HVM guest may have a meaning that only Xen knows.
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`] if Xen refuses the message, for example because the guest has not set up the interrupt (ERANGE).
    #[doc(alias = "XEN_DMOP_inject_msi")]
    pub fn send_msi(&self, address: u64, data: u32) -> Result<()> {
        let name = ("XEN_DMOP_inject_msi", abi::XEN_DMOP_INJECT_MSI);
        let fields = abi::InjectMsi { data, pad: 0, addr: address };
        self.guest.memory().dm_op(self.guest.domid(), name, fields).map(|_| ())
    }

    /// Returns the line of a PCI device's interrupt pin: 0 for INTA to 3 for INTD. Lowers it.
    ///
    /// # Errors
    ///
    /// - [`Error::NoInterruptLine`] unless the guest is certainly an HVM guest. On a Xen whose toolstack interface is
    ///   unknown, [`Guest::open`] cannot tell: then use [`Guest::with_kind`].
    /// - [`Error::DmOp`] if there is no such pin (EINVAL): Xen has those of bus 0 in segment 0.
    #[doc(alias = "XEN_DMOP_set_pci_intx_level")]
    pub fn pci_line(&self, device: Sbdf, pin: u8) -> Result<InterruptLine> {
        self.line(Wire::Pci { device, pin })
    }

    /// Returns the line of an ISA interrupt, 0 to 15. Lowers it.
    ///
    /// # Errors
    ///
    /// - [`Error::NoInterruptLine`] unless the guest is certainly an HVM guest: see [`pci_line`](Interrupts::pci_line).
    /// - [`Error::DmOp`] if there is no such interrupt (EINVAL).
    #[doc(alias = "XEN_DMOP_set_isa_irq_level")]
    pub fn isa_line(&self, irq: u8) -> Result<InterruptLine> {
        self.line(Wire::Isa(irq))
    }

    /// A new line is lowered, which also shows whether it exists.
    fn line(&self, wire: Wire) -> Result<InterruptLine> {
        // Lines lead to a legacy interrupt controller, which other guests do not have. Xen does not check that, and
        // would use it nevertheless.
        if !self.guest.is_certainly(GuestKind::Hvm) {
            return Err(Error::NoInterruptLine { domid: self.guest.domid(), kind: self.guest.kind() });
        }
        let (guest, process) = (self.guest.clone(), ProcessId::current());
        let line = InterruptLine { guest, wire, is_raised: Mutex::new(false), process };
        line.drive(false)?;
        Ok(line)
    }
}

impl InterruptLine {
    /// Raises the line, unless it is raised.
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`] if the guest is gone.
    pub fn raise(&self) -> Result<()> {
        self.set(true)
    }

    /// Lowers the line, unless it is low.
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`] if the guest is gone.
    pub fn lower(&self) -> Result<()> {
        self.set(false)
    }

    fn set(&self, level: bool) -> Result<()> {
        // Locked during the operation, so that Xen sees the changes in the same order.
        let mut is_raised = self.is_raised.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_raised != level {
            self.drive(level)?;
            *is_raised = level;
        }
        Ok(())
    }

    fn drive(&self, level: bool) -> Result<()> {
        let (memory, domid, level) = (self.guest.memory(), self.guest.domid(), u8::from(level));
        match self.wire {
            Wire::Pci { device, pin: intx } => {
                let name = ("XEN_DMOP_set_pci_intx_level", abi::XEN_DMOP_SET_PCI_INTX_LEVEL);
                let (domain, bus, device) = (device.segment(), device.bus(), device.device());
                memory.dm_op(domid, name, abi::PciIntxLevel { domain, bus, device, intx, level }).map(|_| ())
            }
            Wire::Isa(isa_irq) => {
                let name = ("XEN_DMOP_set_isa_irq_level", abi::XEN_DMOP_SET_ISA_IRQ_LEVEL);
                memory.dm_op(domid, name, abi::IsaIrqLevel { isa_irq, level }).map(|_| ())
            }
        }
    }
}

impl Drop for InterruptLine {
    fn drop(&mut self) {
        if self.process == ProcessId::current()
            && let Err(e) = self.lower()
        {
            log::debug!("an interrupt line stays raised: {e}");
        }
    }
}

#[cfg(all(test, feature = "mock", not(loom)))]
#[expect(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::mock::{HostConfig, MockHost};

    /// A version whose toolstack interface no caller knows.
    const UNKNOWN_XEN: (u16, u16) = (4, 99);

    fn host(xen: (u16, u16)) -> MockHost {
        MockHost::with_config(HostConfig { xen, ..HostConfig::default() })
    }

    fn refusal(interrupts: &Interrupts) -> Error {
        let error = interrupts.isa_line(7).unwrap_err();
        let device = Sbdf::new(0, 0, 6, 0).unwrap();
        assert_eq!(interrupts.pci_line(device, 0).unwrap_err().to_string(), error.to_string());
        error
    }

    #[test]
    fn guest_that_is_not_hvm_has_no_lines() {
        let host = host((4, 17));
        for kind in [GuestKind::Pvh, GuestKind::Pv] {
            let domain = host.create_domain(kind, 4);
            let memory = host.open().unwrap();
            for guest in
                [Guest::open(&memory, domain.domid()).unwrap(), Guest::with_kind(&memory, domain.domid(), kind)]
            {
                let error = refusal(&Interrupts::new(guest));
                assert!(matches!(error, Error::NoInterruptLine { kind: found, .. } if found == kind), "{error}");
            }
        }
    }

    #[test]
    fn guest_that_may_be_pvh_has_no_lines() {
        let host = host(UNKNOWN_XEN);
        for kind in [GuestKind::Pvh, GuestKind::Hvm] {
            let domain = host.create_domain(kind, 4);
            let guest = Guest::open(&host.open().unwrap(), domain.domid()).unwrap();
            assert_eq!(guest.kind(), GuestKind::Hvm, "Xen does not tell");
            let text = refusal(&Interrupts::new(guest)).to_string();
            assert!(text.contains("Guest::with_kind"), "{text}");
        }
    }

    #[test]
    fn caller_can_vouch_for_an_hvm_guest() {
        let host = host(UNKNOWN_XEN);
        let domain = host.create_domain(GuestKind::Hvm, 4);
        let guest = Guest::with_kind(&host.open().unwrap(), domain.domid(), GuestKind::Hvm);
        let line = Interrupts::new(guest).isa_line(7).unwrap();
        line.raise().unwrap();
        assert!(domain.isa_line(7).is_raised);
    }

    #[test]
    fn line_is_driven_only_when_it_changes_and_lowered_when_it_is_dropped() {
        let host = host((4, 17));
        let domain = host.create_domain(GuestKind::Hvm, 4);
        let interrupts = Interrupts::new(Guest::open(&host.open().unwrap(), domain.domid()).unwrap());
        let line = interrupts.isa_line(4).unwrap();
        for _ in 0..2 {
            line.raise().unwrap();
        }
        assert_eq!((domain.isa_line(4).is_raised, domain.isa_line(4).rises), (true, 1));
        line.lower().unwrap();
        line.raise().unwrap();
        assert_eq!(domain.isa_line(4).rises, 2);
        drop(line);
        assert!(!domain.isa_line(4).is_raised);
    }

    #[test]
    fn line_that_xen_refuses_to_raise_can_be_raised_later() {
        let host = host((4, 17));
        let domain = host.create_domain(GuestKind::Hvm, 4);
        let interrupts = Interrupts::new(Guest::open(&host.open().unwrap(), domain.domid()).unwrap());
        let line = interrupts.isa_line(4).unwrap();
        host.inject(crate::mock::Fault::DmOp(libc::EFAULT));
        assert_eq!(line.raise().unwrap_err().errno(), libc::EFAULT);
        assert!(!domain.isa_line(4).is_raised);
        line.raise().unwrap();
        assert!(domain.isa_line(4).is_raised);
    }

    #[test]
    fn line_that_does_not_exist_is_refused() {
        let host = host((4, 17));
        let domain = host.create_domain(GuestKind::Hvm, 4);
        let interrupts = Interrupts::new(Guest::open(&host.open().unwrap(), domain.domid()).unwrap());
        assert_eq!(interrupts.isa_line(16).unwrap_err().errno(), libc::EINVAL);
        let on_bus = |bus| Sbdf::new(0, bus, 6, 0).unwrap();
        assert_eq!(interrupts.pci_line(on_bus(1), 0).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(interrupts.pci_line(on_bus(0), 4).unwrap_err().errno(), libc::EINVAL);
    }
}
