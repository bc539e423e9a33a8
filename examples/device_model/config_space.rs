//! The configuration space of a PCI function, by which a guest finds it and gives it addresses.

use super::registers::Block;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR: usize = 0x10;
const FIRST_CAPABILITY: usize = 0x34;

/// The command register's bits: decode memory, be a bus master, do not use the interrupt pin.
const DECODE_MEMORY: u64 = 1 << 1;
const BUS_MASTER: u64 = 1 << 2;
const NO_PIN: u64 = 1 << 10;
/// The status register's bit: there are capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;

/// The 256 bytes of a function's configuration space.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    registers: Block,
    /// Where the offset of the next capability goes, and that offset.
    link: usize,
    end: usize,
}

/// What a function is.
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// The base class and the subclass.
    pub(crate) class: [u8; 2],
    /// The vendor and the number of the subsystem.
    pub(crate) subsystem: [u16; 2],
}

/// A host bridge. Linux searches a bus for one before it believes that there is PCI.
pub(crate) const HOST_BRIDGE: Identity =
    Identity { vendor: 0x1B36, device: 0x0008, revision: 0, class: [6, 0], subsystem: [0x1AF4, 0x1100] };

impl ConfigSpace {
    pub(crate) fn new(identity: &Identity) -> ConfigSpace {
        let Identity { vendor, device, revision, class: [class, subclass], subsystem } = identity;
        let mut registers = Block::new(256);
        registers.define(0x00, &vendor.to_le_bytes(), &[]);
        registers.define(0x02, &device.to_le_bytes(), &[]);
        registers.define(0x08, &[*revision, 0, *subclass, *class], &[]);
        registers.define(0x2C, &subsystem.map(u16::to_le_bytes).concat(), &[]);
        // The cache line size and the interrupt line are notes of the guest.
        registers.define(0x0C, &[0], &[0xFF]);
        registers.define(0x3C, &[0], &[0xFF]);
        ConfigSpace { registers, link: FIRST_CAPABILITY, end: 0x40 }
    }

    /// Gives the function a range of addresses (BAR 0) of a size that is a power of two.
    pub(crate) fn add_memory(&mut self, size: u32) {
        self.registers.define(BAR, &[0; 4], &(!(size - 1)).to_le_bytes());
        let command = (DECODE_MEMORY | BUS_MASTER | NO_PIN).to_le_bytes();
        self.registers.define(COMMAND, &[0; 2], &command[..2]);
    }

    /// Adds a capability, and returns its offset. `body` follows its number and the link; `writable` are the bits of
    /// the body that the guest can change.
    pub(crate) fn add_capability(&mut self, number: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.end;
        let [offset, ..] = at.to_le_bytes();
        self.registers.define(STATUS, &HAS_CAPABILITIES.to_le_bytes(), &[]);
        self.registers.define(self.link, &[offset], &[]);
        self.registers.define(at, &[number, 0], &[]);
        self.registers.define(at + 2, body, writable);
        self.link = at + 1;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        u16::from(offset)
    }

    pub(crate) fn read(&self, register: u16, size: usize) -> u64 {
        self.registers.read(register.into(), size)
    }

    pub(crate) fn write(&mut self, register: u16, size: usize, value: u64) {
        self.registers.write(register.into(), size, value);
    }

    /// Returns the guest-physical address of the function's memory; `None` while the function does not answer there.
    ///
    /// Linux switches decoding off while it writes ones to learn the size, and on again. An address of 0 has not been
    /// given yet.
    pub(crate) fn memory(&self) -> Option<u64> {
        let address = self.registers.read(BAR as u64, 4);
        let is_decoded = self.registers.read(COMMAND as u64, 2) & DECODE_MEMORY != 0;
        (is_decoded && address != 0).then_some(address)
    }

    /// Returns whether the function may access the guest's memory, and send messages.
    pub(crate) fn is_bus_master(&self) -> bool {
        self.registers.read(COMMAND as u64, 2) & BUS_MASTER != 0
    }

    pub(crate) fn registers(&self) -> &Block {
        &self.registers
    }

    pub(crate) fn registers_mut(&mut self) -> &mut Block {
        &mut self.registers
    }
}
