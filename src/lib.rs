#![doc = include_str!("../README.md")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("xenmap is for 64-bit Linux: the privcmd device has no 32-bit interface on a 64-bit kernel");

mod abi;
mod backend;
mod cache;
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

pub use cache::{CacheConfig, CacheStatistics, MapCache, Pinned};
pub use error::{Error, FrameError, FrameErrors, Result};
pub use guest::{Extent, FrameKind, Guest, PageTables, PagingMode, Paused, RamMap, RamScan, Search};
pub use handle::{
    DomainInfo, DomainState, ForeignMemory, HypercallBuffer, PopulateOnDemand, Resource, ResourceMapping, XenVersion,
};
pub use mapping::{Access, ForeignMapping, View, Word, leaked_mappings};
pub use types::{Domid, FRAME_SIZE, Gfn, GuestKind, HostKind, InvalidNumber, NumberRange, Numbers, Pfn, Protection};
