//! Random operations, compared with a simple model of what is remembered.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::{Host, on_each_host};
use crate::tables::{ALL, GIB_1, KIB_4, LARGE, MIB_2, Tables};

/// Pages in each of two ranges, one of which may be a page of 2 MiB.
const PAGES: u64 = 8;
const RANGES: [u64; 2] = [0x7F00_0000_0000, GIB_1];

#[derive(Clone, Debug)]
enum Step {
    /// The guest maps a page to a frame, or nowhere.
    Map(u64, Option<u64>),
    /// The guest maps all pages of the second range at once, to the frames from 0 on; or again one by one.
    MapLarge(bool),
    Read(u64, u64),
    Write(u64, u64),
    Invalidate(u64, u64),
    InvalidateAll,
}

fn any_step() -> impl Strategy<Value = Step> {
    let page = 0..2 * PAGES;
    prop_oneof![
        3 => (page.clone(), prop::option::weighted(0.8, 0..16_u64)).prop_map(|(page, frame)| Step::Map(page, frame)),
        1 => any::<bool>().prop_map(Step::MapLarge),
        8 => (page.clone(), 0..0x1000_u64).prop_map(|(page, offset)| Step::Read(page, offset)),
        2 => (page.clone(), 0..0x200_u64).prop_map(|(page, word)| Step::Write(page, word)),
        2 => (page, 1..4_u64).prop_map(|(page, count)| Step::Invalidate(page, count)),
        1 => Just(Step::InvalidateAll),
    ]
}

fn address(page: u64) -> u64 {
    RANGES[usize::try_from(page / PAGES).unwrap()] + page % PAGES * KIB_4
}

/// What the tables say, and what is remembered: physical addresses of pages.
#[derive(Default)]
struct Model {
    tables: BTreeMap<u64, u64>,
    is_large: bool,
    small: BTreeMap<u64, u64>,
    is_large_remembered: bool,
    /// The bytes of each frame that were written.
    memory: BTreeMap<u64, u8>,
}

impl Model {
    /// Returns the physical address of a page, and remembers it.
    fn translate(&mut self, page: u64) -> Option<u64> {
        let in_large = page >= PAGES;
        if in_large && self.is_large_remembered {
            return Some(page % PAGES * KIB_4);
        }
        if let Some(known) = self.small.get(&page) {
            return Some(*known);
        }
        if in_large && self.is_large {
            self.is_large_remembered = true;
            return Some(page % PAGES * KIB_4);
        }
        let found = *self.tables.get(&page)?;
        self.small.insert(page, found);
        Some(found)
    }

    fn byte(&self, physical: u64) -> u8 {
        let of_number = u8::try_from(physical / KIB_4).unwrap() * u8::from(physical.is_multiple_of(8));
        self.memory.get(&physical).copied().unwrap_or(of_number)
    }
}

#[test]
fn reads_and_writes_go_where_the_model_says() {
    on_each_host(|host| {
        let cases = if matches!(host, Host::Mock(_)) { 64 } else { 8 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let memory = host.open();
        runner
            .run(&prop::collection::vec(any_step(), 1..80), |steps| {
                let tables = Tables::four_levels(host);
                tables.number_frames();
                // Makes the table of level 1, to which the guest may return.
                tables.map(address(PAGES), 0);
                tables.set(address(PAGES), 1, 0);
                let table = u64::from_ne_bytes(tables.read(34, 0, 8).try_into().unwrap());
                let space = tables.open(&memory);
                let mut model = Model::default();
                for step in steps {
                    match step {
                        Step::Map(page, _) if page >= PAGES && model.is_large => {}
                        Step::Map(page, Some(frame)) => {
                            tables.map(address(page), frame);
                            model.tables.insert(page, frame * KIB_4);
                        }
                        Step::Map(page, None) => {
                            tables.set(address(page), 1, 0);
                            model.tables.remove(&page);
                        }
                        Step::MapLarge(is_large) => {
                            let entry = if is_large { LARGE | ALL } else { table };
                            tables.set(RANGES[1], 2, entry);
                            model.is_large = is_large;
                        }
                        Step::Read(page, offset) => {
                            let mut found = [0];
                            let read = space.read_bytes(address(page) + offset, &mut found);
                            let expected = model.translate(page).map(|start| model.byte(start + offset));
                            prop_assert_eq!(read.ok().map(|()| found[0]), expected);
                        }
                        Step::Write(page, word) => {
                            let value = u64::from_ne_bytes([u8::try_from(word % 255).unwrap() + 1; 8]);
                            let written = space.write(address(page) + word * 8, value);
                            let expected = model.translate(page);
                            prop_assert_eq!(written.is_ok(), expected.is_some());
                            if let Some(start) = expected {
                                let byte = value.to_ne_bytes()[0];
                                model.memory.extend((0..8).map(|at| (start + word * 8 + at, byte)));
                            }
                        }
                        Step::Invalidate(page, count) => {
                            let start = address(page);
                            space.invalidate(start..start + count * KIB_4);
                            let range = start..start + count * KIB_4;
                            model.small.retain(|&page, _| !range.contains(&address(page)));
                            if range.start < RANGES[1] + MIB_2 && RANGES[1] < range.end {
                                model.is_large_remembered = false;
                            }
                        }
                        Step::InvalidateAll => {
                            space.invalidate_all();
                            model.small.clear();
                            model.is_large_remembered = false;
                        }
                    }
                }
                Ok(())
            })
            .unwrap();
    });
}
