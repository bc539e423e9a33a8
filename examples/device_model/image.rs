//! The file that holds a disk.

use std::error::Error;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use xenmap::MapCache;

use super::Result;

pub(crate) const SECTOR: u64 = 512;

/// The most pieces of a request that are mapped at once, as the guest can choose each to need two buckets of the cache.
const MOST_MAPPED: usize = 16;

/// A file or a block device.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    identity: [u64; 2],
    len: u64,
    is_read_only: bool,
}

impl Image {
    pub(crate) fn open(path: &Path, is_read_only: bool) -> Result<Image> {
        let open = || {
            // First, as opening a pipe waits for a writer.
            let kind = std::fs::metadata(path)?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Err("it is neither a file nor a block device".into());
            }
            Image::new(File::options().read(true).write(!is_read_only).open(path)?, is_read_only)
        };
        open().map_err(|e: Box<dyn Error + Send + Sync>| format!("cannot open {}: {e}", path.display()).into())
    }

    /// Creates an image of zeros that vanishes with the program.
    pub(crate) fn temporary(len: u64) -> Result<Image> {
        let path = std::env::temp_dir().join(format!("xenmap-disk-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        std::fs::remove_file(path)?;
        file.set_len(len)?;
        Image::new(file, false)
    }

    pub(crate) fn new(mut file: File, is_read_only: bool) -> Result<Image> {
        let len = file.seek(SeekFrom::End(0))?; // also the size of a block device
        if len == 0 {
            return Err("it is empty".into());
        }
        if !len.is_multiple_of(SECTOR) {
            return Err(format!("its {len} bytes are not a multiple of {SECTOR}").into());
        }
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let identity = if is_device { [metadata.rdev(), 0] } else { [metadata.dev(), metadata.ino()] };
        Ok(Image { file, identity, len, is_read_only })
    }

    /// Returns numbers that no other image has.
    pub(crate) fn identity(&self) -> [u64; 2] {
        self.identity
    }

    /// Returns the size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Reads from the image into a guest's memory, without a copy in between.
    pub(crate) fn read(&self, cache: &MapCache, to: &[Range<u64>], offset: u64) -> xenmap::Result<()> {
        groups(to, offset).try_for_each(|(some, at)| cache.read_file_at(some, &self.file, at))
    }

    /// Writes from a guest's memory to the image, without a copy in between.
    pub(crate) fn write(&self, cache: &MapCache, from: &[Range<u64>], offset: u64) -> xenmap::Result<()> {
        groups(from, offset).try_for_each(|(some, at)| cache.write_file_at(some, &self.file, at))
    }

    /// Makes what was written survive a crash of the host.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the space of a range back, which then reads as zeros. Returns whether the file can do that.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Makes a range read as zeros, and gives its space back if the guest allows that.
    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, may_discard: bool) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if may_discard && self.discard(offset, len)? || self.allocate(zero, offset, len)? {
            return Ok(());
        }
        let end = offset + len;
        for at in (offset..end).step_by(ZEROS.len()) {
            let count = usize::try_from(end - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..count], at)?;
        }
        Ok(())
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (offset, len) = (offset.try_into().map_err(too_large)?, len.try_into().map_err(too_large)?);
        match fallocate(&self.file, flags, offset, len) {
            Ok(()) => Ok(true),
            // EINVAL: a block device, whose blocks are larger than the guest's sectors.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// Returns the pieces in groups that are mapped one after the other, each with its offset in the image.
fn groups(pieces: &[Range<u64>], offset: u64) -> impl Iterator<Item = (&[Range<u64>], u64)> {
    pieces.chunks(MOST_MAPPED).scan(offset, |next, group| {
        let at = *next;
        *next += group.iter().map(|piece| piece.end - piece.start).sum::<u64>();
        Some((group, at))
    })
}
