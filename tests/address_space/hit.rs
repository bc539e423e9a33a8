//! What was read before is read again at little cost.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use xenmap::mock::Dom0;

use crate::allocations::allocations;
use crate::common::{Host, mock, on_each_host};
use crate::tables::{DATA, KIB_4, Tables};

/// Maps each data frame, and reads the beginning and the end of each page.
fn with_warm_space(host: &Host, test: impl Fn(&xenmap::AddressSpace)) {
    let tables = Tables::four_levels(host);
    (0..DATA).for_each(|frame| tables.map(0x60_0000 + frame * KIB_4, DATA - 1 - frame));
    let memory = host.open();
    let space = tables.open(&memory);
    read_all(&space);
    test(&space);
}

fn read_all(space: &xenmap::AddressSpace) {
    for page in 0..DATA {
        let address = 0x60_0000 + page * KIB_4;
        space.read::<u64>(address).unwrap();
        space.read_bytes(address + 0xFF0, &mut [0; 16]).unwrap();
        assert_eq!(space.translate(address).unwrap().physical, (DATA - 1 - page) * KIB_4);
        space.read_bytes(0x60_0800, &mut [0; 0x3000]).unwrap(); // in several pages
    }
}

#[test]
fn warm_reads_allocate_nothing() {
    on_each_host(|host| {
        with_warm_space(host, |space| {
            let before = allocations();
            read_all(space);
            assert_eq!(allocations(), before);
        });
    });
}

#[test]
fn warm_reads_map_nothing() {
    for dom0 in [Dom0::Pv, Dom0::Pvh, Dom0::Arm] {
        let host = mock(dom0);
        with_warm_space(&Host::Mock(host.clone()), |space| {
            let (before, misses) = (host.hypercalls(), space.cache().statistics().misses);
            read_all(space);
            assert_eq!(host.hypercalls(), before);
            assert_eq!(space.cache().statistics().misses, misses);
        });
    }
}
