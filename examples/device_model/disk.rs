//! A disk: its configuration, and what each request does (virtio-blk).

use std::error::Error;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    virtio_blk_config,
};
use xenmap::MapCache;

use super::buffers::Buffers;
use super::image::{Image, SECTOR};
use super::queue::{Broken, Chain};
use super::registers::Block;

/// The most pieces of data that a driver is to put into a request, and the longest one in bytes. Their product limits
/// how much a request can make the device map at once, whatever the driver does.
const MOST_PIECES: u32 = 126;
const LONGEST_PIECE: u32 = 64 << 10;

/// The most sectors that a request discards or makes zero: 64 MiB, for which ext4 needs about 0.1 s. A processor
/// that resets the device meanwhile waits for that long. (A flush takes as long as the host needs.)
const MOST_CLEARED: u32 = 128 << 10;

/// A disk, and how much it was used.
#[derive(Debug)]
pub(crate) struct Disk {
    image: Image,
    queues: u16,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Why a request fails.
enum Refused {
    Failed(Box<dyn Error + Send + Sync>),
    Unsupported,
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Refused {
    fn from(e: E) -> Refused {
        Refused::Failed(e.into())
    }
}

impl Disk {
    pub(crate) fn new(image: Image, queues: u16) -> Disk {
        Disk { image, queues, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Returns the features that the disk offers.
    pub(crate) fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        features |= if self.image.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        features
    }

    /// Returns the disk's configuration as the guest reads it.
    pub(crate) fn configuration(&self) -> Block {
        let mut block = Block::new(offset_of!(virtio_blk_config, max_secure_erase_sectors));
        for (at, value) in [
            (offset_of!(virtio_blk_config, capacity), &(self.image.len() / SECTOR).to_le_bytes()[..]),
            (offset_of!(virtio_blk_config, size_max), &LONGEST_PIECE.to_le_bytes()),
            (offset_of!(virtio_blk_config, seg_max), &MOST_PIECES.to_le_bytes()),
            (offset_of!(virtio_blk_config, blk_size), &512_u32.to_le_bytes()),
            (offset_of!(virtio_blk_config, num_queues), &self.queues.to_le_bytes()),
            (offset_of!(virtio_blk_config, max_discard_sectors), &MOST_CLEARED.to_le_bytes()),
            (offset_of!(virtio_blk_config, max_discard_seg), &1_u32.to_le_bytes()),
            (offset_of!(virtio_blk_config, discard_sector_alignment), &1_u32.to_le_bytes()),
            (offset_of!(virtio_blk_config, max_write_zeroes_sectors), &MOST_CLEARED.to_le_bytes()),
            (offset_of!(virtio_blk_config, max_write_zeroes_seg), &1_u32.to_le_bytes()),
            (offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]),
        ] {
            block.define(at, value, &[]);
        }
        block
    }

    /// Returns the number of requests and of bytes that were read and written.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Serves a request: a header, data, and a byte for the status. Returns how many bytes were written to the guest,
    /// from the first on. A request without a header or a place for the status cannot be answered: the driver is broken.
    ///
    /// `features` are those that the driver has accepted.
    pub(crate) fn serve(&self, cache: &MapCache, chain: Chain, features: u64) -> Result<u32, Broken> {
        let Chain { mut readable, mut writable, .. } = chain;
        let header = readable.take_front(16).ok_or("a request has no header")?;
        let status = writable.take_back(1).ok_or("a request has no place for its status")?;
        let mut bytes = [0; 16];
        header.read(cache, &mut bytes)?;
        let [kind, _, low, high] = numbers(&bytes);
        let sector = u64::from(high) << 32 | u64::from(low);
        let room = writable.len();
        let (code, written) = match self.execute(cache, (kind, sector), &readable, &writable, features) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refused::Failed(e)) => {
                log::warn!("request {kind} at sector {sector}: {e}");
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Refused::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        status.write(cache, &code.to_le_bytes()[..1])?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        // The status follows the data, so it counts only if all bytes before it were written.
        let written = if written == room { written + 1 } else { written };
        Ok(u32::try_from(written).unwrap_or(0))
    }

    /// Executes a request. Returns how many bytes of data were written to the guest.
    fn execute(
        &self,
        cache: &MapCache,
        (kind, sector): (u32, u64),
        readable: &Buffers,
        writable: &Buffers,
        features: u64,
    ) -> Result<u64, Refused> {
        match kind {
            VIRTIO_BLK_T_IN => {
                let len = writable.len();
                self.image.read(cache, writable.ranges(), self.place(sector, len)?)?;
                self.bytes.fetch_add(len, Ordering::Relaxed);
                return Ok(len);
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id[..6].copy_from_slice(b"xenmap");
                writable.write(cache, &id)?;
                return Ok(writable.len().min(id.len() as u64));
            }
            VIRTIO_BLK_T_FLUSH => self.image.flush()?,
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.image.is_read_only() => {
                return Err("the disk is read-only".into());
            }
            VIRTIO_BLK_T_OUT => {
                let len = readable.len();
                self.image.write(cache, readable.ranges(), self.place(sector, len)?)?;
                self.bytes.fetch_add(len, Ordering::Relaxed);
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(cache, kind, readable)?,
            _ => return Err(Refused::Unsupported),
        }
        // A driver that cannot flush expects that what is written stays written.
        if kind != VIRTIO_BLK_T_FLUSH && features & 1 << VIRTIO_BLK_F_FLUSH == 0 {
            self.image.flush()?;
        }
        Ok(0)
    }

    /// Discards a range of the disk, or makes it zero.
    fn clear(&self, cache: &MapCache, kind: u32, range: &Buffers) -> Result<(), Refused> {
        let mut bytes = [0; 16];
        if range.len() != bytes.len() as u64 {
            return Err(format!("{} bytes, but one range has 16", range.len()).into());
        }
        range.read(cache, &mut bytes)?;
        let [low, high, sectors, flags] = numbers(&bytes);
        let may_unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let is_discard = kind == VIRTIO_BLK_T_DISCARD;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || is_discard && may_unmap {
            return Err(Refused::Unsupported);
        }
        if sectors > MOST_CLEARED {
            return Err(format!("a range of {sectors} sectors").into());
        }
        let (sector, len) = (u64::from(high) << 32 | u64::from(low), u64::from(sectors) * SECTOR);
        let offset = self.inside(sector, len)?;
        if is_discard && len != 0 {
            self.image.discard(offset, len)?; // where nothing can be discarded, nothing need be
        } else if len != 0 {
            self.image.write_zeroes(offset, len, may_unmap)?;
        }
        Ok(())
    }

    /// Returns the offset in the image, in bytes, of a request's data. Refuses data that is too long or not inside.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        if !len.is_multiple_of(SECTOR) || len > u64::from(MOST_PIECES * LONGEST_PIECE) {
            return Err(format!("{len} bytes of data").into());
        }
        self.inside(sector, len)
    }

    /// Returns where a range is in the image, in bytes, if it is inside.
    fn inside(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        let offset = sector.checked_mul(SECTOR).ok_or("past the end of the disk")?;
        let end = offset.checked_add(len).ok_or("past the end of the disk")?;
        if end > self.image.len() { Err("past the end of the disk".into()) } else { Ok(offset) }
    }
}

/// Returns the four little-endian numbers of 16 bytes.
fn numbers(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}
