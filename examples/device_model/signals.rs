//! What a virtio device tells its driver: that a queue has answers, or that the configuration has changed.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::lock;
use super::msix::Msix;

/// The number that means "no vector".
pub(crate) const NO_VECTOR: u16 = 0xFFFF;

/// The bits of the interrupt status register (ISR).
const QUEUE: u8 = 1;
const CONFIGURATION: u8 = 2;

/// The device's vectors, and the interrupt status for drivers that poll it, such as `SeaBIOS`.
pub(crate) struct Signals {
    msix: Mutex<Msix>,
    config_vector: AtomicU16,
    status: AtomicU8,
}

impl Signals {
    pub(crate) fn new(msix: Msix) -> Signals {
        Signals { msix: Mutex::new(msix), config_vector: AtomicU16::new(NO_VECTOR), status: AtomicU8::new(0) }
    }

    pub(crate) fn msix(&self) -> MutexGuard<'_, Msix> {
        lock(&self.msix)
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::SeqCst);
    }

    /// Returns a vector that a driver has chosen, or [`NO_VECTOR`] if it does not exist: the driver reads it again, and
    /// notices.
    pub(crate) fn existing(&self, vector: u16) -> u16 {
        if self.msix().has(vector) { vector } else { NO_VECTOR }
    }

    /// Says that the queue with this vector has answers.
    pub(crate) fn queue(&self, vector: u16) {
        let mut msix = self.msix();
        if !msix.is_enabled() {
            self.status.fetch_or(QUEUE, Ordering::SeqCst);
        }
        msix.raise(vector);
    }

    /// Says that the configuration or the status has changed.
    pub(crate) fn configuration(&self) {
        self.status.fetch_or(CONFIGURATION, Ordering::SeqCst);
        self.msix().raise(self.config_vector());
    }

    /// Returns the interrupt status, and clears it.
    pub(crate) fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::SeqCst)
    }

    pub(crate) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.take_status();
        self.msix().withdraw();
    }
}
