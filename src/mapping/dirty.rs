//! The dirty bits of a mapping: which frames this process has written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::types::FRAME_SIZE;

/// A dirty bit for each frame of a mapping. No bit is set while tracking is off.
#[derive(Debug)]
pub(crate) struct Dirty {
    is_on: Arc<AtomicBool>,
    frames: Box<[AtomicU64]>,
}

impl Dirty {
    pub(crate) fn new(is_on: Arc<AtomicBool>, frames: usize) -> Dirty {
        Dirty { is_on, frames: (0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Marks the frames of `len` bytes at `offset` as dirty. Call it after the write: if it came first, a reader could
    /// clear the bit before the write happens.
    #[inline]
    pub(crate) fn mark(&self, offset: usize, len: usize) {
        if len != 0 && self.is_on.load(Ordering::Relaxed) {
            self.mark_frames(offset / FRAME_SIZE, (offset + len - 1) / FRAME_SIZE);
        }
    }

    fn mark_frames(&self, first: usize, last: usize) {
        for frame in first..=last {
            // Even if the bit is set: another thread that does not see our write yet may be about to clear it.
            self.frames[frame / 64].fetch_or(1 << (frame % 64), Ordering::Release);
        }
    }

    /// Returns whether the frame at `offset` is dirty.
    #[cfg(feature = "vm-memory")]
    pub(crate) fn is_marked(&self, offset: usize) -> bool {
        let frame = offset / FRAME_SIZE;
        self.frames.get(frame / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (frame % 64) & 1 == 1)
    }

    /// Clears all bits, and returns the indices of the frames that were dirty.
    pub(crate) fn take(&self) -> Vec<usize> {
        let mut frames = Vec::new();
        for (i, word) in self.frames.iter().enumerate() {
            let bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::Acquire) };
            frames.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| i * 64 + bit));
        }
        frames
    }
}
