//! Randomly reads and writes a paused guest's RAM through a map cache with a small budget, and checks every byte.
//!
//!     soak 5 --seconds 60
//!
//! At the end, it restores everything that it changed, so that the guest can continue. If a check fails, the exit code
//! is 1, and the guest's memory is corrupt.

mod ram;
mod soak;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ram::{Ram, Result};
use soak::Soak;
use xenmap::{CacheConfig, DomainState, Domid, ForeignMemory, Guest, MapCache};

const BUCKET: usize = 64 << 10;
const BUDGET: usize = 8 << 20;

#[derive(Parser)]
#[command(about = "Randomly reads and writes a paused guest's RAM through a map cache, and checks every byte")]
struct Args {
    /// Domain number of the guest
    domid: Domid,
    /// Run for this many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Do not access this frame, because others use it while the guest is paused, such as its console ring (repeatable)
    #[arg(long, value_name = "GFN")]
    keep_off: Vec<u64>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If this fails, there is nowhere left to report it.
            let _ = writeln!(std::io::stderr(), "soak: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Formats an error and its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run(args: &Args) -> Result<()> {
    let mut stdout = std::io::stdout();
    let memory = ForeignMemory::open()?;
    if memory.domain_info(args.domid)?.state != Some(DomainState::Paused) {
        return Err(format!("domain {} is not paused: pause it first (xl pause)", args.domid).into());
    }
    let guest = Guest::open(&memory, args.domid)?;

    let start = Instant::now();
    let mut ram = Ram::read(&guest, &args.keep_off)?;
    writeln!(stdout, "read {} MiB of RAM in {:.1?}", ram.len() >> 20, start.elapsed())?;

    let mut config = CacheConfig::default();
    (config.bucket_size, config.budget) = (BUCKET, BUDGET);
    let cache = MapCache::with_config(Guest::open(&memory, args.domid)?, config)?;
    let seed = u64::from(args.domid.get());
    let mut soak = Soak::new(&cache, &mut ram, 4 * BUCKET, seed);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(args.seconds) {
        soak.step().map_err(|e| format!("seed {seed}, operation {}: {}", soak.done().operations, chain(&*e)))?;
    }
    let (time, done) = (start.elapsed(), soak.done());
    drop(soak);
    let counts = cache.statistics();
    let bytes = done.bytes_read + done.bytes_written;
    #[expect(clippy::cast_precision_loss, reason = "printed with one decimal")]
    let rate = bytes as f64 / 1e6 / time.as_secs_f64();
    writeln!(
        stdout,
        "{} operations in {time:.1?} (seed {seed}): {} MB read, {} MB written, {rate:.1} MB/s; \
         {} hits, {} misses, {} evictions, {} refused",
        done.operations,
        done.bytes_read / 1_000_000,
        done.bytes_written / 1_000_000,
        counts.hits,
        counts.misses,
        counts.evictions,
        done.refused,
    )?;
    if counts.mapped_bytes > BUDGET || counts.pinned != 0 {
        return Err(format!("the cache's counters are wrong: {counts:?}").into());
    }
    if counts.evictions == 0 {
        return Err(
            format!("nothing was evicted: use a guest with more than {BUDGET} bytes of RAM, or more time").into()
        );
    }
    drop(cache);
    if xenmap::leaked_mappings() != 0 {
        return Err(format!("{} mappings leaked", xenmap::leaked_mappings()).into());
    }

    let start = Instant::now();
    let changed = ram.check_and_restore(&guest)?;
    writeln!(stdout, "compared and restored {changed} changed frames in {:.1?}", start.elapsed())?;
    Ok(())
}
