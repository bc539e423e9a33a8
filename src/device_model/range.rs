//! What a vcpu accesses: ports, addresses, PCI functions.

use std::fmt;

use crate::abi;

/// A PCI function: segment, bus, device and function.
///
/// ```
/// use xenmap::device_model::Sbdf;
///
/// let function = Sbdf::new(0, 0, 6, 0).unwrap();
/// assert_eq!(function.to_string(), "0000:00:06.0");
/// assert_eq!(Sbdf::new(0, 0, 32, 0), None); // a bus has 32 devices, and a device 8 functions
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf {
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl Sbdf {
    /// Returns the function; `None` if the device is over 31 or the function over 7.
    #[must_use]
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Sbdf> {
        (device < 32 && function < 8).then_some(Sbdf { segment, bus, device, function })
    }

    /// Returns the function with Xen's number: 16 bits of segment, 8 of bus, 5 of device, 3 of function.
    pub(super) fn from_number(number: u32) -> Sbdf {
        let [low, bus, segment @ ..] = number.to_le_bytes();
        Sbdf { segment: u16::from_le_bytes(segment), bus, device: low >> 3, function: low & 7 }
    }

    fn number(self) -> u32 {
        u32::from(self.segment) << 16 | u32::from(self.bus) << 8 | u32::from(self.device << 3 | self.function)
    }

    /// Returns the segment, which Linux calls the domain.
    #[must_use]
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// Returns the bus.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// Returns the device, 0 to 31.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// Returns the function, 0 to 7.
    #[must_use]
    pub fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device, self.function)
    }
}

/// Ports, addresses or PCI functions for which a server answers. Both ends are included.
///
/// ```
/// use xenmap::device_model::{IoRange, Sbdf};
///
/// assert_eq!(IoRange::ports(0xCF8, 0xCFB).to_string(), "ports 0xcf8 to 0xcfb");
/// assert_eq!(IoRange::memory(0xE000_0000, 0xE000_7FFF).to_string(), "addresses 0xe0000000 to 0xe0007fff");
/// let disk = Sbdf::new(0, 0, 6, 0).unwrap();
/// assert_eq!(IoRange::pci(disk, disk).to_string(), "pci functions 0000:00:06.0 to 0000:00:06.0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoRange {
    pub(super) type_: u32,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl IoRange {
    /// Returns a range of x86 ports.
    #[must_use]
    pub fn ports(first: u16, last: u16) -> IoRange {
        IoRange { type_: abi::XEN_DMOP_IO_RANGE_PORT, first: first.into(), last: last.into() }
    }

    /// Returns a range of guest-physical addresses, in bytes.
    ///
    /// Xen does not check that there is no RAM. Accesses to RAM never reach a server.
    #[must_use]
    pub fn memory(first: u64, last: u64) -> IoRange {
        IoRange { type_: abi::XEN_DMOP_IO_RANGE_MEMORY, first, last }
    }

    /// Returns the configuration space of a range of PCI functions, from one in the order of segment, bus, device and
    /// function to another.
    ///
    /// A guest reaches it through ports 0xCF8 and 0xCFC. In an HVM guest, QEMU answers for the former. In a PVH guest
    /// nobody does: for the guest to find PCI, a server must also have ports 0xCF8 to 0xCFB, and return what the guest
    /// has last written there. Xen does the rest.
    #[must_use]
    pub fn pci(first: Sbdf, last: Sbdf) -> IoRange {
        IoRange { type_: abi::XEN_DMOP_IO_RANGE_PCI, first: first.number().into(), last: last.number().into() }
    }
}

impl fmt::Display for IoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoRange { type_, first, last } = *self;
        match type_ {
            abi::XEN_DMOP_IO_RANGE_PORT => write!(f, "ports {first:#x} to {last:#x}"),
            abi::XEN_DMOP_IO_RANGE_MEMORY => write!(f, "addresses {first:#x} to {last:#x}"),
            _ => {
                let [first, last] = [first, last].map(|number| Sbdf::from_number(u32::try_from(number).unwrap_or(0)));
                write!(f, "pci functions {first} to {last}")
            }
        }
    }
}

/// What a vcpu reads or writes.
///
/// ```
/// use xenmap::device_model::Target;
///
/// /// Returns the offset in a device's 4 KiB of registers.
/// fn offset(at: Target) -> Option<u64> {
///     match at {
///         Target::Memory(address) => address.checked_sub(0xE000_0000).filter(|&offset| offset < 0x1000),
///         _ => None,
///     }
/// }
/// assert_eq!(offset(Target::Memory(0xE000_0010)), Some(0x10));
/// assert_eq!(offset(Target::Port(0x10)), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// An x86 port.
    Port(u16),
    /// A guest-physical address, in bytes.
    Memory(u64),
    /// A register of a PCI function's configuration space.
    Pci {
        /// The function.
        function: Sbdf,
        /// The offset in its configuration space, in bytes.
        register: u16,
    },
}
