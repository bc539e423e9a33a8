//! The simulated guest's processors, as far as devices see them.

use std::fmt;

use super::Life;
use super::access::{Access, CF8, CFC, piece, selection};
use crate::abi;
use crate::device_model::Sbdf;
use crate::mock::domain::MockDomain;

/// A processor of a simulated guest, as far as devices see it.
///
/// Each method is an instruction: it returns when Xen would go on with the next one, which is after a device model has
/// answered. So a test calls it on a thread of its own, or serves the device on one. If no server has the port or
/// address, reads are ones and writes vanish, as on Xen.
///
/// A processor executes an instruction at a time: if several threads use the same one, they take turns. While the guest
/// is paused, the next instruction waits. Different processors run in parallel.
///
/// ```
/// use std::sync::Arc;
/// use std::thread;
///
/// use xenmap::device_model::{EventChannels, IoRange, IoreqServer, Registers, Target};
/// use xenmap::mock::{MockHost, VcpuStopped};
/// use xenmap::{Guest, GuestKind, MapCache};
///
/// /// A register that keeps what the guest writes.
/// struct Register(u64);
///
/// impl Registers for Register {
///     fn read(&mut self, _: Target, _size: usize) -> u64 {
///         self.0
///     }
///
///     fn write(&mut self, _: Target, _size: usize, value: u64) {
///         self.0 = value;
///     }
/// }
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// let server = IoreqServer::create(cache, EventChannels::open(&memory)?)?;
/// server.add_range(IoRange::memory(0xF000_0000, 0xF000_0FFF))?;
/// let device = thread::spawn(move || server.run(&mut Register(0)));
///
/// let vcpu = domain.vcpu(0);
/// vcpu.write(0xF000_0010, 4, 40)?;
/// assert_eq!(vcpu.fetch_add(0xF000_0010, 4, 2)?, 40);
/// assert_eq!(vcpu.read(0xF000_0010, 4)?, 42);
/// assert_eq!(vcpu.read(0xF000_0FFE, 4)?, 0xFFFF_002A); // two accesses, one on each page: nobody serves the second
/// assert_eq!(vcpu.port_in(0x80, 1)?, 0xFF); // nobody serves this port
///
/// domain.destroy();
/// assert_eq!(vcpu.read(0xF000_0010, 4), Err(VcpuStopped::Destroyed));
/// device.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MockVcpu {
    pub(super) domain: MockDomain,
    pub(super) life: Life,
    pub(super) number: u32,
}

/// Why a processor has stopped for good.
///
/// ```
/// use xenmap::GuestKind;
/// use xenmap::mock::{MockHost, VcpuStopped};
///
/// let domain = MockHost::new().create_domain(GuestKind::Pvh, 1);
/// let vcpu = domain.vcpu(0);
/// domain.destroy();
/// let stopped = vcpu.port_in(0x80, 1).unwrap_err();
/// assert_eq!(stopped, VcpuStopped::Destroyed);
/// assert_eq!(stopped.to_string(), "the guest has been destroyed");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VcpuStopped {
    /// The guest has been destroyed.
    Destroyed,
    /// Xen has crashed the guest, for this reason: what a device model has done wrong, or that memory ran out.
    Crashed(String),
}

impl fmt::Display for VcpuStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VcpuStopped::Destroyed => f.write_str("the guest has been destroyed"),
            VcpuStopped::Crashed(reason) => write!(f, "the guest has crashed: {reason}"),
        }
    }
}

impl std::error::Error for VcpuStopped {}

pub(super) type Outcome<T> = Result<T, VcpuStopped>;

impl MockDomain {
    /// Returns the guest's processor with this number. A guest has one, unless
    /// [`set_vcpu`](MockDomain::set_vcpu) has given it more.
    ///
    /// # Panics
    ///
    /// If the guest does not have it, or has been destroyed.
    #[must_use]
    pub fn vcpu(&self, number: u32) -> MockVcpu {
        let (count, life) = self.with(|_, domain| (domain.vcpu_count(), domain.device_model.life.clone()));
        assert!(number < count, "domain {} has {count} vcpus", self.domid);
        MockVcpu { domain: self.clone(), life, number }
    }

    /// Returns why Xen has crashed the guest, if it has because of a device model.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn crash_reason(&self) -> Option<String> {
        self.with(|_, domain| domain.device_model.crash.clone())
    }
}

/// All methods panic if no instruction accesses so many bytes.
impl MockVcpu {
    /// Reads a port (`in`). `size` is 1, 2 or 4 bytes.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn port_in(&self, port: u16, size: usize) -> Outcome<u64> {
        check_size(size, 4);
        self.access(Access::read(abi::IOREQ_TYPE_PIO, port.into(), size))
    }

    /// Writes a port (`out`). `size` is 1, 2 or 4 bytes.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn port_out(&self, port: u16, size: usize, value: u64) -> Outcome<()> {
        check_size(size, 4);
        self.access(Access::write(abi::IOREQ_TYPE_PIO, port.into(), size, value)).map(|_| ())
    }

    /// Reads a guest-physical address. `size` is 1, 2, 4 or 8 bytes. Xen splits an access at the end of a page. Where
    /// the guest has RAM, that is read, whatever servers have asked for.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn read(&self, address: u64, size: usize) -> Outcome<u64> {
        check_size(size, 8);
        let mut value = 0;
        let mut done = 0;
        while done < size {
            let (address, size) = piece(address, size, done);
            value |= self.access(Access::read(abi::IOREQ_TYPE_COPY, address, size))? << (8 * done);
            done += size;
        }
        Ok(value)
    }

    /// Writes a guest-physical address. `size` is 1, 2, 4 or 8 bytes. Xen splits an access at the end of a page. Where
    /// the guest has RAM, that is written, whatever servers have asked for.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn write(&self, address: u64, size: usize, value: u64) -> Outcome<()> {
        check_size(size, 8);
        let mut done = 0;
        while done < size {
            let (address, size) = piece(address, size, done);
            self.access(Access::write(abi::IOREQ_TYPE_COPY, address, size, value >> (8 * done)))?;
            done += size;
        }
        Ok(())
    }

    /// Adds to the value at a guest-physical address, and returns what it was (`lock xadd`). Xen makes a read and a
    /// write of it, so it is not atomic. `size` is 1, 2, 4 or 8 bytes.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    pub fn fetch_add(&self, address: u64, size: usize, value: u64) -> Outcome<u64> {
        let before = self.read(address, size)?;
        self.write(address, size, before.wrapping_add(value))?;
        Ok(before)
    }

    /// Reads a register of a PCI function's configuration space, through ports 0xCF8 and 0xCFC. `size` is 1, 2 or 4
    /// bytes. The guest's processors take turns, as Linux makes them.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::device_model::Sbdf;
    /// use xenmap::mock::MockHost;
    ///
    /// let vcpu = MockHost::new().create_domain(GuestKind::Pvh, 1).vcpu(0);
    /// let function = Sbdf::new(0, 0, 3, 0).unwrap();
    /// assert_eq!(vcpu.pci_read(function, 0, 2)?, 0xFFFF); // the vendor's number: there is no such device
    /// # Ok::<(), xenmap::mock::VcpuStopped>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// Also if the function is in another segment than 0, which these ports do not reach.
    pub fn pci_read(&self, function: Sbdf, register: u8, size: usize) -> Outcome<u64> {
        let _turn = self.life.lock_pci();
        self.port_out(CF8, 4, selection(function, register))?;
        self.port_in(CFC + u16::from(register % 4), size)
    }

    /// Writes a register of a PCI function's configuration space, as [`pci_read`](MockVcpu::pci_read) reads one.
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// As [`pci_read`](MockVcpu::pci_read).
    pub fn pci_write(&self, function: Sbdf, register: u8, size: usize, value: u64) -> Outcome<()> {
        let _turn = self.life.lock_pci();
        self.port_out(CF8, 4, selection(function, register))?;
        self.port_out(CFC + u16::from(register % 4), size, value)
    }
}

/// # Panics
///
/// If no instruction accesses so many bytes.
pub(super) fn check_size(size: usize, most: usize) {
    assert!(size.is_power_of_two() && size <= most, "no instruction accesses {size} bytes there");
}
