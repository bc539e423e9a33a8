//! The page of synchronous requests: a slot for each vcpu, which Xen fills and waits for.

use std::fmt;
use std::sync::atomic::Ordering;

use crate::abi;
use crate::error::Result;
use crate::handle::ResourceMapping;
use crate::mapping::Access;

/// The slots of a page (`struct ioreq`, 32 bytes).
pub(super) const SLOTS: u32 = 128;

/// The state is in the lower half of this byte (`struct ioreq`'s bit fields); the upper half holds flags.
pub(super) const STATE: usize = 30;
const STATE_MASK: u8 = 0xF;
const DATA_IS_PTR: u8 = 1 << 4;
const IS_READ: u8 = 1 << 5;
const BACKWARDS: u8 = 1 << 6;

/// There is no request.
pub(super) const NONE: u8 = state(abi::STATE_IOREQ_NONE);
/// Xen has made a request.
pub(super) const READY: u8 = state(abi::STATE_IOREQ_READY);
/// It was taken.
pub(super) const IN_PROCESS: u8 = state(abi::STATE_IOREQ_INPROCESS);
/// It was answered, and Xen has not seen that yet.
pub(super) const ANSWERED: u8 = state(abi::STATE_IORESP_READY);

/// A page that is shared with Xen: a mapping, or, to test all interleavings, loom's memory.
pub(super) trait Page: fmt::Debug {
    /// Loads a byte. What was written before it was stored can be read from then on.
    fn load(&self, at: usize) -> Result<u8>;

    fn store(&self, at: usize, byte: u8, order: Ordering) -> Result<()>;

    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N]>;

    fn write(&self, at: usize, bytes: &[u8]) -> Result<()>;
}

impl Page for ResourceMapping {
    fn load(&self, at: usize) -> Result<u8> {
        self.view().load(at, Ordering::Acquire)
    }

    fn store(&self, at: usize, byte: u8, order: Ordering) -> Result<()> {
        self.view().store(at, byte, order)
    }

    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.view().read_bytes(at, &mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.view().write_bytes(at, bytes)
    }
}

/// A request as Xen has written it: a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) type_: u8,
    pub(super) address: u64,
    /// The value to write, or the guest-physical address of the values.
    pub(super) data: u64,
    pub(super) count: u32,
    pub(super) size: u32,
    pub(super) data_is_ptr: bool,
    pub(super) is_read: bool,
    /// Whether addresses go down from one value to the next.
    pub(super) backwards: bool,
}

#[derive(Debug)]
pub(super) struct Slots<P>(P);

impl<P: Page> Slots<P> {
    pub(super) fn new(page: P) -> Slots<P> {
        Slots(page)
    }

    /// Returns the port on which Xen sends and receives the events of a vcpu; 0 if there is none yet.
    pub(super) fn port(&self, vcpu: u32) -> Result<u32> {
        self.0.read(at(vcpu, abi::IOREQ_VP_EPORT)).map(u32::from_ne_bytes)
    }

    /// Returns the ports of all vcpus that Xen knows: at least one, which is 0 if it knows none.
    pub(super) fn ports(&self) -> Result<Vec<u32>> {
        let mut ports = vec![self.port(0)?];
        for vcpu in 1..SLOTS {
            match self.port(vcpu)? {
                0 => break,
                port => ports.push(port),
            }
        }
        Ok(ports)
    }

    /// Returns the state of a vcpu's request.
    pub(super) fn state(&self, vcpu: u32) -> Result<u8> {
        Ok(self.0.load(at(vcpu, 0) + STATE)? & STATE_MASK)
    }

    /// Takes a vcpu's request. Its state must have been [`READY`] or, if another process had taken it,
    /// [`IN_PROCESS`]. Only one caller at a time may do so.
    ///
    /// Xen changes neither the state nor the request until it is answered, so the state need not be exchanged
    /// atomically.
    pub(super) fn take(&self, vcpu: u32) -> Result<Raw> {
        let (page, slot) = (&self.0, at(vcpu, 0));
        let flags = page.load(slot + STATE)?;
        page.store(slot + STATE, flags & !STATE_MASK | IN_PROCESS, Ordering::Relaxed)?;
        let bytes = page.read(slot)?;
        let [type_] = field(&bytes, abi::IOREQ_TYPE);
        Ok(Raw {
            type_,
            address: u64::from_ne_bytes(field(&bytes, abi::IOREQ_ADDR)),
            data: u64::from_ne_bytes(field(&bytes, abi::IOREQ_DATA)),
            count: u32::from_ne_bytes(field(&bytes, abi::IOREQ_COUNT)),
            size: u32::from_ne_bytes(field(&bytes, abi::IOREQ_SIZE)),
            data_is_ptr: flags & DATA_IS_PTR != 0,
            is_read: flags & IS_READ != 0,
            backwards: flags & BACKWARDS != 0,
        })
    }

    /// Answers a request that was taken. Xen looks at the answer when it is notified, or before.
    pub(super) fn answer(&self, vcpu: u32, data: Option<u64>) -> Result<()> {
        let (page, slot) = (&self.0, at(vcpu, 0));
        if let Some(data) = data {
            page.write(at(vcpu, abi::IOREQ_DATA), &data.to_ne_bytes())?;
        }
        let flags = page.load(slot + STATE)?;
        page.store(slot + STATE, flags & !STATE_MASK | ANSWERED, Ordering::Release)
    }
}

fn at(vcpu: u32, field: u32) -> usize {
    (vcpu * abi::IOREQ_BYTES + field) as usize
}

/// Returns a field of a slot.
fn field<const N: usize>(slot: &[u8; abi::IOREQ_BYTES as usize], at: u32) -> [u8; N] {
    std::array::from_fn(|i| slot[at as usize + i])
}

/// Returns a state as it is in a slot.
#[expect(clippy::cast_possible_truncation, reason = "states have 4 bits")]
const fn state(number: u32) -> u8 {
    assert!(number <= STATE_MASK as u32);
    number as u8
}
