//! A simulated Xen host, for use and tests on any Linux.
//!
//! ```
//! use xenmap::mock::MockHost;
//! use xenmap::{Access, GuestKind, Protection};
//!
//! let host = MockHost::new();
//! let guest = host.create_domain(GuestKind::Hvm, 8);
//! guest.write(guest.frames()[3], 0, b"in frame 3");
//!
//! let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames())?;
//! let mut text = [0; 10];
//! mapping.view().read_bytes(3 * 4096, &mut text)?;
//! assert_eq!(&text, b"in frame 3");
//!
//! guest.destroy();
//! assert_eq!(host.zombies(), [guest.domid()]); // its frames are still mapped
//! drop(mapping);
//! assert_eq!(host.zombies(), []);
//! # Ok::<(), xenmap::Error>(())
//! ```
//!
//! # What is real
//!
//! The host is a backend at the level of system calls, so the library above it is the one that runs on Xen. A guest's
//! RAM is a memory file, and a mapping maps pages of it, so two mappings of one frame are the same memory. A frame that
//! a PV dom0 could not map raises a real SIGBUS. References are counted from the kernel's own tables of this process
//! and its children (/proc/PID/maps): any munmap drops them, whoever calls it, and so does the death of a process;
//! nothing else does.
//!
//! What the kernel would get wrong is found: each count compares the mappings with what was made, and panics with an
//! explanation if one was unmapped in part, had its protection changed, or was moved.
//!
//! # What is not
//!
//! - A munmap of a part of a mapping by somebody else than the library is found at the next count, not refused.
//! - In an auto-translated dom0 a write to a failed frame is kept in a private copy, not discarded.
//! - The kernel can pin the memory: `O_DIRECT`, vmsplice, `process_vm_readv` and registered `io_uring` buffers work
//!   here and fail with EFAULT on Xen. /proc/PID/mem works here too.
//! - madvise(2) takes advice that the real mappings refuse, and memory is counted as this process's.
//! - A single frame far from its neighbours takes a mapping of the kernel's own (a VMA), so a batch of more than
//!   `vm.max_map_count` of such frames fails with ENOMEM here.
//! - A child has its own copy of the host's state, from the moment of the fork, and sees only references of its own
//!   and of its children. It can map, but it frees nothing, and to give a domain memory there is a panic.
//! - In an Arm dom0 an access to a failed frame aborts the process, and says why. It is a handler of SIGBUS that does
//!   so, which the first host of that kind installs: one that is installed later catches the access. On Xen none can.
//! - A system call that is handed such a frame fails with EFAULT. On Xen it breaks the kernel, and never returns.
//! - The pages of an Arm dom0 may be larger than a frame, but its mappings begin at any multiple of 4096.
//! - [`HostConfig::dom0_free_frames`] is for each process, and there again at once for those that are unmapped.
//! - Time and locks are those of Linux. What a call would cost on Xen is counted instead: [`MockHost::hypercalls`].
//! - A populate-on-demand guest whose pool is empty crashes at once. Xen looks for pages of zeros to take back before.
//! - Page tables of this process are not counted among the hypercalls, and neither is the death of a process.

mod config;
mod counts;
mod domain;
mod driver;
mod fatal;
mod fault;
mod first_touch;
mod frame_info;
mod host;
mod hypercalls;
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
