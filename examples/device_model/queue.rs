//! A queue of requests in the guest's memory, which rust-vmm's `virtio-queue` walks.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;
use xenmap::vm_memory::PinnedMemory;

use super::buffers::Buffers;
use super::signals::NO_VECTOR;

/// The most requests in a queue, and descriptors in a request.
pub(crate) const QUEUE_SIZE: u16 = 128;

/// A queue, and the vector of its interrupts.
pub(crate) struct VirtQueue {
    pub(crate) ring: Queue,
    pub(crate) vector: u16,
}

/// A request: its number, what the device reads, and what it writes.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Buffers,
    pub(crate) writable: Buffers,
}

/// What the driver has done wrong. The device stops until the driver resets it.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

impl VirtQueue {
    pub(crate) fn new() -> Result<VirtQueue, virtio_queue::Error> {
        Ok(VirtQueue { ring: Queue::new(QUEUE_SIZE)?, vector: NO_VECTOR })
    }

    pub(crate) fn reset(&mut self) {
        self.ring.reset();
        self.vector = NO_VECTOR;
    }

    /// Begins to use the queue, whose addresses the driver has set.
    pub(crate) fn enable(&mut self, memory: &PinnedMemory) -> Result<(), Broken> {
        self.ring.set_ready(true);
        if self.ring.is_valid(memory) { Ok(()) } else { Err("a queue is not in the guest's memory".into()) }
    }

    /// Returns what another process needs to know of the queue.
    pub(crate) fn state(&self) -> [u64; 6] {
        let ring = &self.ring;
        let (size, is_ready, vector) = (ring.size().into(), ring.ready().into(), self.vector.into());
        [size, is_ready, vector, ring.desc_table(), ring.avail_ring(), ring.used_ring()]
    }

    /// Takes what another process knew of the queue. Returns whether the driver had enabled it; `None` if the numbers
    /// make no sense.
    pub(crate) fn restore(&mut self, numbers: &[u64]) -> Option<bool> {
        let &[size, is_ready, vector, descriptors, available, used] = numbers else { return None };
        self.vector = vector.try_into().ok()?;
        self.ring.try_set_size(size.try_into().ok()?).ok()?;
        self.ring.try_set_desc_table_address(GuestAddress(descriptors)).ok()?;
        self.ring.try_set_avail_ring_address(GuestAddress(available)).ok()?;
        self.ring.try_set_used_ring_address(GuestAddress(used)).ok()?;
        Some(is_ready != 0)
    }

    /// Goes on with a queue of which another process has served a part. It has answered the requests in their order,
    /// so the number of answers is also that of the next request.
    pub(crate) fn resume(&mut self, memory: &PinnedMemory) -> Result<(), Broken> {
        let answered = self.ring.used_idx(memory, Ordering::Acquire)?.0;
        self.ring.set_next_avail(answered);
        self.ring.set_next_used(answered);
        Ok(())
    }

    /// Takes the next request. If there is none, the driver will notify the device of the next one.
    pub(crate) fn take(&mut self, memory: &Arc<PinnedMemory>) -> Result<Option<Chain>, Broken> {
        loop {
            let available = self.ring.avail_idx(&**memory, Ordering::Acquire)?.0;
            if let Some(chain) = self.ring.iter(Arc::clone(memory))?.next() {
                return read(chain).map(Some);
            }
            if available != self.ring.next_avail() {
                return Err("the ring of requests cannot be read".into());
            }
            if !self.ring.enable_notification(&**memory)? {
                return Ok(None);
            }
        }
    }

    /// Answers a request. Returns whether the driver wants an interrupt for that.
    pub(crate) fn answer(&mut self, memory: &PinnedMemory, head: u16, written: u32) -> Result<bool, Broken> {
        self.ring.add_used(memory, head, written)?;
        Ok(self.ring.needs_notification(memory)?)
    }
}

/// Reads the descriptors of a request.
fn read(chain: virtio_queue::DescriptorChain<Arc<PinnedMemory>>) -> Result<Chain, Broken> {
    let mut request = Chain { head: chain.head_index(), readable: Buffers::default(), writable: Buffers::default() };
    let mut is_complete = false;
    for (count, descriptor) in chain.enumerate() {
        if count == usize::from(QUEUE_SIZE) {
            return Err("a request has too many descriptors".into());
        }
        let buffers = if descriptor.is_write_only() { &mut request.writable } else { &mut request.readable };
        buffers.push(descriptor.addr().0, descriptor.len());
        is_complete = !descriptor.has_next();
    }
    if is_complete { Ok(request) } else { Err("a request's descriptors have no end".into()) }
}
