//! How much of the guest's memory the disk maps.

use std::os::unix::fs::FileExt;

use xenmap::{Gfn, MapCache};

use super::Machine;

const MIB: u64 = 1 << 20;
const SECTOR: u32 = 512;
/// The most pieces of data in a request.
const PIECES: u32 = 126;

/// What a queue's requests map in addition to the cache's budget, according to --help.
const MOST_MAPPED: usize = 48 << 20;

#[test]
fn longest_request_maps_a_part_of_its_memory_at_a_time() {
    let machine = Machine::with_ram(2 * PIECES as usize + 2);
    let model = machine.open(false, None).unwrap();
    let cache = model.server.cache();
    let content: Vec<u8> = (0..=255).cycle().skip(7).step_by(3).take((PIECES * SECTOR) as usize).collect();
    machine.disk.write_all_at(&content, 0).unwrap();
    // Each piece is in two buckets of the cache, which no other piece is in.
    let pieces = (1..=u64::from(PIECES)).map(|piece| 2 * piece * MIB - u64::from(SECTOR) / 2);
    let (header, status) = ((0, 16), (MIB, 1));
    let data: Vec<(u64, u32)> = pieces.map(|address| (address, SECTOR)).collect();

    // Reads the first sectors, then writes what was read to others.
    let chain = super::chain(&[header], &[&data[..], &[status]].concat());
    let read = model.device.disk.serve(cache, chain, 0).unwrap();
    assert_eq!(read, PIECES * SECTOR + 1);
    assert_mapped(cache);
    machine.domain.write(Gfn::new(0).unwrap(), 0, &[1, 0, 0, 0, 0, 0, 0, 0, 232, 3]); // from sector 1000
    let chain = super::chain(&[&[header], &data[..]].concat(), &[status]);
    let written = model.device.disk.serve(cache, chain, 0).unwrap();

    assert_eq!(written, 1, "the status");
    assert_mapped(cache);
    let mut copy = vec![0; content.len()];
    machine.disk.read_exact_at(&mut copy, 1000 * u64::from(SECTOR)).unwrap();
    assert!(copy == content);
}

/// Checks how much a request has mapped at once: that stays mapped until the next miss.
#[track_caller]
fn assert_mapped(cache: &MapCache) {
    let mapped = cache.statistics().mapped_bytes;
    assert!(mapped <= MOST_MAPPED, "{} MiB", mapped >> 20);
}
