//! Random operations, compared with a small model: what is mapped, what it holds, and who references it.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::common::{FRAME, ReadOnly, ReadWrite, mock_with_pages};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::mock::{Dom0, MockDomain, MockHost};
use xenmap::{Access, CacheConfig, Error, Guest, GuestKind, MapCache, Pinned, View};

const FRAMES: usize = 24;
/// The frames of a bucket.
const PER_BUCKET: usize = 4;
const BUCKET: usize = PER_BUCKET * FRAME;
/// The offset of the number in each frame.
const AT: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Get {
        first: usize,
        frames: usize,
        writable: bool,
        keep: bool,
    },
    Drop {
        which: usize,
    },
    Write {
        which: usize,
        frame: usize,
        value: u64,
    },
    GuestWrites {
        frame: usize,
        value: u64,
    },
    /// The guest balloons a frame out, or populates it.
    Balloon {
        frame: usize,
    },
    /// The guest replaces a frame, and the test invalidates it.
    Exchange {
        frame: usize,
    },
    Invalidate {
        first: usize,
        frames: usize,
    },
    InvalidateAll,
    Prefetch {
        first: usize,
        frames: usize,
        writable: bool,
    },
    Close,
}

/// Steps in which the guest's changes are announced to the cache, or not.
fn step(announced: bool) -> impl Strategy<Value = Step> {
    let range = || (0..FRAMES + 2, 1..10_usize);
    prop_oneof![
        30 => (range(), any::<bool>(), any::<bool>())
            .prop_map(|((first, frames), writable, keep)| Step::Get { first, frames, writable, keep }),
        10 => any::<usize>().prop_map(|which| Step::Drop { which }),
        20 => (any::<usize>(), any::<usize>(), any::<u64>())
            .prop_map(|(which, frame, value)| Step::Write { which, frame, value }),
        10 => (0..FRAMES, any::<u64>()).prop_map(|(frame, value)| Step::GuestWrites { frame, value }),
        10 => (0..FRAMES)
            .prop_map(move |frame| if announced { Step::Exchange { frame } } else { Step::Balloon { frame } }),
        6 => range().prop_map(|(first, frames)| Step::Invalidate { first, frames }),
        2 => Just(Step::InvalidateAll),
        5 => (range(), any::<bool>())
            .prop_map(|((first, frames), writable)| Step::Prefetch { first, frames, writable }),
        1 => Just(Step::Close),
    ]
}

/// The number of a page of memory; never reused.
type Page = usize;

/// A mapped bucket.
struct Mapped {
    bucket: usize,
    pages: Vec<Option<Page>>,
    writable: bool,
    guards: usize,
    /// Whether a get finds it.
    is_cached: bool,
}

/// The expected state, if nothing is evicted.
struct Model {
    frames: Vec<Option<Page>>,
    contents: BTreeMap<Page, u64>,
    next_page: Page,
    /// Also those that are unmapped by now.
    mapped: Vec<Mapped>,
    hits: u64,
    misses: u64,
    is_closed: bool,
}

impl Model {
    fn new() -> Model {
        // No RAM after the last frame.
        let frames = (0..FRAMES).map(Some).chain([None; 16]).collect();
        Model {
            frames,
            contents: BTreeMap::new(),
            next_page: FRAMES,
            mapped: Vec::new(),
            hits: 0,
            misses: 0,
            is_closed: false,
        }
    }

    /// Finds a bucket that has all of some frames, or maps it; `None` if there is nothing to map.
    fn find(&mut self, bucket: usize, frames: Range<usize>, writable: bool) -> Option<usize> {
        let old = self.mapped.iter().position(|mapped| mapped.is_cached && mapped.bucket == bucket);
        let serves = |mapped: &Mapped| {
            let start = bucket * PER_BUCKET;
            let mut pages = (start..).zip(&mapped.pages).filter(|(frame, _)| frames.contains(frame));
            (mapped.writable || !writable) && pages.all(|(_, page)| page.is_some())
        };
        if let Some(old) = old.filter(|&old| serves(&self.mapped[old])) {
            self.hits += 1;
            return Some(old);
        }
        self.misses += 1;
        let pages = self.frames[bucket * PER_BUCKET..][..PER_BUCKET].to_vec();
        if pages.iter().all(Option::is_none) {
            return None;
        }
        if let Some(old) = old {
            self.mapped[old].is_cached = false;
        }
        self.mapped.push(Mapped { bucket, pages, writable, guards: 0, is_cached: true });
        Some(self.mapped.len() - 1)
    }

    /// Returns the mapped buckets of a guard, and the page of each of its frames; or the frame that fails.
    fn get(&mut self, first: usize, frames: usize, writable: bool) -> Result<(Vec<usize>, Vec<Page>), usize> {
        let (mut parts, mut pages) = (Vec::new(), Vec::new());
        for frame in first..first + frames {
            let bucket = frame / PER_BUCKET;
            if parts.last().is_none_or(|&part: &usize| self.mapped[part].bucket != bucket) {
                if self.is_closed {
                    return Err(frame);
                }
                parts.push(self.find(bucket, first..first + frames, writable).ok_or(frame)?);
            }
            pages.push(self.mapped[parts[parts.len() - 1]].pages[frame % PER_BUCKET].ok_or(frame)?);
        }
        Ok((parts, pages))
    }

    fn prefetch(&mut self, buckets: std::ops::RangeInclusive<usize>, writable: bool) {
        if self.is_closed {
            return;
        }
        for bucket in buckets {
            self.find(bucket, 0..0, writable);
        }
    }

    fn invalidate(&mut self, buckets: std::ops::RangeInclusive<usize>) {
        let hit = self.mapped.iter_mut().filter(|mapped| buckets.contains(&mapped.bucket));
        hit.for_each(|mapped| mapped.is_cached = false);
    }

    /// Gives a frame a new page.
    fn populate(&mut self, frame: usize) {
        self.frames[frame] = Some(self.next_page);
        self.next_page += 1;
    }

    fn pin(&mut self, parts: &[usize]) {
        for &part in parts {
            self.mapped[part].guards += 1;
        }
    }

    fn unpin(&mut self, parts: &[usize]) {
        for &part in parts {
            self.mapped[part].guards -= 1;
        }
    }

    /// Returns the mapped bytes, the references, and the buckets in use.
    fn counts(&self) -> (usize, usize, usize) {
        let there: Vec<&Mapped> = self.mapped.iter().filter(|mapped| mapped.is_cached || mapped.guards > 0).collect();
        let references = there.iter().map(|mapped| mapped.pages.iter().flatten().count()).sum();
        (there.len() * BUCKET, references, there.iter().filter(|mapped| mapped.guards > 0).count())
    }
}

/// A guard, with its state in the model.
struct Held<'c> {
    pinned: Pinned<'c>,
    writable: bool,
    parts: Vec<usize>,
    pages: Vec<Page>,
}

fn run(host: &MockHost, steps: Vec<Step>, buckets: Option<usize>) -> Result<(), TestCaseError> {
    let domain = host.create_domain(GuestKind::Hvm, FRAMES);
    let gfns = domain.frames();
    let memory = host.open().unwrap();
    let mut config = CacheConfig::default();
    (config.bucket_size, config.budget) = (BUCKET, buckets.map_or(1 << 30, |buckets| buckets * BUCKET));
    let cache = MapCache::with_config(Guest::open(&memory, domain.domid()).unwrap(), config).unwrap();
    let address = |frame: usize| (frame * FRAME) as u64;
    let protection = |writable| if writable { ReadWrite } else { ReadOnly };
    let mut model = Model::new();
    let mut held: Vec<Held<'_>> = Vec::new();
    for step in steps {
        match step {
            Step::Get { first, frames, writable, keep } => {
                let result = cache.get(protection(writable), address(first), frames * FRAME);
                match (result, model.get(first, frames, writable)) {
                    (Ok(pinned), Ok((parts, pages))) => {
                        let new = Held { pinned, writable, parts, pages };
                        check(&model, &new)?;
                        if keep {
                            model.pin(&new.parts);
                            held.push(new);
                        }
                    }
                    (Err(Error::GuestAddress { address: at, .. }), Err(frame)) => prop_assert_eq!(at, address(frame)),
                    (result, expected) => prop_assert!(false, "{:?} and not {:?}", result, expected),
                }
            }
            Step::Drop { .. } | Step::Write { .. } if held.is_empty() => {}
            Step::Drop { which } => {
                let gone = held.swap_remove(which % held.len());
                model.unpin(&gone.parts);
            }
            Step::Write { which, frame, value } => {
                let Held { pinned, writable, pages, .. } = &held[which % held.len()];
                let frame = frame % pages.len();
                let written = pinned.write(frame * FRAME + AT, value);
                prop_assert_eq!(written.is_ok(), *writable);
                if *writable {
                    model.contents.insert(pages[frame], value);
                }
            }
            Step::GuestWrites { frame, value } => {
                if let Some(page) = model.frames[frame] {
                    domain.write(gfns[frame], AT, &value.to_ne_bytes());
                    model.contents.insert(page, value);
                }
            }
            Step::Balloon { frame } if model.frames[frame].is_some() => {
                domain.balloon_out(gfns[frame]);
                model.frames[frame] = None;
            }
            Step::Balloon { frame } | Step::Exchange { frame } => {
                if model.frames[frame].is_some() {
                    domain.balloon_out(gfns[frame]);
                }
                domain.populate(&[gfns[frame]]);
                model.populate(frame);
                if matches!(step, Step::Exchange { .. }) {
                    cache.invalidate(address(frame)..address(frame) + 1);
                    model.invalidate(frame / PER_BUCKET..=frame / PER_BUCKET);
                }
            }
            Step::Invalidate { first, frames } => {
                cache.invalidate(address(first)..address(first + frames));
                model.invalidate(first / PER_BUCKET..=(first + frames - 1) / PER_BUCKET);
            }
            Step::InvalidateAll => {
                cache.invalidate_all();
                model.invalidate(0..=usize::MAX);
            }
            Step::Prefetch { first, frames, writable } => {
                let prefetched = cache.prefetch(protection(writable), address(first)..address(first + frames));
                prop_assert_eq!(prefetched.is_err(), model.is_closed);
                model.prefetch(first / PER_BUCKET..=(first + frames - 1) / PER_BUCKET, writable);
            }
            Step::Close => {
                cache.close();
                model.is_closed = true;
                model.invalidate(0..=usize::MAX);
            }
        }

        compare(host, &domain, &cache, &model, &held, buckets.is_none())?;
    }
    if let Some(buckets) = buckets {
        held.clear();
        cache.invalidate(0..1);
        drop(cache.get(ReadOnly, 0, FRAME));
        prop_assert!(model.is_closed || cache.statistics().mapped_bytes <= buckets * BUCKET);
    }
    cache.close();
    domain.destroy();
    if buckets.is_none() {
        model.invalidate(0..=usize::MAX);
        prop_assert_eq!(host.references(domain.domid()), model.counts().1, "only guards hold references");
    }
    drop(held);
    prop_assert_eq!(host.references(domain.domid()), 0, "no guard is left");
    prop_assert_eq!(domain.owned_frames(), None);
    Ok(())
}

/// Compares everything with the model; what is cached only if nothing is evicted.
fn compare(
    host: &MockHost,
    domain: &MockDomain,
    cache: &MapCache,
    model: &Model,
    held: &[Held<'_>],
    is_roomy: bool,
) -> Result<(), TestCaseError> {
    for held in held {
        check(model, held)?;
    }
    let statistics = cache.statistics();
    let found = (statistics.mapped_bytes, host.references(domain.domid()), statistics.pinned);
    if is_roomy {
        prop_assert_eq!(found, model.counts());
        prop_assert_eq!((statistics.hits, statistics.misses), (model.hits, model.misses));
    } else {
        // No step leaves holes in this case.
        let bases: BTreeSet<usize> = held.iter().flat_map(|held| bases(&held.pinned)).collect();
        prop_assert_eq!(found, (found.1 * FRAME, found.1, bases.len()));
    }
    Ok(())
}

/// Returns the addresses of a guard's buckets in this process.
fn bases(pinned: &Pinned<'_>) -> Vec<usize> {
    let mut address = pinned.address();
    let base = |view: View<'_>| {
        let offset = usize::try_from(address).unwrap() % BUCKET;
        address += view.len() as u64;
        view.as_ptr().addr() - offset
    };
    pinned.views().map(base).collect()
}

/// Checks that a guard reads what its pages hold.
fn check(model: &Model, held: &Held<'_>) -> Result<(), TestCaseError> {
    for (i, page) in held.pages.iter().enumerate() {
        let expected = model.contents.get(page).copied().unwrap_or(0);
        prop_assert_eq!(held.pinned.read::<u64>(i * FRAME + AT).unwrap(), expected, "page {}", page);
    }
    Ok(())
}

fn check_all(buckets: Option<usize>) {
    for (dom0, page_size) in [(Dom0::Pv, FRAME), (Dom0::Pvh, FRAME), (Dom0::Arm, 4 * FRAME)] {
        let mut runner = TestRunner::new(Config { cases: 30, failure_persistence: None, ..Config::default() });
        let steps = proptest::collection::vec(step(buckets.is_some()), 1..60);
        let result = runner.run(&steps, |steps| run(&mock_with_pages(dom0, page_size), steps, buckets));
        result.unwrap_or_else(|e| panic!("{dom0:?}: {e}"));
    }
}

#[test]
fn references_and_contents_match_the_model() {
    check_all(None);
}

#[test]
fn contents_match_the_model_whatever_is_evicted() {
    check_all(Some(1));
    check_all(Some(3));
}
