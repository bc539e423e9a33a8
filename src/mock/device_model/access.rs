//! What an instruction of the simulated guest asks of a device, and which numbers must be in a server's range.

use std::ops::RangeInclusive;

use super::DeviceModelState;
use crate::abi;
use crate::device_model::Sbdf;
use crate::types::FRAME_SIZE;

/// The port that selects a register of a PCI function, and those that access it.
pub(super) const CF8: u16 = 0xCF8;
pub(super) const CFC: u16 = 0xCFC;
const PCI_DATA: RangeInclusive<u64> = 0xCFC..=0xCFF;
const CF8_ENABLED: u32 = 1 << 31;

/// What an instruction asks of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) type_: u32,
    pub(super) address: u64,
    pub(super) size: usize,
    pub(super) is_read: bool,
    /// The value to write, or the address of the values in RAM.
    pub(super) data: u64,
    pub(super) rep: Option<Values>,
}

/// Several values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    pub(super) count: u32,
    pub(super) backwards: bool,
    /// Whether they are in RAM. Otherwise they are all the same.
    pub(super) in_ram: bool,
}

impl Access {
    pub(super) fn read(type_: u32, address: u64, size: usize) -> Access {
        Access { type_, address, size, is_read: true, data: 0, rep: None }
    }

    pub(super) fn write(type_: u32, address: u64, size: usize, value: u64) -> Access {
        Access { type_, address, size, is_read: false, data: value & ones(size), rep: None }
    }

    /// Returns the first and last number that must be in a range.
    pub(super) fn extent(&self) -> (u64, u64) {
        let size = self.size as u64;
        let last = self.address.wrapping_add(size - 1);
        match (self.type_, self.rep) {
            (abi::IOREQ_TYPE_PCI_CONFIG, _) => (self.address >> 32, self.address >> 32),
            (abi::IOREQ_TYPE_COPY, Some(Values { count, backwards, .. })) => {
                let distance = size * u64::from(count.saturating_sub(1));
                if backwards {
                    (self.address.wrapping_sub(distance), last)
                } else {
                    (self.address, last.wrapping_add(distance))
                }
            }
            _ => (self.address, last),
        }
    }
}

impl DeviceModelState {
    /// Turns an access to PCI's data port into one to the selected register of a function, and keeps what the guest
    /// selects, as Xen does.
    pub(super) fn translate(&mut self, access: Access) -> Access {
        if access.type_ != abi::IOREQ_TYPE_PIO {
            return access;
        }
        if access.address == u64::from(CF8) && access.size == 4 && !access.is_read && access.rep.is_none() {
            self.cf8 = u32::try_from(access.data).unwrap_or(0);
        }
        if !PCI_DATA.contains(&access.address) || self.cf8 & CF8_ENABLED == 0 {
            return access;
        }
        let function = u64::from(self.cf8 >> 8 & 0xFFFF);
        let register = u64::from(self.cf8 & 0xFC) + access.address % 4;
        Access { type_: abi::IOREQ_TYPE_PCI_CONFIG, address: function << 32 | register, ..access }
    }
}

/// Returns what a guest writes to port 0xCF8 to select a register.
///
/// # Panics
///
/// If the function is in another segment than 0, which these ports do not reach.
pub(super) fn selection(function: Sbdf, register: u8) -> u64 {
    assert_eq!(function.segment(), 0, "{function} is not reached through ports 0xCF8 and 0xCFC");
    let [bus, device, number] = [function.bus(), function.device(), function.function()].map(u64::from);
    u64::from(CF8_ENABLED) | bus << 16 | device << 11 | number << 8 | u64::from(register & 0xFC)
}

/// Returns the part of an access after `done` bytes that lies in one page: its address and size.
pub(super) fn piece(address: u64, size: usize, done: usize) -> (u64, usize) {
    let address = address.wrapping_add(done as u64);
    (address, (size - done).min(FRAME_SIZE - in_frame(address)))
}

/// Returns an address some values further on, or back.
pub(super) fn step(from: u64, values: u32, size: usize, backwards: bool) -> u64 {
    let distance = u64::from(values) * size as u64;
    if backwards { from.wrapping_sub(distance) } else { from.wrapping_add(distance) }
}

/// Returns the offset of an address in its frame.
#[expect(clippy::cast_possible_truncation, reason = "less than a frame")]
pub(super) fn in_frame(address: u64) -> usize {
    (address % FRAME_SIZE as u64) as usize
}

/// Returns the bits of a value of this size, all ones.
pub(super) fn ones(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size)
}
