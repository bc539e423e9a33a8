//! Random use of the map cache: a shorter `examples/soak`, on any host.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::print_stdout, reason = "shows what a failed test did")]

#[path = "../../examples/soak/ram.rs"]
mod ram;
#[path = "../../examples/soak/soak.rs"]
mod steps;

use crate::common::{Host, ReadOnly, on_each_host, pfns};
use ram::Ram;
use steps::{Done, Soak};
use xenmap::mock::{Dom0, PvKernel};
use xenmap::{CacheConfig, CacheStatistics, Domid, Gfn, Guest, GuestKind, MapCache};

const BUCKET: usize = 64 << 10;
const BUDGET: usize = 1 << 20;

fn soak(host: &Host, domid: Domid, operations: u64) -> (Done, CacheStatistics) {
    const SEED: u64 = 4;
    let memory = host.open();
    let guest = Guest::open(&memory, domid).unwrap();
    let mut ram = Ram::read(&guest, &[]).unwrap();
    let mut config = CacheConfig::default();
    (config.bucket_size, config.budget) = (BUCKET, BUDGET);
    let cache = MapCache::with_config(Guest::open(&memory, domid).unwrap(), config).unwrap();

    let mut soak = Soak::new(&cache, &mut ram, 4 * BUCKET, SEED);
    for operation in 0..operations {
        soak.step().unwrap_or_else(|e| panic!("seed {SEED}, operation {operation}: {e}"));
    }
    let done = soak.done();
    drop(soak);

    // More than the budget may have been in use. The next mapping enforces it again.
    cache.invalidate(0..1);
    cache.get(ReadOnly, 0, 1).unwrap();
    let statistics = cache.statistics();
    println!("{} bytes read, {} written, {statistics:?}", done.bytes_read, done.bytes_written);
    assert!(statistics.mapped_bytes <= BUDGET, "more than the budget is mapped: {}", statistics.mapped_bytes);
    assert_eq!(statistics.pinned, 0);
    drop(cache);
    let changed = ram.check_and_restore(&guest).unwrap();
    assert!(changed > 100, "only {changed} frames were written");
    (done, statistics)
}

#[test]
fn random_accesses_see_the_guests_data() {
    on_each_host(|host| {
        let mut guest = host.create(GuestKind::Hvm, 2048);
        guest.number_frames();
        // Holes, within buckets and a whole one.
        for gfn in [700, 701, 1501].into_iter().chain(1024..1040) {
            guest.balloon_out(Gfn::new(gfn).unwrap());
        }

        let (done, statistics) = soak(host, guest.domid(), 2000);

        assert_eq!(done.refused, 0);
        assert!(statistics.hits > 0 && statistics.misses > 100 && statistics.evictions > 100, "{statistics:?}");
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), None, "a zombie");
    });
}

#[test]
fn only_page_tables_are_refused() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = Host::Mock(crate::common::mock(dom0));
        let Host::Mock(mock) = &host else { unreachable!() };
        let guest = mock.create_domain(GuestKind::Pv, 2048);
        guest.start_kernel(&PvKernel::default());
        for pfn in pfns(0..1900).into_iter().step_by(100) {
            guest.pin_page_table(guest.mfn(pfn).unwrap()).unwrap();
        }

        let (done, _) = soak(&host, guest.domid(), 2000);

        // Page types are checked in a PV dom0 only.
        assert_eq!(done.refused > 0, host.is_pv());
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), None, "a zombie");
    }
}
