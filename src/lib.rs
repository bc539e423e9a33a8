#![doc = include_str!("../README.md")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("xenmap is for 64-bit Linux: the privcmd device has no 32-bit interface on a 64-bit kernel");

mod cache;
#[cfg(feature = "capi")]
mod capi;
mod copy;
mod domctl;
mod error;
mod foreign;
mod guest;
mod hypercall;
mod mapping;
#[cfg(feature = "mock")]
pub mod mock;
mod populated;
mod privcmd;
mod region;
mod resource;
mod transfer;
mod types;
mod uapi;
mod view;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
mod written;

pub use cache::{CacheConfig, CacheStatistics, MapCache, Pinned};
pub use copy::Word;
pub use error::{Error, FrameError, FrameErrors, Result};
pub use foreign::ForeignMemory;
pub use guest::{
    DomainInfo, DomainState, Extent, FrameKind, Guest, MemoryHandle, PageTables, PagingMode, Paused, PopulateOnDemand,
    RamMap, RamScan, Search,
};
pub use hypercall::{HypercallBuffer, XenVersion};
pub use mapping::ForeignMapping;
pub use region::leaked_mappings;
pub use resource::{Resource, ResourceMapping};
pub use types::{Domid, FRAME_SIZE, Gfn, GuestKind, HostKind, Protection};
pub use view::View;
