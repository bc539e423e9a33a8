//! Serves a guest's devices: ioreq servers, event channels and interrupts.
//!
//! An [`IoreqServer`] receives the accesses of a guest's vcpus to the ports, addresses and PCI functions of a device.
//! Each access is a [`Request`], for whose answer the vcpu waits. [`Interrupts`] interrupts the guest, and a
//! [`MapCache`](crate::MapCache) is the device's way to the guest's RAM. A PVH guest without any other device model can
//! be served as well as an HVM guest next to QEMU.
//!
//! A device is anything with [`Registers`]. This one is a register that counts how often it is read:
//!
//! ```
//! use std::sync::Arc;
//! use std::thread;
//!
//! use xenmap::device_model::{EventChannels, IoRange, IoreqServer, Registers, Target};
//! use xenmap::mock::MockHost;
//! use xenmap::{Guest, GuestKind, MapCache};
//!
//! struct Counter(u64);
//!
//! impl Registers for Counter {
//!     fn read(&mut self, _: Target, _size: usize) -> u64 {
//!         self.0 += 1;
//!         self.0
//!     }
//!
//!     fn write(&mut self, _: Target, _size: usize, value: u64) {
//!         self.0 = value;
//!     }
//! }
//!
//! let host = MockHost::new(); // on Xen: let memory = xenmap::ForeignMemory::open()?;
//! let domain = host.create_domain(GuestKind::Pvh, 16);
//! let memory = host.open()?;
//!
//! let guest = Guest::open(&memory, domain.domid())?;
//! let events = EventChannels::open(&memory)?;
//! memory.restrict(domain.domid())?; // from now on, both can only be used for this guest
//! events.restrict(domain.domid())?;
//!
//! let server = IoreqServer::create(Arc::new(MapCache::new(guest)), events)?;
//! server.add_range(IoRange::ports(0x500, 0x503))?;
//! let device = thread::spawn(move || server.run(&mut Counter(0)));
//!
//! let vcpu = domain.vcpu(0); // the guest's side: its processor waits for each answer
//! vcpu.port_out(0x500, 4, 41)?;
//! assert_eq!(vcpu.port_in(0x500, 4)?, 42);
//! domain.destroy();
//! device.join().unwrap()?; // the server has noticed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod event_channels;
mod inbox;
mod interrupts;
#[cfg(all(test, loom))]
mod loom;
mod range;
mod registration;
mod request;
mod ring;
mod server;
mod shared;
mod slots;
mod sync;
#[cfg(all(test, feature = "mock", not(loom)))]
mod tests;

pub use event_channels::{EventChannel, EventChannels};
pub use interrupts::{InterruptLine, Interrupts};
pub use range::{IoRange, Sbdf, Target};
pub use request::{Registers, Request};
pub use server::{Event, IoreqServer, ServerId};
