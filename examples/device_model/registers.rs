//! Blocks of registers, of which a guest can change some bits.

/// Little-endian registers at consecutive offsets. A guest reads and writes them with any size.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    /// The bits that the guest can change.
    writable: Vec<u8>,
}

impl Block {
    /// Returns a block of `len` bytes, which are zero and read-only.
    pub(crate) fn new(len: usize) -> Block {
        Block { bytes: vec![0; len], writable: vec![0; len] }
    }

    /// Sets the registers at an offset, and which of their bits the guest can change.
    pub(crate) fn define(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        self.bytes[at..][..value.len()].copy_from_slice(value);
        self.writable[at..][..writable.len()].copy_from_slice(writable);
    }

    /// Returns what the guest reads. Bytes past the end are zero.
    pub(crate) fn read(&self, at: u64, size: usize) -> u64 {
        let mut value = [0; 8];
        for (index, byte) in (at..).zip(value.iter_mut().take(size)) {
            *byte = usize::try_from(index).ok().and_then(|index| self.bytes.get(index)).copied().unwrap_or(0);
        }
        u64::from_le_bytes(value)
    }

    /// Takes what the guest writes. Bytes past the end vanish.
    pub(crate) fn write(&mut self, at: u64, size: usize, value: u64) {
        for (index, byte) in (at..).zip(value.to_le_bytes().into_iter().take(size)) {
            self.set(index, byte);
        }
    }

    /// Sets the bits that the guest can change to those of a saved block.
    pub(crate) fn restore(&mut self, bytes: &[u8]) {
        for (index, &byte) in (0..).zip(bytes) {
            self.set(index, byte);
        }
    }

    fn set(&mut self, index: u64, byte: u8) {
        let Ok(index) = usize::try_from(index) else { return };
        if let (Some(old), Some(writable)) = (self.bytes.get_mut(index), self.writable.get(index)) {
            *old = *old & !writable | byte & writable;
        }
    }

    /// Returns all bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
