//! The registers in the function's memory, by which a driver uses a virtio device (virtio-pci, 1.x only).

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use virtio_queue::{Queue, QueueT};

use super::device::{DRIVER_OK, Device, FEATURES_OK, NEEDS_RESET};
use super::queue::{QUEUE_SIZE, VirtQueue};
use super::registers::Block;
use super::signals::NO_VECTOR;

/// The size of the function's memory, and where its parts are.
pub(crate) const SIZE: u32 = 32 << 10;
pub(crate) const COMMON: u32 = 0x0000;
pub(crate) const ISR: u32 = 0x1000;
pub(crate) const CONFIGURATION: u32 = 0x2000;
pub(crate) const NOTIFY: u32 = 0x3000;
pub(crate) const MESSAGES: u32 = 0x4000;
pub(crate) const PENDING: u32 = 0x5000;
const PART: u32 = 0x1000;

/// The distance of the registers by which the driver notifies two queues.
pub(crate) const NOTIFY_STEP: u32 = 4;

/// The addresses of a queue's parts: the descriptors, the available ring and the used ring.
const ADDRESSES: RangeInclusive<u64> = 0x20..=0x37;

/// The registers, which only one thread serves.
pub(crate) struct Transport<'a> {
    device: &'a Device,
    configuration: Block,
    /// Wakes the threads of the queues.
    bells: Vec<SyncSender<()>>,
    /// What the driver has set up of each queue.
    setups: Vec<Queue>,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
}

impl<'a> Transport<'a> {
    pub(crate) fn new(device: &'a Device, bells: Vec<SyncSender<()>>) -> Result<Transport<'a>, virtio_queue::Error> {
        let configuration = device.disk.configuration();
        let setups = device.queues.iter().map(|_| Queue::new(QUEUE_SIZE)).collect::<Result<_, _>>()?;
        Ok(Transport { device, configuration, bells, setups, device_select: 0, driver_select: 0, queue_select: 0 })
    }

    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// Returns what the driver reads at an offset of the function's memory.
    pub(crate) fn read(&self, at: u32, size: usize) -> u64 {
        let in_part = u64::from(at % PART);
        match at - at % PART {
            COMMON => self.read_common(in_part, size),
            ISR if in_part == 0 => self.device.signals.take_status().into(),
            CONFIGURATION => self.configuration.read(in_part, size),
            MESSAGES => self.device.signals.msix().read_table(in_part, size),
            PENDING => self.device.signals.msix().read_pending(in_part, size),
            _ => 0,
        }
    }

    /// Takes what the driver writes at an offset of the function's memory.
    pub(crate) fn write(&mut self, at: u32, size: usize, value: u64) {
        let in_part = u64::from(at % PART);
        match at - at % PART {
            COMMON => self.write_common(in_part, size, value),
            NOTIFY => self.ring((at % PART / NOTIFY_STEP) as usize),
            MESSAGES => self.device.signals.msix().write_table(in_part, size, value),
            _ => {}
        }
    }

    /// Wakes the thread of a queue. A thread that is awake looks for requests once more.
    fn ring(&self, queue: usize) {
        if let Some(bell) = self.bells.get(queue) {
            let _ = bell.try_send(());
        }
    }

    /// Wakes the threads of all queues.
    pub(crate) fn ring_all(&self) {
        (0..self.bells.len()).for_each(|queue| self.ring(queue));
    }

    fn of_queue<T>(&self, read: impl FnOnce(&Queue) -> T) -> Option<T> {
        self.setups.get(usize::from(self.queue_select)).map(read)
    }

    /// Returns the queue that the driver has selected, if it exists.
    fn queue(&self) -> Option<&'a VirtQueue> {
        self.device.queues.get(usize::from(self.queue_select))
    }

    /// A driver accesses each register with its own size, and halves of those of 8 bytes. Others are zero.
    fn read_common(&self, at: u64, size: usize) -> u64 {
        match (at, size) {
            (0x00, 4) => self.device_select.into(),
            (0x04, 4) => half(self.device.offered(), self.device_select),
            (0x08, 4) => self.driver_select.into(),
            (0x0C, 4) => half(self.device.accepted.load(Ordering::SeqCst), self.driver_select),
            (0x10, 2) => self.device.signals.config_vector().into(),
            (0x12, 2) => self.device.queues.len() as u64,
            (0x14, 1) => self.device.status.load(Ordering::SeqCst).into(),
            (0x16 | 0x1E, 2) => self.queue_select.into(), // and the number of the queue's notification register
            (0x18, 2) => self.of_queue(QueueT::size).unwrap_or(0).into(),
            (0x1A, 2) => self.queue().map_or(NO_VECTOR, VirtQueue::vector).into(),
            (0x1C, 2) => self.of_queue(QueueT::ready).unwrap_or(false).into(),
            (at, 4 | 8) if ADDRESSES.contains(&at) => {
                let addresses = |setup: &Queue| [setup.desc_table(), setup.avail_ring(), setup.used_ring()];
                let bytes = self.of_queue(|setup| addresses(setup).map(u64::to_le_bytes).concat());
                let mut block = Block::new(24);
                block.define(0, &bytes.unwrap_or_default(), &[]);
                block.read(at - ADDRESSES.start(), size)
            }
            _ => 0,
        }
    }

    fn write_common(&mut self, at: u64, size: usize, value: u64) {
        let [b0, b1, b2, b3, ..] = value.to_le_bytes();
        let (short, long) = (u16::from_le_bytes([b0, b1]), u32::from_le_bytes([b0, b1, b2, b3]));
        match (at, size) {
            (0x00, 4) => self.device_select = long,
            (0x08, 4) => self.driver_select = long,
            (0x0C, 4) => self.accept(long),
            (0x10, 2) => self.device.signals.set_config_vector(short),
            (0x14, 1) => self.set_status(b0.into()),
            (0x16, 2) => self.queue_select = short,
            (0x1A, 2) => {
                let vector = self.device.signals.existing(short);
                if let Some(queue) = self.queue() {
                    queue.set_vector(vector);
                }
            }
            _ => self.set_up_queue(at, size, value),
        }
    }

    /// Takes what describes a queue, which does not change any more once the queue is enabled.
    fn set_up_queue(&mut self, at: u64, size: usize, value: u64) {
        let queue = usize::from(self.queue_select);
        let Some(setup) = self.setups.get_mut(queue).filter(|setup| !setup.ready()) else { return };
        match (at, size) {
            (0x18, 2) => setup.set_size(u16::try_from(value).unwrap_or(0)),
            (0x1C, 2) if value == 1 => self.enable(queue),
            (at, 8) if ADDRESSES.contains(&at) => {
                set_address(setup, at, value);
                set_address(setup, at + 4, value >> 32);
            }
            (at, 4) if ADDRESSES.contains(&at) => set_address(setup, at, value),
            _ => {}
        }
    }

    /// Begins to use a queue that the driver has set up.
    pub(crate) fn enable(&mut self, queue: usize) {
        if let Some(setup) = self.setups.get_mut(queue) {
            setup.set_ready(true);
            self.device.enable(queue, setup);
        }
    }

    /// Takes 32 of the features that the driver accepts, which do not change any more once the device has agreed.
    fn accept(&self, features: u32) {
        if self.driver_select < 2 && self.device.status.load(Ordering::SeqCst) & FEATURES_OK == 0 {
            let shift = 32 * self.driver_select;
            let others = self.device.accepted.load(Ordering::SeqCst) & !(u64::from(u32::MAX) << shift);
            self.device.accepted.store(others | u64::from(features) << shift, Ordering::SeqCst);
        }
    }

    fn set_status(&mut self, status: u32) {
        if status == 0 {
            self.device.reset();
            self.setups.iter_mut().for_each(QueueT::reset);
            (self.device_select, self.driver_select, self.queue_select) = (0, 0, 0);
            return;
        }
        let mut taken = status & !NEEDS_RESET;
        if !self.device.can_accept() {
            taken &= !FEATURES_OK; // which the driver notices, as it reads the status again
        }
        if (self.device.status.load(Ordering::SeqCst) | taken) & FEATURES_OK == 0 {
            taken &= !DRIVER_OK;
        }
        self.device.status.fetch_or(taken, Ordering::SeqCst);
        if taken & DRIVER_OK != 0 {
            self.ring_all();
        }
    }

    /// Returns what another process needs to know of each queue.
    pub(crate) fn queues(&self) -> impl Iterator<Item = [u64; 6]> {
        self.device.queues.iter().zip(&self.setups).map(|(queue, setup)| queue.state(setup))
    }

    /// Takes what another process knew of each queue. Returns whether the driver had enabled them; `None` if the
    /// numbers make no sense.
    pub(crate) fn restore_queues<'s>(&mut self, numbers: impl Iterator<Item = &'s [u64]>) -> Option<Vec<bool>> {
        let queues = self.device.queues.iter().zip(&mut self.setups).zip(numbers);
        queues.map(|((queue, setup), numbers)| queue.restore(setup, numbers)).collect()
    }

    /// Returns the registers that select what others show.
    pub(crate) fn selects(&self) -> [u64; 3] {
        [self.device_select.into(), self.driver_select.into(), self.queue_select.into()]
    }

    /// Sets these registers; `None` if they do not have such values.
    pub(crate) fn restore_selects(&mut self, [device, driver, queue]: [u64; 3]) -> Option<()> {
        self.device_select = device.try_into().ok()?;
        self.driver_select = driver.try_into().ok()?;
        self.queue_select = queue.try_into().ok()?;
        Some(())
    }
}

/// Returns whether a driver notifies the device of requests at this offset.
pub(crate) fn is_doorbell(at: u32) -> bool {
    at - at % PART == NOTIFY
}

/// Returns 32 of 64 features.
fn half(features: u64, select: u32) -> u64 {
    if select < 2 { features >> (32 * select) & u64::from(u32::MAX) } else { 0 }
}

/// Sets a half of an address of a queue. `virtio-queue` ignores what is not aligned.
fn set_address(setup: &mut Queue, at: u64, value: u64) {
    let value = u32::try_from(value & u64::from(u32::MAX)).ok();
    match at {
        0x20 => setup.set_desc_table_address(value, None),
        0x24 => setup.set_desc_table_address(None, value),
        0x28 => setup.set_avail_ring_address(value, None),
        0x2C => setup.set_avail_ring_address(None, value),
        0x30 => setup.set_used_ring_address(value, None),
        0x34 => setup.set_used_ring_address(None, value),
        _ => {}
    }
}
