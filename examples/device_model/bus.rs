//! The rest of the bus: a host bridge, and the port by which a guest selects a register. QEMU serves them for an HVM
//! guest; for a PVH guest nobody else does.

use xenmap::device_model::{IoRange, Sbdf, Target};

use super::config_space::{ConfigSpace, HOST_BRIDGE};
use super::registers::Block;

/// The port of the address that the guest selects. Xen itself uses what the guest writes there, and passes accesses to
/// the next four ports on to the function with this address.
const ADDRESS: u16 = 0xCF8;

pub(crate) struct Bus {
    bridge: ConfigSpace,
    at: Sbdf,
    /// What the guest has last written, which it expects to read again.
    address: Block,
}

impl Bus {
    /// Creates a bus whose host bridge is at this address.
    pub(crate) fn new(at: Sbdf) -> Bus {
        let mut address = Block::new(4);
        address.define(0, &[0; 4], &[0xFF; 4]);
        Bus { bridge: ConfigSpace::new(&HOST_BRIDGE), at, address }
    }

    pub(crate) fn ranges(&self) -> [IoRange; 2] {
        [IoRange::ports(ADDRESS, ADDRESS + 3), IoRange::pci(self.at, self.at)]
    }

    pub(crate) fn read(&self, at: Target, size: usize) -> u64 {
        match at {
            Target::Port(port) if port >= ADDRESS => self.address.read((port - ADDRESS).into(), size),
            Target::Pci { function, register } if function == self.at => self.bridge.read(register, size),
            _ => u64::MAX,
        }
    }

    pub(crate) fn write(&mut self, at: Target, size: usize, value: u64) {
        match at {
            // Smaller writes select nothing: Linux writes a byte to the last port, which means something else.
            Target::Port(ADDRESS) if size == 4 => self.address.write(0, size, value),
            Target::Pci { function, register } if function == self.at => self.bridge.write(register, size, value),
            _ => {}
        }
    }
}
