//! Requests: what a guest's processor waits for.

use std::sync::Arc;

use super::range::{Sbdf, Target};
use super::shared::Shared;
use super::slots::Raw;
use crate::abi;
use crate::cache::MapCache;
use crate::mapping::Access;
use crate::types::Protection;

/// The most values that a request may have. Xen cuts longer instructions.
const MAX_VALUES: u32 = 4096;

/// The registers of a device: what it answers to a vcpu.
///
/// ```
/// use xenmap::device_model::{Registers, Target};
///
/// /// A register of 32 bits at each of these ports.
/// struct Device {
///     status: u32,
///     control: u32,
/// }
///
/// impl Registers for Device {
///     fn read(&mut self, at: Target, size: usize) -> u64 {
///         match (at, size) {
///             (Target::Port(0x500), 4) => self.status.into(),
///             (Target::Port(0x504), 4) => self.control.into(),
///             _ => u64::MAX, // as where there is no device
///         }
///     }
///
///     fn write(&mut self, at: Target, size: usize, value: u64) {
///         match (at, size) {
///             (Target::Port(0x504), 4) => self.control = value as u32,
///             _ => log::debug!("the guest writes {value:#x} to {at:?}"),
///         }
///     }
/// }
/// ```
pub trait Registers {
    /// Returns the value that the guest reads. `size` is 1, 2, 4 or 8 bytes. Higher bytes of the value are ignored.
    fn read(&mut self, at: Target, size: usize) -> u64;

    /// Receives a value that the guest writes. `size` is 1, 2, 4 or 8 bytes. Higher bytes of the value are 0.
    fn write(&mut self, at: Target, size: usize, value: u64);
}

/// An access of a vcpu, which waits until it is answered.
///
/// The request is a copy, which nobody can change. It may be answered by any thread at any time. If it is dropped
/// instead, the vcpu goes on as if there were no device: it reads ones, and what it writes vanishes.
///
/// Some instructions move several values between the device and the guest's RAM (`rep movs`, `rep ins`, `rep outs`), or
/// write one value to several addresses (`rep stos`). [`serve`](Request::serve) does that for any device.
///
/// ```
/// # use std::sync::Arc;
/// # use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Registers};
/// # use xenmap::mock::MockHost;
/// # use xenmap::{Guest, GuestKind, MapCache};
/// use xenmap::device_model::Target;
///
/// # struct Device;
/// # impl Registers for Device {
/// #     fn read(&mut self, _: Target, _: usize) -> u64 { 0 }
/// #     fn write(&mut self, _: Target, _: usize, _: u64) {}
/// # }
/// # let mut device = Device;
/// # let host = MockHost::new();
/// # let domain = host.create_domain(GuestKind::Pvh, 16);
/// # let memory = host.open()?;
/// # let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// # let server = IoreqServer::create(cache, EventChannels::open(&memory)?)?;
/// # server.add_range(IoRange::ports(0x500, 0x503))?;
/// # let vcpu = domain.vcpu(0);
/// # let guest = std::thread::spawn(move || vcpu.port_out(0x500, 2, 7));
/// let Event::Request(request) = server.next(None)? else { return Err("the guest is gone".into()) };
/// assert_eq!((request.target(), request.size(), request.is_read()), (Target::Port(0x500), 2, false));
/// assert_eq!((request.vcpu(), request.count()), (Some(0), 1));
/// request.serve(&mut device);
/// # guest.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Request {
    raw: Raw,
    target: Target,
    cache: Arc<MapCache>,
    /// `None` if nothing waits: the request was buffered, or has been answered.
    reply: Option<Reply>,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) server: Arc<Shared>,
    pub(super) vcpu: u32,
}

/// What a guest finds where there is no device.
struct Nothing;

impl Registers for Nothing {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        u64::MAX
    }

    fn write(&mut self, _: Target, _: usize, _: u64) {}
}

impl Request {
    /// Returns the request; `None` if no device could understand it.
    pub(super) fn new(raw: Raw, cache: &Arc<MapCache>, reply: Option<Reply>) -> Option<Request> {
        target(&raw).map(|target| Request { raw, target, cache: Arc::clone(cache), reply })
    }

    /// Returns what is accessed: by several values, where the first one goes.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// Returns whether the guest reads.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.raw.is_read
    }

    /// Returns the size of a value in bytes: 1, 2, 4 or 8.
    #[must_use]
    pub fn size(&self) -> usize {
        self.raw.size as usize
    }

    /// Returns the number of values, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.raw.count
    }

    /// Returns the number of the vcpu that waits; `None` if the request was buffered, so that none does.
    #[must_use]
    pub fn vcpu(&self) -> Option<u32> {
        self.reply.as_ref().map(|reply| reply.vcpu)
    }

    /// Passes each value of the request to the device, and answers. Apart from notifying Xen, this makes no system call
    /// unless the cache misses.
    ///
    /// Values in the guest's RAM are read and written through the server's cache. Where there is no RAM, they are read
    /// as ones, and vanish when they are written.
    ///
    /// If the device panics, the request is answered as if it had been dropped.
    pub fn serve(mut self, device: &mut impl Registers) {
        self.complete(device);
    }

    fn complete(&mut self, device: &mut impl Registers) {
        let mut answer = None;
        // Xen splits requests at the end of a page, so where one value has no RAM, those after it have none.
        let mut has_ram = true;
        for index in 0..u64::from(self.raw.count) {
            let at = self.nth(index);
            let size = self.size();
            if self.raw.is_read {
                let value = device.read(at, size);
                if self.raw.data_is_ptr {
                    has_ram = has_ram && self.write_ram(index, value);
                } else {
                    answer = Some(value & self.mask());
                }
            } else {
                let value = if self.raw.data_is_ptr {
                    let read = if has_ram { self.read_ram(index) } else { None };
                    has_ram = read.is_some();
                    read.unwrap_or(u64::MAX)
                } else {
                    self.raw.data
                };
                device.write(at, size, value & self.mask());
            }
        }
        if let Some(reply) = self.reply.take() {
            reply.server.answer(reply.vcpu, answer);
        }
    }

    /// Returns where the value with this index is accessed. Ports and registers stay the same.
    fn nth(&self, index: u64) -> Target {
        match self.target {
            Target::Memory(address) => Target::Memory(self.step(address, index)),
            other => other,
        }
    }

    fn step(&self, address: u64, index: u64) -> u64 {
        let distance = index * u64::from(self.raw.size);
        if self.raw.backwards { address.wrapping_sub(distance) } else { address.wrapping_add(distance) }
    }

    /// Returns the bits of a value.
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.raw.size)
    }

    /// Returns a value in the guest's RAM; `None` if there is no RAM.
    fn read_ram(&self, index: u64) -> Option<u64> {
        let address = self.step(self.raw.data, index);
        let mut bytes = [0; 8];
        let read = self.cache.get(Protection::ReadOnly, address, self.size());
        match read.and_then(|ram| ram.read_bytes(0, &mut bytes[..self.size()])) {
            Ok(()) => Some(u64::from_le_bytes(bytes)),
            Err(e) => {
                log::debug!("a request reads ones: {e}");
                None
            }
        }
    }

    /// Writes a value to the guest's RAM. Returns whether there is RAM.
    fn write_ram(&self, index: u64, value: u64) -> bool {
        let address = self.step(self.raw.data, index);
        let ram = self.cache.get(Protection::ReadWrite, address, self.size());
        let written = ram.and_then(|ram| ram.write_bytes(0, &value.to_le_bytes()[..self.size()]));
        written.inspect_err(|e| log::debug!("what a request reads vanishes: {e}")).is_ok()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.reply.as_ref().is_some_and(|reply| !reply.server.registration.is_inherited()) {
            self.complete(&mut Nothing);
        }
    }
}

/// Returns what a request accesses; `None` if no device can understand it.
fn target(raw: &Raw) -> Option<Target> {
    if !matches!(raw.size, 1 | 2 | 4 | 8) || !(1..=MAX_VALUES).contains(&raw.count) {
        return None;
    }
    match u32::from(raw.type_) {
        abi::IOREQ_TYPE_PIO => u16::try_from(raw.address).ok().map(Target::Port),
        abi::IOREQ_TYPE_COPY => Some(Target::Memory(raw.address)),
        abi::IOREQ_TYPE_PCI_CONFIG => {
            let function = Sbdf::from_number(u32::try_from(raw.address >> 32).ok()?);
            let register = u16::try_from(raw.address & u64::from(u32::MAX)).ok()?;
            Some(Target::Pci { function, register })
        }
        _ => None,
    }
}
