//! A simulated Xen host, so that programs and their tests run on any Linux, without Xen and without root.
//!
//! A [`MockHost`] is a hypervisor, the kernel of a dom0 and any number of guests. [`MockHost::open`] returns an
//! ordinary [`ForeignMemory`](crate::ForeignMemory), so the code under test is the code that runs on Xen.
//!
//! - Simulated: the RAM of guests, and how they change it; the system calls on /dev/xen/privcmd, with the errors and
//!   side effects of each kind of dom0 and version of Linux; the hypercalls that this library makes; references to
//!   frames, and the zombies that they cause; [failures on demand](Fault).
//! - Simulated for device models: [ioreq servers](crate::device_model::IoreqServer), event channels, interrupts, and the
//!   guest's [processors](MockVcpu), as far as they access devices.
//! - Not simulated: processors that run a guest's code, devices (an HVM guest has no QEMU), xenstore (except for names),
//!   and time.
//!
//! A test of code that maps memory, here a function that answers a request there:
//!
//! ```
//! use xenmap::mock::{Fault, MockHost};
//! use xenmap::{Access, Domid, ForeignMemory, Gfn, GuestKind, Protection};
//!
//! fn serve(memory: &ForeignMemory, domid: Domid, request: Gfn) -> xenmap::Result<()> {
//!     let mapping = memory.map_foreign_batch(domid, Protection::ReadWrite, &[request])?;
//!     let mut text = [0; 5];
//!     mapping.view().read_bytes(0, &mut text)?;
//!     text.make_ascii_uppercase();
//!     mapping.view().write_bytes(0, &text)
//! }
//!
//! let host = MockHost::new();
//! let guest = host.create_domain(GuestKind::Hvm, 8);
//! let memory = host.open()?;
//! let request = guest.frames()[3];
//! guest.write(request, 0, b"hello"); // as the guest's driver does
//!
//! serve(&memory, guest.domid(), request)?;
//! assert_eq!(guest.read(request, 0, 5), b"HELLO");
//! assert_eq!(host.references(guest.domid()), 0); // everything is unmapped again
//!
//! host.inject(Fault::MapBatch(libc::ENOMEM));
//! assert_eq!(serve(&memory, guest.domid(), request).unwrap_err().errno(), libc::ENOMEM);
//! guest.destroy();
//! assert!(serve(&memory, guest.domid(), request).is_err());
//! assert_eq!(host.zombies(), []); // the device does not keep a dead guest alive
//! # Ok::<(), xenmap::Error>(())
//! ```
//!
//! # Testing a device
//!
//! Each method of a [`MockVcpu`] is an instruction of the guest, which waits until the device has answered:
//!
//! ```
//! use std::sync::Arc;
//! use std::thread;
//!
//! use xenmap::device_model::{EventChannels, Interrupts, IoRange, IoreqServer, Registers, Target};
//! use xenmap::mock::MockHost;
//! use xenmap::{Access, Gfn, Guest, GuestKind, MapCache, Protection};
//!
//! /// The device under test: who writes an address to it gets the text there in capitals, and an interrupt.
//! struct Shouter {
//!     cache: Arc<MapCache>,
//!     interrupts: Interrupts,
//! }
//!
//! impl Shouter {
//!     fn shout(&self, address: u64) -> xenmap::Result<()> {
//!         let text = self.cache.get(Protection::ReadWrite, address, 5)?;
//!         let mut bytes = [0; 5];
//!         text.read_bytes(0, &mut bytes)?;
//!         bytes.make_ascii_uppercase();
//!         text.write_bytes(0, &bytes)?;
//!         self.interrupts.send_msi(0xFEE0_0000, 0x21)
//!     }
//! }
//!
//! impl Registers for Shouter {
//!     fn read(&mut self, _: Target, _size: usize) -> u64 {
//!         0
//!     }
//!
//!     fn write(&mut self, _: Target, _size: usize, address: u64) {
//!         let _ = self.shout(address); // an address without RAM is the guest's own fault
//!     }
//! }
//!
//! let host = MockHost::new();
//! let domain = host.create_domain(GuestKind::Pvh, 16);
//! let memory = host.open()?;
//! let guest = Guest::open(&memory, domain.domid())?;
//! let cache = Arc::new(MapCache::new(guest.clone()));
//! let server = IoreqServer::create(Arc::clone(&cache), EventChannels::open(&memory)?)?;
//! server.add_range(IoRange::memory(0xF000_0000, 0xF000_0007))?;
//! let mut shouter = Shouter { cache, interrupts: Interrupts::new(guest) };
//! let device = thread::spawn(move || server.run(&mut shouter).map(|()| shouter.cache.close()));
//!
//! domain.write(Gfn::new(3)?, 0, b"hello"); // the guest's driver
//! domain.vcpu(0).write(0xF000_0000, 8, 0x3000)?;
//! assert_eq!(domain.wait_for_msi(), Some((0xFEE0_0000, 0x21)));
//! assert_eq!(domain.read(Gfn::new(3)?, 0, 5), b"HELLO");
//! domain.vcpu(0).write(0xF000_0000, 8, 0xDEAD_0000)?; // a broken driver does the device no harm
//!
//! domain.destroy(); // ends the device's loop
//! device.join().unwrap()?;
//! assert_eq!(host.zombies(), []);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A device model that breaks Xen's rules [crashes](MockDomain::crash_reason) the guest as on Xen, and its processors
//! say why. What would harm Xen itself panics with an explanation: an ISA interrupt for a guest that is not HVM, or a
//! request to a server whose page was never mapped. Where no answer comes, a processor waits forever, until the guest is
//! [destroyed](MockDomain::destroy).
//!
//! # What is real
//!
//! The mock is a backend at the level of system calls: the library above it is the same as on Xen. A guest's RAM is a
//! memory file, and a mapping maps pages of it, so two mappings of one frame are the same memory. Touching a frame that
//! a PV dom0 could not map raises a real SIGBUS. References are counted from the kernel's own tables of this process
//! and its children (/proc/PID/maps): any munmap drops them, whoever calls it, and so does the death of a process.
//! Nothing else does.
//!
//! Each count also compares the mappings with how they were made. It panics with an explanation if one was partly
//! unmapped, had its protection changed, or was moved, all of which go wrong on Xen.
//!
//! # What differs from Xen
//!
//! - If other code than the library unmaps part of a mapping, the mock does not refuse it, but finds it at the next
//!   count.
//! - In an auto-translated dom0, a write to a failed frame goes to a private copy instead of being discarded.
//! - The kernel can pin the memory: `O_DIRECT`, vmsplice, `process_vm_readv` and registered `io_uring` buffers work
//!   here and fail with EFAULT on Xen. /proc/PID/mem works here too.
//! - madvise(2) takes advice that real mappings refuse, and the memory counts as this process's.
//! - A single frame far from its neighbours needs a kernel mapping (VMA) of its own, so a batch of more than
//!   `vm.max_map_count` of such frames fails with ENOMEM.
//! - A forked child has its own copy of the host's state, as it was at the fork, and sees only its own references and
//!   those of its children. It can map, but it frees nothing, and giving a domain memory there panics.
//! - In an Arm dom0, touching a failed frame aborts the process with an explanation. A SIGBUS handler does so, which
//!   the first Arm host installs; a handler installed later gets the signal instead. On Xen no handler can catch it.
//! - A system call that touches such a frame fails with EFAULT. On Xen it crashes the kernel, and never returns.
//! - The pages of an Arm dom0 may be larger than a frame, but its mappings begin at any multiple of 4096.
//! - [`HostConfig::dom0_free_frames`] is for each process, and frames are free again as soon as they are unmapped.
//! - Time and locks are those of Linux. What calls would cost on Xen is counted instead: [`MockHost::hypercalls`].
//! - A populate-on-demand guest whose pool is empty crashes at once. Xen first looks for pages of zeros to reclaim.
//! - The count of hypercalls includes neither updates of this process's page tables nor the death of a process.
//!
//! For device models:
//!
//! - Device model operations that this library does not make fail with EOPNOTSUPP. A buffer that cannot be read or
//!   written ends the process instead of failing with EFAULT.
//! - An Arm host has no ioreq servers (ENOSYS): most builds of Xen have none there.
//! - An HVM guest has no QEMU, so its first server has the number 0, and no frames for the pages of a server (ENOMEM).
//! - If a device model has spoiled the page of requests before Xen uses it, the guest crashes. On Xen an access to memory
//!   raises an exception in the guest instead.
//! - Xen sees an answer only when it is notified, and notices each state that goes back. A real Xen may happen to look
//!   earlier, or not to look.
//! - A guest's interrupt controller takes every message, and counts every change of a line, whoever is to receive it.
//!   Messages to a vcpu that does not exist are kept too.
//! - The log of modified memory has only what device models report, not what the guest writes.
//! - Ballooning is vcpu 0's: it waits until all device models have forgotten their mappings. A paused guest makes up for
//!   it with the first instruction after it is unpaused.
//! - Events are never lost, except by [`Fault::LostEvents`]; the descriptor is that of a pipe, and can only be polled.
//! - In a forked child, device model operations and event channels fail with ENODEV, and processors panic.

mod config;
mod counts;
mod device_model;
mod domain;
mod domain_frames;
mod driver;
mod fatal;
mod fault;
mod first_touch;
mod frame_info;
mod host;
mod hypercalls;
mod load;
mod m2p;
mod machine;
mod memory;
mod pages;
mod pv_guest;
mod references;
mod resource;
mod state;
#[cfg(test)]
mod tests;
mod toolstack;
mod vcpu;

pub use config::{Dom0, HostConfig};
pub use counts::Hypercalls;
pub use device_model::{MockLine, MockRep, MockVcpu, VcpuStopped};
pub use domain::MockDomain;
pub use fault::Fault;
pub use host::MockHost;
pub use pv_guest::{PvHole, PvKernel};
pub use state::Vcpu;
