//! A queue of requests in the guest's memory, which rust-vmm's `virtio-queue` walks.

use std::error::Error;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;
use xenmap::vm_memory::PinnedMemory;

use super::buffers::Buffers;
use super::signals::NO_VECTOR;

/// The most requests in a queue, and descriptors in a request.
pub(crate) const QUEUE_SIZE: u16 = 128;

/// A queue.
pub(crate) struct VirtQueue {
    /// Locked while a request is served, which may take long.
    pub(crate) ring: Mutex<Ring>,
    /// The vector of its interrupts, which the driver may change at any time.
    vector: AtomicU16,
}

/// A queue as the thread that serves it sees it.
pub(crate) struct Ring(Queue);

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
        Ok(VirtQueue { ring: Mutex::new(Ring(Queue::new(QUEUE_SIZE)?)), vector: AtomicU16::new(NO_VECTOR) })
    }

    pub(crate) fn vector(&self) -> u16 {
        self.vector.load(Ordering::SeqCst)
    }

    pub(crate) fn set_vector(&self, vector: u16) {
        self.vector.store(vector, Ordering::SeqCst);
    }

    /// Returns what another process needs to know of the queue, which the driver has set up like this.
    pub(crate) fn state(&self, setup: &Queue) -> [u64; 6] {
        let (size, is_ready, vector) = (setup.size().into(), setup.ready().into(), self.vector().into());
        [size, is_ready, vector, setup.desc_table(), setup.avail_ring(), setup.used_ring()]
    }

    /// Takes what another process knew of the queue. Returns whether the driver had enabled it; `None` if the numbers
    /// make no sense.
    pub(crate) fn restore(&self, setup: &mut Queue, numbers: &[u64]) -> Option<bool> {
        let &[size, is_ready, vector, descriptors, available, used] = numbers else { return None };
        self.set_vector(vector.try_into().ok()?);
        setup.try_set_size(size.try_into().ok()?).ok()?;
        setup.try_set_desc_table_address(GuestAddress(descriptors)).ok()?;
        setup.try_set_avail_ring_address(GuestAddress(available)).ok()?;
        setup.try_set_used_ring_address(GuestAddress(used)).ok()?;
        Some(is_ready != 0)
    }
}

impl Ring {
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    /// Returns whether the driver has enabled the queue.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.ready()
    }

    /// Begins to use the queue, which the driver has set up like this.
    pub(crate) fn enable(&mut self, setup: &Queue, memory: &PinnedMemory) -> Result<(), Broken> {
        self.0 = Queue::try_from(setup.state())?;
        if self.0.is_valid(memory) { Ok(()) } else { Err("a queue is not in the guest's memory".into()) }
    }

    /// Says whether driver and device tell each other when to notify next.
    pub(crate) fn set_event_index(&mut self, is_used: bool) {
        self.0.set_event_idx(is_used);
    }

    /// Goes on with a queue of which another process has served a part. It has answered the requests in their order,
    /// so the number of answers is also that of the next request.
    pub(crate) fn resume(&mut self, memory: &PinnedMemory) -> Result<(), Broken> {
        let answered = self.0.used_idx(memory, Ordering::Acquire)?.0;
        self.0.set_next_avail(answered);
        self.0.set_next_used(answered);
        Ok(())
    }

    /// Takes the next request. If there is none, the driver will notify the device of the next one.
    pub(crate) fn take(&mut self, memory: &Arc<PinnedMemory>) -> Result<Option<Chain>, Broken> {
        loop {
            let available = self.0.avail_idx(&**memory, Ordering::Acquire)?.0;
            if let Some(chain) = self.0.iter(Arc::clone(memory))?.next() {
                return read(chain).map(Some);
            }
            if available != self.0.next_avail() {
                return Err("the ring of requests cannot be read".into());
            }
            if !self.0.enable_notification(&**memory)? {
                return Ok(None);
            }
        }
    }

    /// Answers a request. Returns whether the driver wants an interrupt for that.
    pub(crate) fn answer(&mut self, memory: &PinnedMemory, head: u16, written: u32) -> Result<bool, Broken> {
        self.0.add_used(memory, head, written)?;
        Ok(self.0.needs_notification(memory)?)
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
