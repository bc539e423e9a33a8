//! Which frames of a mapping were written through us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::types::FRAME_SIZE;

/// A bit for each frame of a mapping. Nothing is noted unless somebody wants to know.
#[derive(Debug)]
pub(crate) struct Dirty {
    wanted: Arc<AtomicBool>,
    frames: Box<[AtomicU64]>,
}

impl Dirty {
    pub(crate) fn new(wanted: Arc<AtomicBool>, frames: usize) -> Dirty {
        Dirty { wanted, frames: (0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes that `len` bytes at `offset` have been written: after the fact, or a reader of the bits could clear one
    /// before the write that it stands for.
    #[inline]
    pub(crate) fn mark(&self, offset: usize, len: usize) {
        if len != 0 && self.wanted.load(Ordering::Relaxed) {
            self.mark_frames(offset / FRAME_SIZE, (offset + len - 1) / FRAME_SIZE);
        }
    }

    fn mark_frames(&self, first: usize, last: usize) {
        for frame in first..=last {
            // Also where the bit is set already: it may just be taken, by somebody who does not see our write yet.
            self.frames[frame / 64].fetch_or(1 << (frame % 64), Ordering::Release);
        }
    }

    /// Whether a frame is noted.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn is_marked(&self, offset: usize) -> bool {
        let frame = offset / FRAME_SIZE;
        self.frames.get(frame / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (frame % 64) & 1 == 1)
    }

    /// The numbers of the frames that are noted, which are forgotten.
    pub(crate) fn take(&self) -> Vec<usize> {
        let mut frames = Vec::new();
        for (i, word) in self.frames.iter().enumerate() {
            let bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::Acquire) };
            frames.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| i * 64 + bit));
        }
        frames
    }
}
