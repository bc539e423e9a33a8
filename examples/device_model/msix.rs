//! Message signalled interrupts (MSI-X): a table of messages that the guest fills in, and the bits of those that wait
//! because they are masked (the "pending bit array").

use xenmap::device_model::Interrupts;

use super::registers::Block;

/// The capability's number, and its control register's bits.
pub(crate) const CAPABILITY: u8 = 0x11;
pub(crate) const ENABLED: u16 = 1 << 15;
pub(crate) const ALL_MASKED: u16 = 1 << 14;

/// An entry of the table: the address (8 bytes), the data (4 bytes), and the control (4 bytes).
const ENTRY: usize = 16;
const MASKED: u64 = 1;

pub(crate) struct Msix {
    interrupts: Interrupts,
    table: Block,
    /// Whether each vector's message waits.
    pending: Vec<bool>,
    is_enabled: bool,
    is_masked: bool,
}

impl Msix {
    pub(crate) fn new(interrupts: Interrupts, vectors: u16) -> Msix {
        let mut table = Block::new(usize::from(vectors) * ENTRY);
        for vector in 0..usize::from(vectors) {
            let entry = [&[0; 12][..], &[1, 0, 0, 0]].concat(); // masked at first
            let writable = [&[0xFC][..], &[0xFF; 11], &[1, 0, 0, 0]].concat();
            table.define(vector * ENTRY, &entry, &writable);
        }
        let pending = vec![false; vectors.into()];
        Msix { interrupts, table, pending, is_enabled: false, is_masked: false }
    }

    pub(crate) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.pending.len()
    }

    /// Takes the capability's control register. Messages wait while the function is not a bus master: sending one is a
    /// write to memory.
    pub(crate) fn set_control(&mut self, control: u16, is_bus_master: bool) {
        self.is_enabled = control & ENABLED != 0;
        self.is_masked = control & ALL_MASKED != 0 || !is_bus_master;
        self.send();
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    pub(crate) fn read_table(&self, at: u64, size: usize) -> u64 {
        self.table.read(at, size)
    }

    pub(crate) fn write_table(&mut self, at: u64, size: usize, value: u64) {
        self.table.write(at, size, value);
        self.send();
    }

    /// Returns what the guest reads of the bits of the vectors that wait.
    pub(crate) fn read_pending(&self, at: u64, size: usize) -> u64 {
        let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
        let bits = (0..8 * size).filter(|bit| self.pending.get(first.saturating_add(*bit)) == Some(&true));
        bits.fold(0, |value, bit| value | 1 << bit)
    }

    /// Sends a vector's message, now or when the vector is unmasked. Does nothing if there is no such vector.
    pub(crate) fn raise(&mut self, vector: u16) {
        if let Some(pending) = self.pending.get_mut(usize::from(vector)).filter(|_| self.is_enabled) {
            *pending = true;
            self.send();
        }
    }

    /// Forgets the messages that wait, since their reasons are gone.
    pub(crate) fn withdraw(&mut self) {
        self.pending.fill(false);
    }

    /// Sends the messages that wait and are not masked.
    fn send(&mut self) {
        if !self.is_enabled || self.is_masked {
            return;
        }
        for (vector, pending) in self.pending.iter_mut().enumerate() {
            let entry = (vector * ENTRY) as u64;
            let address = self.table.read(entry, 8);
            let data = u32::try_from(self.table.read(entry + 8, 4)).unwrap_or(0);
            let is_masked = self.table.read(entry + 12, 4) & MASKED != 0;
            if *pending && (!is_masked || is_for_event_channel(address, data)) {
                // Xen refuses a message that makes no sense. While it is masked, the guest may not be done writing it.
                let sent = self.interrupts.send_msi(address, data);
                *pending = is_masked && sent.is_err();
                if let (false, Err(e)) = (*pending, sent) {
                    log::warn!("vector {vector} is lost: {e}");
                }
            }
        }
    }

    pub(crate) fn table(&self) -> &Block {
        &self.table
    }

    pub(crate) fn table_mut(&mut self) -> &mut Block {
        &mut self.table
    }
}

/// Returns whether Xen turns a message into an event: its vector is 0, and its address holds the number of a pirq.
/// Linux in an HVM guest masks the event then, and leaves the message masked, so the mask bit means nothing.
fn is_for_event_channel(address: u64, data: u32) -> bool {
    const LOCAL_APIC: u64 = 0xFEE0_0000;
    let [vector, ..] = data.to_le_bytes();
    address & 0xFFF0_0000 == LOCAL_APIC && vector == 0
}
