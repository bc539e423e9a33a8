//! The simulated guest's interrupts, and the log of its modified memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::device_model::Sbdf;
use crate::mock::domain::MockDomain;
use crate::types::Gfn;

/// What devices have sent to a guest.
#[derive(Debug, Default)]
pub(in crate::mock) struct Interrupts {
    /// The messages that nothing has taken yet: address and data.
    pub(super) messages: VecDeque<(u64, u32)>,
    lines: BTreeMap<Wire, MockLine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wire {
    Pci { device: u8, pin: u8 },
    Isa(u8),
}

/// The state of a simulated guest's interrupt line.
///
/// ```
/// use xenmap::device_model::{Interrupts, Sbdf};
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let guest = Guest::open(&host.open()?, domain.domid())?;
/// let device = Sbdf::new(0, 0, 6, 0).unwrap();
/// let line = Interrupts::new(guest).pci_line(device, 0)?;
///
/// for _ in 0..2 {
///     line.raise()?;
///     line.lower()?;
/// }
/// let seen = domain.pci_line(device, 0);
/// assert_eq!((seen.is_raised, seen.rises), (false, 2));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MockLine {
    /// Whether it is raised now.
    pub is_raised: bool,
    /// How often it was raised: a line that is raised twice without being lowered rises once.
    pub rises: u32,
}

impl Interrupts {
    pub(super) fn set(&mut self, wire: Wire, level: bool) {
        let line = self.lines.entry(wire).or_default();
        line.rises += u32::from(level && !line.is_raised);
        line.is_raised = level;
    }

    fn line(&self, wire: Wire) -> MockLine {
        self.lines.get(&wire).copied().unwrap_or_default()
    }
}

impl MockDomain {
    /// Waits for a message signalled interrupt, and returns its address and data; `None` if the guest is destroyed or
    /// has crashed. Messages are kept until a call takes them.
    ///
    /// ```
    /// use xenmap::device_model::Interrupts;
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 16);
    /// let guest = Guest::open(&host.open()?, domain.domid())?;
    /// Interrupts::new(guest).send_msi(0xFEE0_0000, 0x21)?;
    /// assert_eq!(domain.wait_for_msi(), Some((0xFEE0_0000, 0x21)));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn wait_for_msi(&self) -> Option<(u64, u32)> {
        self.wait_for_interrupt(|interrupts| interrupts.messages.pop_front())
    }

    /// Waits until a PCI device's interrupt line is raised, or low, and returns its state; `None` if the guest is
    /// destroyed or has crashed. Pin 0 is INTA. A line that was raised and lowered again meanwhile is low: see
    /// [`MockLine::rises`].
    ///
    /// ```
    /// use std::thread;
    ///
    /// use xenmap::device_model::{Interrupts, Sbdf};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let guest = Guest::open(&host.open()?, domain.domid())?;
    /// let device = Sbdf::new(0, 0, 6, 0).unwrap();
    /// let line = Interrupts::new(guest).pci_line(device, 0)?;
    ///
    /// let raising = thread::spawn(move || line.raise().map(|()| line));
    /// assert!(domain.wait_for_pci_line(device, 0, true).is_some());
    /// drop(raising.join().unwrap()?); // lowers it
    /// assert!(domain.wait_for_pci_line(device, 0, false).is_some());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn wait_for_pci_line(&self, device: Sbdf, pin: u8, is_raised: bool) -> Option<MockLine> {
        self.wait_for_line(Wire::Pci { device: device.device(), pin }, is_raised)
    }

    /// Waits until an ISA interrupt line is raised, or low, as [`wait_for_pci_line`](MockDomain::wait_for_pci_line)
    /// does.
    #[must_use]
    pub fn wait_for_isa_line(&self, irq: u8, is_raised: bool) -> Option<MockLine> {
        self.wait_for_line(Wire::Isa(irq), is_raised)
    }

    /// Returns the state of a PCI device's interrupt line; pin 0 is INTA.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn pci_line(&self, device: Sbdf, pin: u8) -> MockLine {
        let wire = Wire::Pci { device: device.device(), pin };
        self.with(|_, domain| domain.device_model.interrupts.line(wire))
    }

    /// Returns the state of an ISA interrupt line.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn isa_line(&self, irq: u8) -> MockLine {
        self.with(|_, domain| domain.device_model.interrupts.line(Wire::Isa(irq)))
    }

    fn wait_for_line(&self, wire: Wire, is_raised: bool) -> Option<MockLine> {
        self.wait_for_interrupt(|interrupts| Some(interrupts.line(wire)).filter(|line| line.is_raised == is_raised))
    }

    /// Waits until `look` finds something.
    fn wait_for_interrupt<T>(&self, look: impl Fn(&mut Interrupts) -> Option<T>) -> Option<T> {
        let mut state = self.host.lock();
        let life = state.domains.get(&self.domid.get())?.device_model.life.clone();
        loop {
            let domain = state.running(self.domid, &life).ok()?;
            if let Some(found) = look(&mut domain.device_model.interrupts) {
                return Some(found);
            }
            state = self.host.wait(state);
        }
    }

    /// Starts to log modified memory, as Xen does during a migration. The log has only what device models report: what
    /// they write through a mapping is not logged on Xen either, and what the guest writes is left out here.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::mock::MockHost;
    ///
    /// let domain = MockHost::new().create_domain(GuestKind::Pvh, 16);
    /// domain.log_dirty();
    /// // Here a device writes through its cache, and calls IoreqServer::report_dirty.
    /// assert_eq!(domain.take_dirty(), []);
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    pub fn log_dirty(&self) {
        self.with(|_, domain| domain.device_model.dirty = Some(BTreeSet::new()));
    }

    /// Returns the frames that device models have reported since the last call, and goes on logging.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<Gfn> {
        let dirty = self.with(|_, domain| domain.device_model.dirty.as_mut().map(std::mem::take));
        dirty.unwrap_or_default().into_iter().filter_map(|gfn| Gfn::new(gfn).ok()).collect()
    }
}
