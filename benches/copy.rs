//! The cost of copying from and to a mapping, compared with memcpy between the same two places and with vm-memory's
//! `VolatileSlice`.
//!
//! `cargo bench --bench copy` prints a table: nanoseconds of a memcpy, and how many times as fast the others are (0.9
//! means 1/0.9 of the time). With `-- --check` it measures again what is slower than its goal, and fails if it still
//! is.

#![expect(unsafe_code, reason = "memcpy from and to a mapping that nothing else uses")]
#![expect(
    clippy::inline_always,
    reason = "memcpy is called directly from the measuring loop, so the others must be, too"
)]
#![expect(clippy::print_stdout, reason = "prints what it has measured")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use vm_memory::VolatileSlice;
use xenmap::mock::MockHost;
use xenmap::{Access, FRAME_SIZE, GuestKind, Protection, View};

#[derive(Clone, Copy)]
struct Sample {
    /// In bytes.
    len: usize,
    /// The offset in the mapping.
    mapped: usize,
    /// The offset in the private buffer.
    private: usize,
}

/// memcpy is slower between two places at the same offset in their pages, so the offsets differ.
const fn aligned(len: usize) -> Sample {
    Sample { len, mapped: 0, private: 2048 }
}

const SAMPLES: [Sample; 17] = [
    aligned(1),
    aligned(8),
    aligned(16),
    aligned(32),
    aligned(64),
    aligned(100),
    aligned(128),
    aligned(256),
    aligned(512),
    aligned(1000),
    aligned(1024),
    aligned(4096),
    Sample { len: 4097, mapped: 3, private: 2053 },
    aligned(16 << 10),
    aligned(64 << 10),
    aligned(1 << 20),
    aligned(4 << 20),
];
/// One more than the longest copy needs, for different places to begin at.
const FRAMES: usize = (4 << 20) / FRAME_SIZE + 1;

const ROUNDS: usize = 400;

/// Returns how many times as fast as memcpy a copy of `len` bytes must be.
fn goal(len: usize) -> f64 {
    match len {
        64..=512 => 0.9,
        4096.. => 0.95,
        _ => 0.0,
    }
}

fn main() -> ExitCode {
    let host = MockHost::new();
    let guest = host.create_domain(GuestKind::Hvm, FRAMES);
    let memory = host.open().expect("the mock opens");
    let mapping =
        memory.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames()).expect("the guest's frames");
    let mut buffer = vec![0; (FRAMES + 2) * FRAME_SIZE];
    let aligned = buffer.as_ptr().align_offset(FRAME_SIZE);
    let mut bench = Bench { view: mapping.view(), buffer: &mut buffer[aligned..] };

    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches` only checks that it works.
        bench.check_copies();
        return ExitCode::SUCCESS;
    }
    let check = std::env::args().any(|argument| argument == "--check");
    let all = [Direction::Read, Direction::Write].map(|direction| SAMPLES.map(|sample| (direction, sample))).concat();
    let mut slow = bench.print_table(&all);
    if !check {
        return ExitCode::SUCCESS;
    }
    if !has_avx2() {
        println!("not checked: the goals are for processors with AVX2");
        return ExitCode::SUCCESS;
    }
    for _ in 0..2 {
        if !slow.is_empty() {
            println!("measuring again what misses its goal:");
            slow = bench.print_table(&slow);
        }
    }
    if slow.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Read,
    Write,
}

#[inline(always)]
fn memcpy(direction: Direction, view: &View<'_>, at: usize, bytes: &mut [u8]) {
    let mapped = view.as_ptr().wrapping_add(at);
    match direction {
        // SAFETY: nothing else uses the mapping, which is longer than any copy.
        Direction::Read => unsafe { mapped.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) },
        // SAFETY: as above.
        Direction::Write => unsafe { mapped.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) },
    }
}

#[inline(always)]
fn ours(direction: Direction, view: &View<'_>, at: usize, bytes: &mut [u8]) {
    match direction {
        Direction::Read => view.read_bytes(at, bytes),
        Direction::Write => view.write_bytes(at, bytes),
    }
    .expect("it is inside");
}

#[inline(always)]
fn vm_memory(direction: Direction, view: &View<'_>, at: usize, bytes: &mut [u8]) {
    // SAFETY: the mapping lives as long as the view, and is longer than any copy.
    let mapped = unsafe { VolatileSlice::new(view.as_ptr().wrapping_add(at), bytes.len()) };
    match direction {
        Direction::Read => {
            mapped.copy_to(bytes);
        }
        Direction::Write => mapped.copy_from(bytes),
    }
}

struct Bench<'a> {
    view: View<'a>,
    /// At least as long as the view, and page-aligned like it.
    buffer: &'a mut [u8],
}

impl Bench<'_> {
    fn check_copies(&mut self) {
        for Sample { len, mapped: at, private } in SAMPLES {
            let bytes = &mut self.buffer[private..][..len];
            for (i, copy) in (1..).zip([memcpy, ours, vm_memory]) {
                self.view.fill(at, len, i).expect("it is inside");
                bytes.fill(0);
                copy(Direction::Read, &self.view, at, bytes);
                assert_eq!(bytes, vec![i; len], "{len} bytes read");
                self.view.fill(at, len, 0).expect("it is inside");
                copy(Direction::Write, &self.view, at, bytes);
                assert!(self.view.eq_bytes(at, bytes).expect("it is inside"), "{len} bytes written");
            }
        }
    }

    /// Measures samples and prints a row for each. Returns those that miss their goals.
    fn print_table(&mut self, samples: &[(Direction, Sample)]) -> Vec<(Direction, Sample)> {
        println!("direction      bytes   memcpy, ns       ours  vm-memory");
        let mut slow = Vec::new();
        for (&(direction, sample), [memcpy, ours, theirs]) in samples.iter().zip(self.measure(samples)) {
            let ratio = memcpy / ours;
            println!("{direction:<9?} {:>10} {memcpy:>12.1} {ratio:>10.2} {:>10.2}", sample.len, memcpy / theirs);
            if ratio < goal(sample.len) {
                slow.push((direction, sample));
            }
        }
        slow
    }

    /// Measures the nanoseconds of memcpy, of ours, and of vm-memory's, for each sample.
    ///
    /// They take turns, also in going first. The results are the medians of the quietest quarter of the rounds, in
    /// which all three together were fastest: another machine on the same processor slows all of them down for seconds,
    /// and not by the same factor.
    fn measure(&mut self, samples: &[(Direction, Sample)]) -> Vec<[f64; 3]> {
        let mut rounds = vec![Vec::new(); samples.len()];
        for round in 0..ROUNDS {
            // A load is slow if a store to another page has the same offset in its page. The stack's offset is
            // different in each process, so no single place avoids that.
            let shift = round % 16 * 256;
            for (&(direction, sample), rounds) in samples.iter().zip(&mut rounds) {
                let bytes = &mut self.buffer[sample.private + shift..][..sample.len];
                let at = sample.mapped + shift;
                // Warms up: the sample before has filled the caches with something else.
                time(memcpy, direction, &self.view, at, bytes);
                let mut times = [0.0; 3];
                for way in (0..3).map(|i| (round + i) % 3) {
                    times[way] = match way {
                        0 => time(memcpy, direction, &self.view, at, bytes),
                        1 => time(ours, direction, &self.view, at, bytes),
                        _ => time(vm_memory, direction, &self.view, at, bytes),
                    };
                }
                rounds.push(times);
            }
        }
        rounds.into_iter().map(medians_of_quiet_rounds).collect()
    }
}

fn medians_of_quiet_rounds(mut rounds: Vec<[f64; 3]>) -> [f64; 3] {
    let together = |times: &[f64; 3]| times.iter().sum::<f64>();
    rounds.sort_by(|a, b| together(a).total_cmp(&together(b)));
    rounds.truncate(ROUNDS / 4);
    [0, 1, 2].map(|way| {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[way]).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// Returns the nanoseconds of a copy. It is compiled for each way of copying and each direction, like a caller's loop.
#[inline(never)]
fn time(
    copy: impl Fn(Direction, &View<'_>, usize, &mut [u8]),
    direction: Direction,
    view: &View<'_>,
    at: usize,
    bytes: &mut [u8],
) -> f64 {
    let times = u32::try_from(1_000_000 / (bytes.len() + 50)).expect("at most 20,000").max(1);
    let mut loops = |direction| {
        let start = Instant::now();
        for _ in 0..times {
            copy(direction, black_box(view), black_box(at), black_box(&mut *bytes));
        }
        start.elapsed()
    };
    let elapsed = match direction {
        Direction::Read => loops(Direction::Read),
        Direction::Write => loops(Direction::Write),
    };
    elapsed.as_secs_f64() * 1e9 / f64::from(times)
}
