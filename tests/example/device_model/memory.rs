//! How much of the guest's memory the disk maps.

use std::os::unix::fs::FileExt;

use xenmap::{FRAME_SIZE, Gfn};

use super::Machine;
use super::program::buffers::Buffers;
use super::program::queue::Chain;

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
    let content: Vec<u8> = (0..=255).cycle().skip(7).step_by(3).take((PIECES * SECTOR) as usize).collect();
    machine.disk.write_all_at(&content, 0).unwrap();

    // Each piece is in two buckets of the cache, which no other piece is in.
    let pieces = (1..=u64::from(PIECES)).map(|piece| 2 * piece * MIB - u64::from(SECTOR) / 2);
    let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
    readable.push(0, 16); // a read from sector 0
    pieces.clone().for_each(|address| writable.push(address, SECTOR));
    writable.push(MIB, 1);
    let written = model.device.disk.serve(model.server.cache(), Chain { head: 0, readable, writable }, 0).unwrap();

    assert_eq!(written, PIECES * SECTOR + 1);
    // What was mapped at once stays mapped until the next miss.
    let mapped = model.server.cache().statistics().mapped_bytes;
    assert!(mapped <= MOST_MAPPED, "{} MiB", mapped >> 20);
    for (address, expected) in pieces.zip(content.chunks(SECTOR as usize)) {
        let offset = usize::try_from(address).unwrap() % FRAME_SIZE;
        let found = machine.domain.read(Gfn::containing(address).unwrap(), offset, expected.len());
        assert_eq!(found, expected, "at {address:#x}");
    }
}
