//! Maps batches of foreign frames.

#![expect(unsafe_code, reason = "takes ownership of what the device has mapped")]

use std::time::{Duration, Instant};

use super::{ForeignMemory, populated};
use crate::backend::Place;
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::mapping::ForeignMapping;
use crate::mapping::region::{Region, Reservation};
use crate::types::{Domid, FRAME_SIZE, Gfn, HostKind, MAX_FRAMES, Protection};

/// The most frames in one device mapping: 64 MiB. While the kernel populates a device mapping, by a single call, it
/// locks the whole address space. Larger batches are split, so that no other thread waits long. The size is a multiple
/// of any kernel's page size, so that the next mapping begins where this one ends.
const VMA_FRAMES: usize = 16 * 1024;

/// The shortest and the longest pause before a paged-out frame is retried.
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(20));

/// What to do if some frames of a batch cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    /// Fail.
    Refuse,
    /// Keep the others.
    Keep,
    /// Keep the others, and do not wait for frames that are paged out.
    KeepAtOnce,
}

impl ForeignMemory {
    /// Maps frames of a domain one after the other, in the given order: all of them or none.
    ///
    /// A frame may be given more than once. Frames that are paged out are retried until the
    /// [timeout](ForeignMemory::with_paged_out_timeout).
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Gfn, GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 8);
    /// let memory = host.open()?;
    ///
    /// let gfns = [Gfn::new(7)?, Gfn::new(2)?];
    /// let mapping = memory.map_foreign_batch(guest.domid(), Protection::ReadWrite, &gfns)?;
    /// mapping.view().write_bytes(4096, b"hello")?; // to frame 2, the second of the mapping
    /// assert_eq!(guest.read(gfns[1], 0, 5), b"hello");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Which call to use
    ///
    /// The methods of a handle take the numbers by which Xen maps frames ([`Gfn`]). For a PV guest these are machine
    /// frames, which the caller must know. The methods of a [`Guest`](crate::Guest) take pfns, the guest's own frame
    /// numbers, and look up a PV guest's machine frames. If a frame cannot be mapped, the call either fails or leaves a
    /// hole:
    ///
    /// | | all or none | what can be mapped |
    /// |---|---|---|
    /// | any frames, by gfn | `map_foreign_batch` | [`map_foreign_batch_partial`] |
    /// | consecutive gfns | [`map_foreign_range`] | |
    /// | consecutive pfns | [`Guest::map`] | [`Guest::map_partial`] |
    ///
    /// [`map_foreign_batch_partial`]: ForeignMemory::map_foreign_batch_partial
    /// [`map_foreign_range`]: ForeignMemory::map_foreign_range
    /// [`Guest::map`]: crate::Guest::map
    /// [`Guest::map_partial`]: crate::Guest::map_partial
    ///
    /// # Errors
    ///
    /// - [`Error::Frames`] if any frame could not be mapped. It lists all of those, and nothing stays mapped.
    /// - [`Error::Empty`], [`Error::TooManyFrames`], [`Error::XenIsReadOnly`] if the request is invalid.
    /// - [`Error::Reserve`], [`Error::MapBatch`] if the kernel refused it as a whole. The latter also occurs with
    ///   `ENOMEM` if the kernel silently ran out of memory for page tables, which this crate detects.
    #[doc(alias = "IOCTL_PRIVCMD_MMAPBATCH_V2")]
    #[doc(alias = "xenforeignmemory_map")]
    pub fn map_foreign_batch(&self, domid: Domid, protection: Protection, gfns: &[Gfn]) -> Result<ForeignMapping> {
        self.map(domid, protection, gfns, OnFailure::Refuse)
    }

    /// Maps those frames of a domain that can be mapped. The others are holes, which every access checks for.
    ///
    /// [`ForeignMapping::failed`] lists the holes. It is not an error if all frames fail.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Error, Gfn, GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 8);
    /// let (memory, domid) = (host.open()?, guest.domid());
    ///
    /// let gfns = [Gfn::new(7)?, Gfn::new(8)?]; // there is no frame 8
    /// let mapping = memory.map_foreign_batch_partial(domid, Protection::ReadOnly, &gfns)?;
    /// assert_eq!(mapping.failed().len(), 1);
    /// assert!(mapping.view().read::<u8>(4095).is_ok());
    /// assert!(matches!(mapping.view().read::<u8>(4096), Err(Error::Hole { .. })));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`map_foreign_batch`](ForeignMemory::map_foreign_batch), except [`Error::Frames`]. Unless this program
    /// runs in a PV domain, a frame that Xen had no memory to map is not a hole but [`Error::MapBatch`] with `ENOMEM`.
    pub fn map_foreign_batch_partial(
        &self,
        domid: Domid,
        protection: Protection,
        gfns: &[Gfn],
    ) -> Result<ForeignMapping> {
        self.map(domid, protection, gfns, OnFailure::Keep)
    }

    /// Maps `count` consecutive frames of a domain: all of them or none.
    ///
    /// # Errors
    ///
    /// Those of [`map_foreign_batch`](ForeignMemory::map_foreign_batch), and [`Error::InvalidNumber`] if the last frame
    /// is above [`Gfn::MAX`].
    #[doc(alias = "xc_map_foreign_range")]
    pub fn map_foreign_range(
        &self,
        domid: Domid,
        protection: Protection,
        first: Gfn,
        count: usize,
    ) -> Result<ForeignMapping> {
        let range = first.range(count)?;
        check_frames(count)?;
        let mut gfns = Vec::new();
        gfns.try_reserve_exact(count).map_err(|_| Error::TooManyFrames { frames: count })?;
        gfns.extend(range);
        self.map_foreign_batch(domid, protection, &gfns)
    }

    /// Maps those frames of a domain that can be mapped, without waiting for frames that are paged out.
    pub(crate) fn map_at_once(&self, domid: Domid, protection: Protection, gfns: &[Gfn]) -> Result<ForeignMapping> {
        self.map(domid, protection, gfns, OnFailure::KeepAtOnce)
    }

    fn map(&self, domid: Domid, protection: Protection, gfns: &[Gfn], on_failure: OnFailure) -> Result<ForeignMapping> {
        let frames = gfns.len();
        check_frames(frames)?;
        if domid == Domid::XEN && protection == Protection::ReadWrite {
            return Err(Error::XenIsReadOnly);
        }
        let mut batch = Batch::new(self, domid, protection, on_failure);
        let region = if frames <= VMA_FRAMES {
            // SAFETY: the kernel picks addresses that nothing uses.
            unsafe { batch.map_whole(gfns, Place::default()) }?
        } else {
            batch.map_chunked(gfns)?
        };
        let mapping = batch.finish(region, frames)?;
        // In an auto-translated domain, ENOMEM means that Xen has no memory left for mappings, whatever the frame is.
        if self.host_kind() != HostKind::Pv && mapping.failed().iter().any(|e| e.errno == libc::ENOMEM) {
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(Error::MapBatch { domid, frames, source });
        }
        Ok(mapping)
    }

    /// Maps frames in one piece, at a place of the caller's choice; with `partial`, those that can be mapped.
    ///
    /// If a batch that was to replace something fails, `PROT_NONE` memory stays there.
    ///
    /// # Safety
    ///
    /// If the mapping replaces anything, the caller owns that, and nothing uses it.
    pub(crate) unsafe fn map_at(
        &self,
        place: Place,
        domid: Domid,
        protection: Protection,
        gfns: &[Gfn],
        partial: bool,
    ) -> Result<ForeignMapping> {
        check_frames(gfns.len())?;
        let on_failure = if partial { OnFailure::Keep } else { OnFailure::Refuse };
        let mut batch = Batch::new(self, domid, protection, on_failure);
        // SAFETY: the caller's promise.
        let region = unsafe { batch.map_whole(gfns, place) }?;
        batch.finish(region, gfns.len())
    }
}

/// Checks the frame count.
pub(crate) fn check_frames(frames: usize) -> Result<()> {
    match frames {
        0 => Err(Error::Empty),
        1..=MAX_FRAMES => Ok(()),
        _ => Err(Error::TooManyFrames { frames }),
    }
}

/// A mapping call in progress.
struct Batch<'a> {
    memory: &'a ForeignMemory,
    domid: Domid,
    protection: Protection,
    on_failure: OnFailure,
    /// Set at the first paged-out frame.
    deadline: Option<Instant>,
    /// The kernel's answer, one entry for each frame of the current device mapping.
    errors: Vec<i32>,
    failed: Vec<FrameError>,
}

impl<'a> Batch<'a> {
    fn new(memory: &'a ForeignMemory, domid: Domid, protection: Protection, on_failure: OnFailure) -> Batch<'a> {
        Batch { memory, domid, protection, on_failure, deadline: None, errors: Vec::new(), failed: Vec::new() }
    }

    /// Makes the result, after all `frames` have been mapped into `region` or have failed.
    fn finish(self, region: Region, frames: usize) -> Result<ForeignMapping> {
        let Batch { domid, protection, failed, .. } = self;
        if !failed.is_empty() && self.on_failure == OnFailure::Refuse {
            return Err(Error::Frames(FrameErrors { domid, requested: frames, failed }));
        }
        log::debug!("mapped {frames} frames of domain {domid} at {:p}, {} failed", region.base(), failed.len());
        Ok(ForeignMapping::new(region, frames, domid, protection, failed))
    }

    fn reserve_error(bytes: usize) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Reserve { bytes, source }
    }

    /// Maps frames as one device mapping.
    ///
    /// # Safety
    ///
    /// If the mapping replaces anything, the caller owns that, and nothing uses it.
    unsafe fn map_whole(&mut self, gfns: &[Gfn], place: Place) -> Result<Region> {
        let backend = self.memory.backend();
        let len = backend.mapped_bytes(gfns.len());
        // SAFETY: the caller's promise.
        let addr = unsafe { backend.mmap_at(place, len, self.protection) }.map_err(Self::reserve_error(len))?;
        // SAFETY: just mapped by the device, `len` bytes in one piece, and nothing else refers to it.
        let mut region = unsafe { Region::new(addr, len, len, backend.unmapper()) };
        if place.is_over() {
            region.keep_addresses();
        }
        self.populate(&mut region, 0, gfns, 0)?;
        Ok(region)
    }

    /// Maps frames as several device mappings, one after the other.
    fn map_chunked(&mut self, gfns: &[Gfn]) -> Result<Region> {
        let backend = self.memory.backend();
        let len = backend.mapped_bytes(gfns.len());
        let mut reservation = Reservation::new(len).map_err(Self::reserve_error(len))?;
        // SAFETY: the region is empty.
        let mut region = unsafe { Region::new(reservation.base(), 0, VMA_FRAMES * FRAME_SIZE, backend.unmapper()) };
        for (chunk, first) in gfns.chunks(VMA_FRAMES).zip((0..).step_by(VMA_FRAMES)) {
            let len = backend.mapped_bytes(chunk.len());
            // SAFETY: we own the reservation, it has that many bytes left, and nothing uses them.
            let mapped = unsafe { backend.mmap_at(Place::over(reservation.base()), len, self.protection) };
            // If mmap fails, the kernel may already have unmapped the reservation, and another thread may have the
            // addresses by now, so we must not unmap them. EACCES comes from a check before that.
            if mapped.as_ref().map_or_else(|e| e.raw_os_error() != Some(libc::EACCES), |_| true) {
                reservation.give_up(len);
            }
            mapped.map_err(Self::reserve_error(len))?;
            // SAFETY: just mapped by the device, right after the previous one, which has `VMA_FRAMES` frames as all but
            // the last have.
            unsafe { region.grow(len) };
            self.populate(&mut region, first * FRAME_SIZE, chunk, first)?;
        }
        Ok(region)
    }

    /// Populates the last device mapping of a region, which is at `offset`, and records the frames that fail. `first`
    /// is the position of the first frame in the batch.
    fn populate(&mut self, region: &mut Region, offset: usize, gfns: &[Gfn], first: usize) -> Result<()> {
        let mut pause = PAUSES.0;
        let out_of_memory = |_| Error::MapBatch {
            domid: self.domid,
            frames: gfns.len(),
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        };
        self.errors.clear();
        self.errors.try_reserve_exact(gfns.len()).map_err(out_of_memory)?;
        self.errors.resize(gfns.len(), 0);
        self.ask(region, offset, gfns, 0..gfns.len())?;
        if !any_failed(&self.errors) {
            return Ok(());
        }
        while self.is_worth_waiting() && self.wait(&mut pause) {
            self.retry(region, offset, gfns)?;
        }
        for (i, (&error, &gfn)) in self.errors.iter().zip(gfns).enumerate() {
            if error != 0 {
                self.failed.push(FrameError { index: first + i, gfn, errno: -error });
            }
        }
        Ok(())
    }

    /// Returns whether a frame is paged out, and no permanent failure makes waiting pointless.
    fn is_worth_waiting(&self) -> bool {
        let paged_out = |error: &i32| *error == -libc::ENOENT;
        let pointless = match self.on_failure {
            OnFailure::Refuse => !self.failed.is_empty() || self.errors.iter().any(|e| *e != 0 && !paged_out(e)),
            OnFailure::Keep => false,
            OnFailure::KeepAtOnce => true,
        };
        !pointless && self.errors.iter().any(paged_out)
    }

    /// Asks the kernel to map some of the frames, and fills in their errors.
    fn ask(&mut self, region: &Region, offset: usize, gfns: &[Gfn], range: std::ops::Range<usize>) -> Result<()> {
        let backend = self.memory.backend();
        // SAFETY: the frames lie one after the other, beginning at `offset`, and all inside the region.
        let addr = unsafe { region.base().add(offset + range.start * FRAME_SIZE) };
        let (gfns, errors) = (&gfns[range.clone()], &mut self.errors[range]);
        // SAFETY: the range is part of a device mapping that we own and nothing uses yet.
        let asked = unsafe { backend.map_batch(self.domid, addr, gfns, errors) };
        let error = |source| Error::MapBatch { domid: self.domid, frames: gfns.len(), source };
        asked.map_err(error)?;
        // If the kernel runs out of memory for page tables, it says nothing, and leaves parts of frame numbers in place
        // of errors (see `populated`): then no entry can be trusted.
        let makes_sense = !any_failed(errors) || errors.iter().copied().all(populated::makes_sense);
        // SAFETY: the range is that device mapping's, as above.
        if makes_sense && unsafe { populated::is_true(addr, backend.page_size(), gfns, errors) } {
            return Ok(());
        }
        Err(error(std::io::Error::from_raw_os_error(libc::ENOMEM)))
    }

    /// Retries the frames that were paged out.
    fn retry(&mut self, region: &mut Region, offset: usize, gfns: &[Gfn]) -> Result<()> {
        if self.memory.host_kind() == HostKind::Pv {
            match self.ask_for_missing(region, offset, gfns) {
                // Linux before 3.12 populates a mapping only once.
                Err(e) if e.errno() == libc::EINVAL => {}
                asked => return asked,
            }
        }
        // In an auto-translated domain, frames that failed count as populated, and populating a part of a mapping takes
        // the wrong pages from its pool. Only a new mapping can be populated, so one call replaces the old one.
        let backend = self.memory.backend();
        let len = backend.mapped_bytes(gfns.len());
        // SAFETY: `offset` is inside the region.
        let addr = unsafe { region.base().add(offset) };
        // SAFETY: it replaces one whole device mapping, which we own and nothing uses yet.
        if let Err(e) = unsafe { backend.mmap_at(Place::over(addr), len, self.protection) } {
            region.abandon(offset);
            return Err(Self::reserve_error(len)(e));
        }
        self.ask(region, offset, gfns, 0..gfns.len())
    }

    /// Asks the kernel again for each run of paged-out frames.
    fn ask_for_missing(&mut self, region: &Region, offset: usize, gfns: &[Gfn]) -> Result<()> {
        let mut next = 0;
        while let Some(skip) = self.errors[next..].iter().position(|&e| e == -libc::ENOENT) {
            let start = next + skip;
            let run = self.errors[start..].iter().take_while(|&&e| e == -libc::ENOENT).count();
            next = start + run;
            self.ask(region, offset, gfns, start..next)?;
        }
        Ok(())
    }

    /// Waits for paged-out frames, longer each time. Returns `false` once the deadline has passed.
    fn wait(&mut self, pause: &mut Duration) -> bool {
        let now = Instant::now();
        // A timeout that is too long for an `Instant` means no deadline.
        let timeout = self.memory.paged_out_timeout;
        let left = match self.deadline.or_else(|| now.checked_add(timeout)) {
            Some(deadline) => {
                self.deadline = Some(deadline);
                deadline.saturating_duration_since(now)
            }
            None => Duration::MAX,
        };
        if left.is_zero() {
            return false;
        }
        log::debug!("waiting for paged-out frames of domain {}", self.domid);
        std::thread::sleep((*pause).min(left));
        *pause = (*pause * 2).min(PAUSES.1);
        true
    }
}

/// Returns whether any entry of the kernel's answer is not 0. Usually all are 0, so it checks all of them, many at a
/// time.
///
/// It only saves time, since the loops that follow skip zeros: no test fails if this is always true.
fn any_failed(errors: &[i32]) -> bool {
    errors.iter().fold(0, |all, error| all | error) != 0
}
