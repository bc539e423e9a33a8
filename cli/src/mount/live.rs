//! RAM that is read while the guest runs, through a cache of mappings.

use xenmap::{Access, DomainState, MapCache, Protection};

use crate::Result;
use crate::ram::Ram;
use crate::window::{Piece, frames};

/// Frames that are mapped at a time where the cache cannot map all.
const WINDOW: u64 = 1024;

pub(crate) struct LiveRam {
    pub(crate) ram: Ram,
    /// `None`: the RAM of a dump.
    cache: Option<MapCache>,
}

impl LiveRam {
    pub(crate) fn new(ram: Ram) -> LiveRam {
        let cache = ram.guest().cloned().map(MapCache::new);
        LiveRam { ram, cache }
    }

    /// Copies bytes from an address on. Those that cannot be read are zeros, as in a dump; but a guest that is gone is an
    /// error.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        if let Some(cache) = &self.cache
            && let Ok(pinned) = cache.get(Protection::ReadOnly, address, to.len())
        {
            return Ok(pinned.read_bytes(0, to)?);
        }
        let mut has_holes = false;
        let wanted = address..address + to.len() as u64;
        for window in self.ram.windows(frames(&wanted), WINDOW) {
            for (addresses, piece) in window?.pieces()? {
                let part = addresses.start.max(wanted.start)..addresses.end.min(wanted.end);
                if part.is_empty() {
                    continue;
                }
                let to = &mut to[usize::try_from(part.start - address)?..usize::try_from(part.end - address)?];
                match piece {
                    Piece::Bytes(bytes) => bytes.read(usize::try_from(part.start - addresses.start)?, to)?,
                    Piece::Zeros => to.fill(0),
                    Piece::Hole(_) => {
                        to.fill(0);
                        has_holes = true;
                    }
                }
            }
        }
        if has_holes && !self.is_there() { Err("the guest is gone".into()) } else { Ok(()) }
    }

    /// Returns whether the guest exists and is not dying; a dump always does.
    pub(crate) fn is_there(&self) -> bool {
        let Some(guest) = self.ram.guest() else { return true };
        match guest.memory().domain_info(guest.domid()) {
            Ok(info) => info.state != Some(DomainState::Dying),
            Err(e) => e.errno() != libc::ESRCH,
        }
    }

    /// Unmaps all frames. The next reads map those that the guest has then.
    pub(crate) fn unmap(&self) {
        self.cache.iter().for_each(MapCache::invalidate_all);
    }

    /// Unmaps all frames, and makes every later read of a guest that is gone fail.
    pub(crate) fn close(&self) {
        self.cache.iter().for_each(MapCache::close);
    }
}
