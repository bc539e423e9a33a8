//! Maps resources of a domain, which are not its RAM.

#![expect(unsafe_code, reason = "takes ownership of what the device has mapped")]

use std::io;

use super::{ForeignMemory, check_frames};
use crate::abi;
use crate::backend::Place;
use crate::error::{Error, Result};
use crate::mapping::View;
use crate::mapping::region::Region;
use crate::types::{Domid, FRAME_SIZE, Protection};

/// The type and id of a resource that does not exist: the ids of a domain's grant table are 0 and 1.
const NO_RESOURCE: (u32, u32) = (abi::XENMEM_RESOURCE_GRANT_TABLE, u32::MAX);

/// The highest errno that Xen returns, negated.
const LOWEST_ERRNO: i32 = -4095;

/// Memory other than RAM that Xen lets a privileged domain map (`XENMEM_acquire_resource`, Xen 4.11).
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{GuestKind, Resource};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let server = Resource::IoreqServer { id: 0 };
/// guest.add_resource(server, 2);
/// assert_eq!(host.open()?.resource_size(guest.domid(), server)?, 2);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// The pages of an ioreq server: frame 0 is for buffered requests, frames from 1 on for synchronous ones.
    ///
    /// Never drop the mapping while an ioeventfd is bound to it: the kernel keeps a pointer to its first page.
    IoreqServer {
        /// The server's number.
        id: u32,
    },
    /// The frames of the grant table.
    GrantTable,
    /// The status frames of a version 2 grant table.
    GrantStatus,
    /// The processor trace buffer of a vcpu (Xen 4.15).
    Vmtrace {
        /// The vcpu's number.
        vcpu: u32,
    },
}

impl Resource {
    /// Returns Xen's numbers for the type and the id.
    pub(crate) fn type_and_id(self) -> (u32, u32) {
        match self {
            Resource::IoreqServer { id } => (abi::XENMEM_RESOURCE_IOREQ_SERVER, id),
            Resource::GrantTable => (abi::XENMEM_RESOURCE_GRANT_TABLE, 0),
            Resource::GrantStatus => (abi::XENMEM_RESOURCE_GRANT_TABLE, 1),
            Resource::Vmtrace { vcpu } => (abi::XENMEM_RESOURCE_VMTRACE_BUF, vcpu),
        }
    }
}

/// Mapped frames of a resource; dropping it unmaps them.
///
/// The documentation of [`ForeignMapping`](crate::ForeignMapping) on references, forking and slices applies here too.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, GuestKind, Protection, Resource};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// guest.add_resource(Resource::GrantTable, 2);
/// let (memory, domid) = (host.open()?, guest.domid());
///
/// let mapping = memory.map_resource(domid, Protection::ReadWrite, Resource::GrantTable, 0, 2)?;
/// assert_eq!((mapping.frames(), mapping.view().len()), (2, 8192));
/// mapping.view().write(8, 7_u16)?; // the flags of grant reference 1
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct ResourceMapping {
    region: Region,
    frames: usize,
    protection: Protection,
}

impl ResourceMapping {
    /// Returns the number of frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns a view of the whole mapping.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View::new(&self.region, self.frames * FRAME_SIZE, self.protection, &[])
    }
}

impl ForeignMemory {
    /// Maps `frames` frames of a resource, beginning with its frame `first`. Needs Linux 4.18.
    ///
    /// [`ResourceMapping`] shows an example.
    ///
    /// # Errors
    ///
    /// - [`Error::Resource`], which says why: no such resource, too few frames in it, no such domain, or no privilege.
    /// - [`Error::ResourceFrames`] for more than one frame if the kernel has pages of 16 or 64 KiB.
    /// - [`Error::Empty`] for no frames (the kernel would return the size of the resource), [`Error::TooManyFrames`],
    ///   [`Error::Reserve`].
    #[doc(alias = "IOCTL_PRIVCMD_MMAP_RESOURCE")]
    #[doc(alias = "xenforeignmemory_map_resource")]
    pub fn map_resource(
        &self,
        domid: Domid,
        protection: Protection,
        resource: Resource,
        first: u32,
        frames: usize,
    ) -> Result<ResourceMapping> {
        let region = self.map_resource_near(0, domid, protection, resource.type_and_id(), first, frames)?;
        Ok(ResourceMapping { region, frames, protection })
    }

    /// Maps a resource that is named by Xen's type and id. `addr` is a hint.
    pub(crate) fn map_resource_near(
        &self,
        addr: usize,
        domid: Domid,
        protection: Protection,
        (type_, id): (u32, u32),
        first: u32,
        frames: usize,
    ) -> Result<Region> {
        check_frames(frames)?;
        let backend = self.backend();
        let page_size = backend.page_size();
        if page_size > FRAME_SIZE && frames > 1 {
            return Err(Error::ResourceFrames { frames, page_size });
        }
        let len = backend.mapped_bytes(frames);
        // SAFETY: without MAP_FIXED the kernel picks addresses that nothing uses.
        let addr = unsafe { backend.mmap_at(Place { addr, flags: 0 }, len, protection) };
        let addr = addr.map_err(|source| Error::Reserve { bytes: len, source })?;
        // SAFETY: just mapped by the device, `len` bytes in one piece, and nothing else refers to it.
        let region = unsafe { Region::new(addr, len, len, backend.unmapper()) };
        let addr = addr.as_ptr().expose_provenance() as u64;
        let mut request = abi::MmapResource { dom: domid.get(), type_, id, idx: first, num: frames as u64, addr };
        // SAFETY: we own the device mapping, which is unpopulated and has exactly `frames` frames.
        unsafe { backend.map_resource(&mut request) }.map_err(|source| Error::Resource { domid, source })?;
        Ok(region)
    }

    /// Returns the size of a resource in frames. Needs Linux 5.12 and Xen 4.15.
    ///
    /// Older versions of Xen return the same number for every resource. They are recognised by that, not by their
    /// version, so the call works through a restricted handle, and on an older Xen whose vendor has fixed it.
    ///
    /// [`Resource`] shows an example.
    ///
    /// # Errors
    ///
    /// [`Error::ResourceSize`], which says why: no such resource, no such domain, no privilege, or Linux or Xen is too
    /// old.
    #[doc(alias = "xenforeignmemory_resource_size")]
    pub fn resource_size(&self, domid: Domid, resource: Resource) -> Result<u64> {
        self.resource_size_of(domid, resource.type_and_id())
    }

    pub(crate) fn resource_size_of(&self, domid: Domid, name: (u32, u32)) -> Result<u64> {
        let error = |source| Error::ResourceSize { domid, source };
        let frames = self.ask_resource_size(domid, name).map_err(error)?;
        if self.ask_resource_size(domid, NO_RESOURCE).is_ok() {
            return Err(error(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        }
        Ok(frames)
    }

    fn ask_resource_size(&self, domid: Domid, (type_, id): (u32, u32)) -> io::Result<u64> {
        let mut request = abi::MmapResource { dom: domid.get(), type_, id, idx: 0, num: 0, addr: 0 };
        // SAFETY: with a count and an address of 0, the call maps nothing.
        unsafe { self.backend().map_resource(&mut request) }?;
        match u32::try_from(request.num).map(u32::cast_signed) {
            // For a type that they do not know, Xen 4.15 to 4.19 return an errno as the size.
            Ok(errno @ LOWEST_ERRNO..0) => Err(io::Error::from_raw_os_error(-errno)),
            _ => Ok(request.num),
        }
    }
}
