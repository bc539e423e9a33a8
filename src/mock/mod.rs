//! A simulated Xen host, so that programs and their tests run on any Linux, without Xen and without root.
//!
//! A [`MockHost`] is a hypervisor, the kernel of a dom0 and any number of guests. [`MockHost::open`] returns an
//! ordinary [`ForeignMemory`](crate::ForeignMemory), so the code under test is the code that runs on Xen.
//!
//! - Simulated: the RAM of guests, and how they change it; the system calls on /dev/xen/privcmd, with the errors and
//!   side effects of each kind of dom0 and version of Linux; the hypercalls that this library makes; references to
//!   frames, and the zombies that they cause; [failures on demand](Fault).
//! - Not simulated: processors that run a guest's code, devices, event channels, xenstore (except for names), and time.
//!
//! A test of a device model, here a function that answers a request in a guest's memory:
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

mod config;
mod counts;
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
mod state;
#[cfg(test)]
mod tests;
mod toolstack;
mod vcpu;

pub use config::{Dom0, HostConfig};
pub use counts::Hypercalls;
pub use domain::MockDomain;
pub use fault::Fault;
pub use host::MockHost;
pub use pv_guest::{PvHole, PvKernel};
pub use state::Vcpu;
