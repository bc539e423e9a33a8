//! Copying by several threads, each with a share of the frames.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::copy::Tally;
use super::layout::{Layout, Part};

/// Frames of a share: 64 MiB. A worker process copies one share.
const SHARE: u64 = 16 * 1024;

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Copies the shares, as many at once as there are processors. After an error, starts no more of them.
pub(crate) fn copy_shares(
    layout: &Layout,
    copy: impl Fn(Vec<Part>) -> Result<Tally, String> + Sync,
) -> Result<Tally, String> {
    let shares = Mutex::new(layout.shares(SHARE));
    let failed = AtomicBool::new(false);
    let next = || {
        let next = shares.lock().unwrap_or_else(PoisonError::into_inner).next();
        next.filter(|_| !failed.load(Ordering::Relaxed))
    };
    let copy_all = || -> Result<Tally, String> {
        let mut tally = Tally::default();
        while let Some(share) = next() {
            tally.add(copy(share).inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
        Ok(tally)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors()).map(|_| scope.spawn(copy_all)).collect();
        let mut all = Tally::default();
        for thread in threads {
            all.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}
