//! The ring of buffered requests: writes for which the guest does not wait.

use std::sync::atomic::Ordering;

use super::slots::Raw;
use crate::abi;
use crate::error::Result;
use crate::handle::ResourceMapping;
use crate::mapping::Access;

/// The bytes of a slot (`buf_ioreq_t`).
const SLOT: u32 = 8;

#[derive(Debug)]
pub(super) struct Ring(ResourceMapping);

impl Ring {
    pub(super) fn new(page: ResourceMapping) -> Ring {
        Ring(page)
    }

    /// Takes the next request, if there is one. Only one caller at a time may do so.
    #[expect(clippy::cast_possible_truncation, reason = "splits a word")]
    pub(super) fn take(&self) -> Result<Option<Raw>> {
        let page = self.0.view();
        // Both pointers at once: Xen may take multiples of the ring's length off both.
        let pointers: u64 = page.load(0, Ordering::Acquire)?;
        let [read, written] = [0, 32].map(|shift| (pointers >> shift) as u32);
        if read == written {
            return Ok(None);
        }
        let (low, mut data) = self.slot(read)?;
        let size = 1 << (low >> 10 & 3);
        let slots: u32 = if size == 8 {
            data |= self.slot(read.wrapping_add(1))?.1 << 32;
            2
        } else {
            1
        };
        let raw = Raw {
            type_: low.to_le_bytes()[0],
            address: u64::from(low >> 12),
            data,
            count: 1,
            size,
            data_is_ptr: false,
            is_read: low >> 9 & 1 == 1,
            backwards: false,
        };
        // Atomically, because Xen may be changing the pointer.
        page.fetch_add(abi::BUFFERED_READ_POINTER as usize, slots)?;
        Ok(Some(raw))
    }

    /// Reads a slot: type (8 bits), padding (1), direction (1), size (2) and address (20), then 32 bits of data.
    fn slot(&self, pointer: u32) -> Result<(u32, u64)> {
        let at = (abi::BUFFERED_SLOTS + pointer % abi::IOREQ_BUFFER_SLOT_NUM * SLOT) as usize;
        let page = self.0.view();
        Ok((page.read(at)?, u64::from(page.read::<u32>(at + 4)?)))
    }
}
