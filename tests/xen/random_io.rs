//! Reads and writes random sectors of a disk, several at a time, and checks that each holds what was written last.
//!
//!     random_io DISK FIRST_MIB MIB SECONDS [STOP_MIB]
//!
//! Uses the MIB of the disk from FIRST_MIB on, which it first overwrites. With STOP_MIB, it goes on after SECONDS until
//! the disk contains "stop" there. Prints a line per second, and at the end the requests per second and `IO done` if
//! all was right. Needs only std, so that rustc alone builds it.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const THREADS: u64 = 4;
const SECTOR: usize = 512;
/// The longest request, in sectors.
const LONGEST: u64 = 64;
/// The memory of a thread, in bytes. Requests use random places in it, so that a device model has to map many frames.
const MEMORY: usize = 8 << 20;
/// Makes each read and write a request to the disk.
const O_DIRECT: i32 = 0o40000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, first, size, seconds, stop_at @ ..] = arguments.as_slice() else {
        return Err("usage: random_io DISK FIRST_MIB MIB SECONDS [STOP_MIB]".into());
    };
    let disk = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path)?;
    let (first, size) = (first.parse::<u64>()? << 20, size.parse::<u64>()? << 20);
    let time = Duration::from_secs(seconds.parse()?);
    let stop_at = stop_at.first().map(|mib| mib.parse::<u64>()).transpose()?.map(|mib| mib << 20);
    let (requests, may_stop) = (AtomicU64::new(0), AtomicBool::new(stop_at.is_none()));

    let start = Instant::now();
    let random = thread::scope(|scope| {
        let share = size / THREADS;
        let workers: Vec<_> = (0..THREADS)
            .map(|i| Worker::new(&disk, first + i * share, share, &requests))
            .map(|mut worker| {
                let may_stop = &may_stop;
                scope.spawn(move || worker.work(time, may_stop))
            })
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            thread::sleep(Duration::from_secs(1));
            println!("IO {} s: {} requests", start.elapsed().as_secs(), requests.load(Ordering::Relaxed));
            // An error lets all threads end, so that it is reported.
            let has_failed = workers.iter().any(|worker| worker.is_finished());
            if has_failed || stop_at.is_some_and(|at| says_stop(&disk, at).unwrap_or(true)) {
                may_stop.store(true, Ordering::Relaxed);
            }
        }
        workers.into_iter().map(|worker| worker.join().map_err(|_| "a thread panicked")?).sum::<Result<f64>>()
    })?;
    println!("IO rate: {random:.1}");
    println!("IO done");
    Ok(())
}

fn says_stop(disk: &File, at: u64) -> Result<bool> {
    let mut memory = vec![0; 2 * SECTOR];
    let start = aligned(&memory);
    let sector = &mut memory[start..][..SECTOR];
    disk.read_exact_at(sector, at)?;
    Ok(sector.starts_with(b"stop"))
}

/// Where the memory is aligned, as `O_DIRECT` requires.
fn aligned(memory: &[u8]) -> usize {
    memory.as_ptr().align_offset(SECTOR)
}

/// A thread with a part of the disk to itself.
struct Worker<'a> {
    disk: &'a File,
    /// The first byte of its part.
    first: u64,
    /// How often each sector of its part has been written.
    versions: Vec<u64>,
    memory: Vec<u8>,
    random: u64,
    requests: &'a AtomicU64,
}

impl<'a> Worker<'a> {
    fn new(disk: &'a File, first: u64, size: u64, requests: &'a AtomicU64) -> Self {
        let versions = vec![0; size as usize / SECTOR];
        Self { disk, first, versions, memory: vec![0; MEMORY], random: first + 1, requests }
    }

    /// Returns how many random requests per second it has made.
    fn work(&mut self, time: Duration, may_stop: &AtomicBool) -> Result<f64> {
        for sector in (0..self.sectors()).step_by(LONGEST as usize) {
            self.write(0, sector, LONGEST)?;
        }
        let (start, mut random) = (Instant::now(), 0.0);
        while start.elapsed() < time || !may_stop.load(Ordering::Relaxed) {
            random += 1.0;
            let count = 1 + self.below(LONGEST);
            let sector = self.below(self.sectors() - count + 1);
            let place = self.below((MEMORY / SECTOR) as u64 - count);
            if self.below(2) == 0 { self.write(place, sector, count)? } else { self.read(place, sector, count)? }
        }
        let rate = random / start.elapsed().as_secs_f64();
        for sector in (0..self.sectors()).step_by(LONGEST as usize) {
            self.read(0, sector, LONGEST)?;
        }
        Ok(rate)
    }

    /// Writes so many sectors from a place in the memory, which is counted in sectors, too.
    fn write(&mut self, place: u64, sector: u64, count: u64) -> Result<()> {
        let place = self.offset(place);
        for i in 0..count {
            self.versions[(sector + i) as usize] += 1;
            let contents = self.contents(sector + i);
            self.memory[place..][i as usize * SECTOR..][..SECTOR].copy_from_slice(&contents);
        }
        let memory = &self.memory[place..][..count as usize * SECTOR];
        self.disk.write_all_at(memory, self.first + sector * SECTOR as u64)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read(&mut self, place: u64, sector: u64, count: u64) -> Result<()> {
        let place = self.offset(place);
        let memory = &mut self.memory[place..][..count as usize * SECTOR];
        self.disk.read_exact_at(memory, self.first + sector * SECTOR as u64)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        for i in 0..count {
            let at = self.first + (sector + i) * SECTOR as u64;
            if self.memory[place..][i as usize * SECTOR..][..SECTOR] != self.contents(sector + i) {
                return Err(format!("the sector at byte {at} does not hold what was written last").into());
            }
        }
        Ok(())
    }

    /// What the sector holds after its last write: each word tells its place and how often it was written.
    fn contents(&self, sector: u64) -> [u8; SECTOR] {
        let mut contents = [0; SECTOR];
        let version = self.versions[sector as usize].wrapping_mul(0xd6e8_feb8_6659_fd93);
        for (i, word) in contents.chunks_exact_mut(8).enumerate() {
            let address = self.first + sector * SECTOR as u64 + i as u64 * 8;
            word.copy_from_slice(&(address.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version).to_le_bytes());
        }
        contents
    }

    /// Where a place begins, in bytes.
    fn offset(&self, place: u64) -> usize {
        aligned(&self.memory) + place as usize * SECTOR
    }

    fn sectors(&self) -> u64 {
        self.versions.len() as u64
    }

    /// A random number below `limit` (xorshift).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % limit
    }
}
