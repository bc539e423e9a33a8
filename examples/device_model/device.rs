//! What the threads of the queues share with the thread that serves the registers.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::GuestAddressSpace;
use xenmap::vm_memory::CachedMemory;

use super::disk::Disk;
use super::lock;
use super::queue::{Broken, Ring, VirtQueue};
use super::signals::{NO_VECTOR, Signals};

/// The bits of the status register that the device looks at.
pub(crate) const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
pub(crate) const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
pub(crate) const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// A virtio device: a disk with its queues.
///
/// A thread that has locked a queue's ring may lock the interrupts (`signals`), but not the other way round. The thread
/// that serves the registers locks a ring only to enable or reset its queue, or when bus mastering ends, so it seldom
/// waits for a request.
pub(crate) struct Device {
    pub(crate) memory: CachedMemory,
    pub(crate) disk: Disk,
    pub(crate) queues: Vec<VirtQueue>,
    pub(crate) signals: Signals,
    /// Whether the device may access the guest's memory.
    pub(crate) is_bus_master: AtomicBool,
    /// What driver and device have come to (8 bits).
    pub(crate) status: AtomicU32,
    /// The features that the driver has accepted.
    pub(crate) accepted: AtomicU64,
    /// Whether the threads of the queues are to end, although there may be more requests.
    pub(crate) is_stopping: AtomicBool,
}

impl Device {
    /// Returns the features that the device offers.
    pub(crate) fn offered(&self) -> u64 {
        self.disk.features() | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// Returns whether the device can work with the features that the driver has accepted.
    pub(crate) fn can_accept(&self) -> bool {
        self.accepted.load(Ordering::SeqCst) & !self.offered() == 0 && self.has_accepted(VIRTIO_F_VERSION_1)
    }

    pub(crate) fn has_accepted(&self, feature: u32) -> bool {
        self.accepted.load(Ordering::SeqCst) & 1 << feature != 0
    }

    /// Serves the requests of a queue until it has none. Between two of them, the driver may reset the device, or the
    /// device may stop.
    pub(crate) fn serve(&self, queue: usize) {
        while self.serve_next(queue) {}
    }

    /// Serves the next request of a queue, if there is one.
    fn serve_next(&self, queue: usize) -> bool {
        let Some(queue) = self.queues.get(queue) else { return false };
        let ring = &mut lock(&queue.ring);
        let is_running = self.status.load(Ordering::SeqCst) & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        let is_running = is_running && !self.is_stopping.load(Ordering::SeqCst);
        if !is_running || !self.is_bus_master.load(Ordering::SeqCst) || !ring.is_ready() {
            return false;
        }
        // SeaBIOS before 1.16.1 enables its queue first, and then accepts features.
        ring.set_event_index(self.has_accepted(VIRTIO_RING_F_EVENT_IDX));
        self.try_next(queue, ring).unwrap_or_else(|broken| {
            self.fail(&broken);
            false
        })
    }

    fn try_next(&self, queue: &VirtQueue, ring: &mut Ring) -> Result<bool, Broken> {
        // What this maps stays so until it is dropped, so each request has its own.
        let memory = self.memory.memory();
        let Some(chain) = ring.take(&memory)? else { return Ok(false) };
        let head = chain.head;
        let written = self.disk.serve(self.memory.cache(), chain, self.accepted.load(Ordering::SeqCst))?;
        if ring.answer(&memory, head, written)? {
            self.signals.queue(queue.vector());
        }
        Ok(true)
    }

    /// Lets the device access the guest's memory, or not: then this returns once the requests under way are done.
    /// Returns whether it may do so now, but could not before.
    pub(crate) fn set_bus_master(&self, is_bus_master: bool) -> bool {
        let was_bus_master = self.is_bus_master.swap(is_bus_master, Ordering::SeqCst);
        if was_bus_master && !is_bus_master {
            self.queues.iter().for_each(|queue| drop(lock(&queue.ring)));
        }
        is_bus_master && !was_bus_master
    }

    /// Begins to use a queue, which the driver has set up like this.
    pub(crate) fn enable(&self, queue: usize, setup: &Queue) {
        let Some(queue) = self.queues.get(queue) else { return };
        if let Err(broken) = lock(&queue.ring).enable(setup, &self.memory.memory()) {
            self.fail(&broken);
        }
    }

    /// Stops until the driver resets the device, and tells the driver.
    pub(crate) fn fail(&self, broken: &Broken) {
        log::warn!("the device needs a reset: {broken}");
        if self.status.fetch_or(NEEDS_RESET, Ordering::SeqCst) & DRIVER_OK != 0 {
            self.signals.configuration();
        }
    }

    /// Forgets all that the driver has set up, once the requests under way are done.
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst); // so that no queue begins another request
        for queue in &self.queues {
            lock(&queue.ring).reset();
            queue.set_vector(NO_VECTOR);
        }
        self.accepted.store(0, Ordering::SeqCst);
        self.signals.reset();
        self.status.store(0, Ordering::SeqCst); // also if a request under way has failed
    }
}
