//! Maps the memory of other Xen domains into a Linux process, through `/dev/xen/privcmd` and without a C library. A
//! simulated Xen host, [`mock`], lets a program and its tests run on any Linux machine with 4 KiB pages.
//!
//! ```
//! use xenmap::mock::MockHost;
//! use xenmap::{Access, GuestKind, Protection};
//!
//! let host = MockHost::new(); // on Xen: let memory = xenmap::ForeignMemory::open()?;
//! let guest = host.create_domain(GuestKind::Hvm, 16);
//! let memory = host.open()?;
//!
//! let gfns = guest.frames();
//! let mapping = memory.map_foreign_batch(guest.domid(), Protection::ReadWrite, &gfns)?;
//! mapping.view().write_bytes(4096, b"hello, guest")?;
//! assert_eq!(mapping.view().read::<u8>(4096)?, b'h');
//! drop(mapping); // unmaps the frames, and Xen drops its references to them
//! # Ok::<(), xenmap::Error>(())
//! ```
//!
//! # Where to start
//!
//! | Task | Start with |
//! |---|---|
//! | open the device, map frames, list domains | [`ForeignMemory`] |
//! | read and write mapped frames | [`ForeignMapping`], its [`View`], and the methods of [`Access`] |
//! | address a guest's memory as the guest does | [`Guest`]; [`PageTables`] for virtual addresses |
//! | read many small things at virtual addresses | [`AddressSpace`] |
//! | find all that a guest has mapped | [`AddressSpace::extents`] and its [`VirtualExtent`]s |
//! | walk page tables that you read yourself, from a dump for example | [`PageTables::translate_with`] and [`extents_with`](PageTables::extents_with) |
//! | find a guest's kernel | [`Guest::registers`] and [`Guest::page_tables`] |
//! | find a guest's RAM | [`Guest::ram_map`] and its [`RamMap`], or [`RamScan`] step by step |
//! | pause a guest while you read it | [`Guest::pause`] and its guard [`Paused`] |
//! | keep memory mapped for a device model | [`MapCache`], which returns [`Pinned`] memory |
//! | serve a device to a guest | [`device_model`], with [`IoreqServer`](device_model::IoreqServer) |
//! | interrupt a guest | [`device_model::Interrupts`] |
//! | wait for and send events | [`device_model::EventChannels`] |
//! | run devices of rust-vmm | [`vm_memory`] |
//! | map a grant table, or the pages of an ioreq server | [`ForeignMemory::map_resource`] and its [`ResourceMapping`] |
//! | make a hypercall | [`ForeignMemory::hypercall`] and [`HypercallBuffer`] |
//! | name domains and frames | [`Domid`], [`Gfn`], [`Pfn`], and a [`NumberRange`] of them |
//! | choose between reading and writing | [`Protection`] |
//! | handle errors | [`Error`], and [`FrameErrors`] for the frames of a batch |
//! | test without Xen | [`mock::MockHost`] and [`mock::MockDomain`] |
//!
//! Guides to whole tasks, such as device models, introspection and testing, are in
//! [docs/](https://docs.rs/crate/xenmap/latest/source/docs/README.md).
//!
//! # Safety
//!
//! A guest may write its memory at any time, so the crate never lends it as a `&[u8]` or an `&Atomic`. Every access
//! copies, by code that behaves like relaxed atomic accesses to bytes; aligned integers are accessed whole. A copy does
//! not change any more, but two reads of the same memory may differ. The guest controls everything that you read: check
//! the copy before you use it.
//!
//! Every access is checked for bounds, for frames that failed to map, and for write permission. A mapping stays valid
//! until it is dropped, even if the guest dies. It is unmapped exactly once, on any thread, and never in a forked
//! child.
//!
//! Two things are outside these promises: [`vm_memory`], which gives rust-vmm's crates the pointers that they expect,
//! and [`View::as_ptr`]. Their documentation says what to avoid.
//!
//! # Errors
//!
//! An [`Error`] says what failed and, where the crate knows, what to do about it. Print the whole chain of
//! [sources](std::error::Error::source), as `anyhow` does. If frames of a batch cannot be mapped, the error lists each
//! of them with the reason. [`Error::errno`] returns the Linux errno. Nothing panics if a guest or a device misbehaves;
//! a mapping that the kernel refuses to unmap is logged and [counted](leaked_mappings).
//!
//! # Features
//!
//! - `mock` (on by default): the simulated host, [`mock`].
//! - `vm-memory`: a guest's RAM with the traits of rust-vmm's vm-memory 0.18, [`vm_memory`].
//! - `zerocopy`: [`Access`] also reads and writes structures that have the traits of zerocopy 0.8.
//!
//! # Running on Xen
//!
//! The program must run in dom0, or in another domain with privilege over the guest, and be able to open
//! `/dev/xen/privcmd`, which by default only root can. A privileged parent can also pass the open device to a child
//! ([`ForeignMemory::from_owned_fd`]). A program that serves a single guest should call [`ForeignMemory::restrict`],
//! after which the kernel refuses all other domains. Event channels are restricted separately
//! ([`EventChannels::restrict`](device_model::EventChannels::restrict)). Nothing else differs from the simulated host.
//!
//! # Versions
//!
//! The crate needs 64-bit Linux 3.8 and Rust 1.88. [`ForeignMemory::restrict`] needs Linux 4.11, resources need Linux
//! 4.18, and their size needs Linux 5.12 and Xen 4.15. The toolstack's interface is supported from Xen 4.11 to 4.22; on
//! other releases less is known about domains, and finding RAM takes longer.
//!
//! A [`device_model`] needs Linux 4.18 and Xen 4.11: device model operations exist since Linux 4.11, and an ioreq
//! server's pages can be mapped as a resource since Linux 4.18 and Xen 4.11. It is tested on Xen 4.17 on x86 with Linux
//! 6.1, and on no other version. The operations are part of Xen's stable interface. A Xen without ioreq servers, such
//! as Debian's for Arm, refuses to create one.
//!
//! The crate is young: its interface may still change. It follows semantic versioning. Requiring a newer Rust is a
//! minor change; moving to an incompatible version of vm-memory or zerocopy is an incompatible one.
//!
#![cfg_attr(not(feature = "mock"), doc = "[`mock`]: https://docs.rs/xenmap/latest/xenmap/mock/index.html")]
#![cfg_attr(
    not(feature = "mock"),
    doc = "[`mock::MockHost`]: https://docs.rs/xenmap/latest/xenmap/mock/struct.MockHost.html"
)]
#![cfg_attr(
    not(feature = "mock"),
    doc = "[`mock::MockDomain`]: https://docs.rs/xenmap/latest/xenmap/mock/struct.MockDomain.html"
)]
#![cfg_attr(
    not(feature = "vm-memory"),
    doc = "[`vm_memory`]: https://docs.rs/xenmap/latest/xenmap/vm_memory/index.html"
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("xenmap is for 64-bit Linux: the privcmd device has no 32-bit interface on a 64-bit kernel");

mod abi;
mod address_space;
mod backend;
mod cache;
pub mod device_model;
mod error;
mod guest;
mod handle;
mod mapping;
#[cfg(feature = "mock")]
pub mod mock;
#[doc(hidden)]
pub mod raw;
mod types;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;

pub use address_space::AddressSpace;
pub use cache::{CacheConfig, CacheStatistics, MapCache, Pinned};
pub use error::{Error, FrameError, FrameErrors, Result};
pub use guest::{
    AccessRights, Extent, FrameKind, Guest, PageTables, PagingMode, Paused, RamMap, RamScan, Search, Translation,
    VcpuRegisters, VirtualExtent, VirtualExtents,
};
pub use handle::{
    DomainInfo, DomainState, ForeignMemory, HypercallBuffer, PopulateOnDemand, Resource, ResourceMapping, XenVersion,
};
pub use mapping::{Access, ForeignMapping, View, Word, leaked_mappings};
pub use types::{Domid, FRAME_SIZE, Gfn, GuestKind, HostKind, InvalidNumber, NumberRange, Numbers, Pfn, Protection};

/// Tests the Rust snippets in the README and in docs/.
#[cfg(doctest)]
mod snippets {
    #[doc = include_str!("../README.md")]
    struct Readme;

    #[doc = include_str!("../docs/quick-start.md")]
    struct QuickStart;

    #[doc = include_str!("../docs/device-models.md")]
    struct DeviceModels;

    #[doc = include_str!("../docs/running-device-models.md")]
    struct RunningDeviceModels;

    #[cfg(feature = "vm-memory")]
    #[doc = include_str!("../docs/device-memory.md")]
    struct DeviceMemory;

    #[doc = include_str!("../docs/introspection.md")]
    struct Introspection;

    #[doc = include_str!("../docs/testing.md")]
    struct Testing;
}
