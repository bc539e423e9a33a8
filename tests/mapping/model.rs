//! Random operations, compared with a small model: who references which frame, and what it holds.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;

use crate::common::{FRAME, Guest, Host, ReadOnly, ReadWrite, on_each_host};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::{Access, ForeignMapping, Protection};

const FRAMES: usize = 12;

#[derive(Clone, Debug)]
enum Step {
    /// Maps these frames, where `FRAMES` stands for a hole; all or none, or partially.
    Map {
        frames: Vec<usize>,
        partial: bool,
        writable: bool,
    },
    Unmap {
        which: usize,
    },
    Write {
        which: usize,
        offset: usize,
        bytes: Vec<u8>,
    },
    GuestWrites {
        frame: usize,
        offset: usize,
        value: u8,
    },
    Read {
        which: usize,
        offset: usize,
        len: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let frames = proptest::collection::vec(0..=FRAMES, 1..8);
    let bytes = proptest::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        3 => (frames, any::<bool>(), any::<bool>())
            .prop_map(|(frames, partial, writable)| Step::Map { frames, partial, writable }),
        2 => any::<usize>().prop_map(|which| Step::Unmap { which }),
        4 => (any::<usize>(), 0..8 * FRAME, bytes).prop_map(|(which, offset, bytes)| Step::Write { which, offset, bytes }),
        1 => (0..FRAMES, 0..FRAME, any::<u8>())
            .prop_map(|(frame, offset, value)| Step::GuestWrites { frame, offset, value }),
        4 => (any::<usize>(), 0..8 * FRAME, 0..2 * FRAME).prop_map(|(which, offset, len)| Step::Read { which, offset, len }),
    ]
}

/// The expected state: the frames' contents, and the frames of each mapping.
#[derive(Default)]
struct Model {
    contents: BTreeMap<(usize, usize), u8>,
    mappings: Vec<Vec<usize>>,
}

impl Model {
    /// Returns the bytes of a range of a mapping; `None` if it touches a hole or passes the end.
    fn places(&self, which: usize, offset: usize, len: usize) -> Option<Vec<(usize, usize)>> {
        let frames = &self.mappings[which];
        let place = |at: usize| Some((*frames.get(at / FRAME)?, at % FRAME)).filter(|(frame, _)| *frame < FRAMES);
        // An empty access touches no frame, but must be within bounds.
        if offset + len > frames.len() * FRAME { None } else { (offset..offset + len).map(place).collect() }
    }

    /// Returns the number of references, and of frames that have any.
    fn references(&self) -> (usize, usize) {
        let mut all: Vec<usize> = self.mappings.iter().flatten().copied().filter(|&frame| frame < FRAMES).collect();
        let total = all.len();
        all.sort_unstable();
        all.dedup();
        (total, all.len())
    }
}

fn run(host: &Host, guest: &mut Guest, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (memory, gfns) = (host.open(), guest.gfns());
    let mut model = Model::default();
    let mut mappings: Vec<(ForeignMapping, Protection)> = Vec::new();
    for step in steps {
        match step {
            Step::Map { frames, partial, writable } => {
                let batch: Vec<_> =
                    frames.iter().map(|&frame| gfns.get(frame).copied().unwrap_or(guest.hole())).collect();
                let protection = if writable { ReadWrite } else { ReadOnly };
                if partial {
                    let mapping = memory.map_foreign_batch_partial(guest.domid(), protection, &batch).unwrap();
                    let failed: Vec<usize> = mapping.failed().iter().map(|e| e.index).collect();
                    let holes: Vec<usize> = (0..frames.len()).filter(|&i| frames[i] == FRAMES).collect();
                    prop_assert_eq!(failed, holes);
                    mappings.push((mapping, protection));
                    model.mappings.push(frames);
                } else {
                    let mapped = memory.map_foreign_batch(guest.domid(), protection, &batch);
                    prop_assert_eq!(mapped.is_ok(), !frames.contains(&FRAMES));
                    if let Ok(mapping) = mapped {
                        mappings.push((mapping, protection));
                        model.mappings.push(frames);
                    }
                }
            }
            Step::GuestWrites { frame, offset, value } => {
                guest.write(gfns[frame], offset, &[value]);
                model.contents.insert((frame, offset), value);
            }
            _ if mappings.is_empty() => {}
            Step::Unmap { which } => {
                let which = which % mappings.len();
                drop(mappings.swap_remove(which));
                model.mappings.swap_remove(which);
            }
            Step::Write { which, offset, bytes } => {
                let which = which % mappings.len();
                let (mapping, protection) = &mappings[which];
                let places = model.places(which, offset, bytes.len()).filter(|_| *protection == ReadWrite);
                let written = mapping.view().write_bytes(offset, &bytes);
                prop_assert_eq!(written.is_ok(), places.is_some(), "{:?}", written);
                model.contents.extend(places.unwrap_or_default().into_iter().zip(bytes));
            }
            Step::Read { which, offset, len } => {
                let which = which % mappings.len();
                let mut bytes = vec![0xEE; len];
                let read = mappings[which].0.view().read_bytes(offset, &mut bytes);
                let places = model.places(which, offset, len);
                prop_assert_eq!(read.is_ok(), places.is_some(), "{:?}", read);
                if let Some(places) = places {
                    let content = |place| model.contents.get(place).copied().unwrap_or(0);
                    prop_assert_eq!(bytes, places.iter().map(content).collect::<Vec<u8>>());
                }
            }
        }
        if let Host::Mock(mock) = host {
            prop_assert_eq!(mock.references(guest.domid()), model.references().0);
        }
    }
    guest.destroy();
    while let Some((mapping, _)) = mappings.pop() {
        prop_assert_eq!(host.owned(guest.domid()), Some(model.references().1 as u64).filter(|&frames| frames > 0));
        drop(mapping);
        model.mappings.pop();
    }
    prop_assert_eq!(host.owned(guest.domid()), None);
    Ok(())
}

#[test]
fn references_and_contents_match_the_model() {
    on_each_host(|host| {
        // Fewer on an emulated Xen, which is slow.
        let cases = if matches!(host, Host::Mock(_)) { 60 } else { 12 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        for &kind in host.guest_kinds() {
            let steps = proptest::collection::vec(step(), 1..40);
            let result = runner.run(&steps, |steps| run(host, &mut host.create(kind, FRAMES), steps));
            result.unwrap_or_else(|e| panic!("{kind:?} guest: {e}"));
        }
    });
}
