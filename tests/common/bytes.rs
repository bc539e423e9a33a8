//! Structures as Xen reads them, assembled field by field.

#[derive(Clone, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn u8(mut self, value: u8) -> Bytes {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Bytes {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Bytes {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Bytes {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Adds zeros up to a length.
    pub fn up_to(mut self, len: usize) -> Bytes {
        assert!(self.0.len() <= len);
        self.0.resize(len, 0);
        self
    }
}
