//! Paged-out frames: retried until they are back, or the deadline has passed.
//!
//! Real paging needs xenpaging and EPT, which QEMU does not emulate, so these tests use the mock.

use std::time::{Duration, Instant};

use crate::common::{ReadOnly, failures, mock_with, mock_with_pages, numbers};
use xenmap::mock::{Dom0, Fault, HostConfig, Hypercalls, MockDomain, MockHost};
use xenmap::{Access, GuestKind};

fn host(dom0: Dom0, kernel: (u16, u16)) -> MockHost {
    let mut config = HostConfig::default();
    (config.dom0, config.kernel) = (dom0, kernel);
    mock_with(config)
}

/// Creates a guest whose frames hold their number.
fn guest(host: &MockHost, frames: usize) -> MockDomain {
    let guest = host.create_domain(GuestKind::Hvm, frames);
    for gfn in guest.frames() {
        guest.write(gfn, 0, &gfn.get().to_ne_bytes());
    }
    guest
}

#[test]
fn paged_out_frames_are_waited_for() {
    // Old kernels return ENOENT if any frame has it; current ones only if the last frame does.
    for kernel in [(3, 12), (4, 0), (4, 1), (6, 1)] {
        let host = host(Dom0::Pv, kernel);
        let guest = guest(&host, 600);
        for (frame, asks) in [(0, 1), (1, 3), (2, 2), (300, 1), (511, 2), (599, 4)] {
            guest.page_out(guest.frames()[frame], asks).unwrap();
        }
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        assert_eq!(numbers(&mapping), (0..600).collect::<Vec<u64>>(), "linux {kernel:?}");
        assert_eq!(host.references(guest.domid()), 600);
    }
}

#[test]
fn only_missing_frames_are_retried() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 512);
    guest.page_out(guest.frames()[100], 2).unwrap();
    drop(host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap());
    // The batch, one more update after the frame that failed, and two retries of that frame alone.
    assert_eq!(host.hypercalls().mmu_update, 32 + 1 + 2);
}

#[test]
fn kernel_that_cannot_populate_twice_is_given_a_new_mapping() {
    let host = host(Dom0::Pv, (3, 8));
    let guest = guest(&host, 20);
    guest.page_out(guest.frames()[7], 2).unwrap();
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    assert_eq!(numbers(&mapping), (0..20).collect::<Vec<u64>>());
}

#[test]
fn frame_that_does_not_come_back_fails_after_the_deadline() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 20);
    for frame in [3, 4] {
        guest.page_out(guest.frames()[frame], u32::MAX).unwrap();
    }
    let timeout = Duration::from_millis(80);
    let memory = host.open().unwrap().with_paged_out_timeout(timeout);

    let start = Instant::now();
    let result = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    let took = start.elapsed();

    // The pauses double from 0.1 ms to 20 ms, so there are at most 12, and fewer on a busy machine. Each retry asks for
    // both frames.
    let asked = asked(Hypercalls::default(), host.hypercalls());
    assert!(asked < 40, "asked {asked} times");
    assert!(took >= timeout && took < timeout + Duration::from_secs(2), "{took:?}");
    let message = result.as_ref().unwrap_err().to_string();
    assert!(message.ends_with("frame 0x3 (index 3): paged out, and not back in time"), "{message}");
    assert_eq!(failures(result), [(3, libc::ENOENT), (4, libc::ENOENT)]);
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn deadline_covers_the_whole_call() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 3 * 16 * 1024);
    for part in 0..3 {
        guest.page_out(guest.frames()[part * 16 * 1024], u32::MAX).unwrap();
    }
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(1));
    let before = host.hypercalls();
    let start = Instant::now();
    let result = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert_eq!(failures(result).len(), 3);
    // A timeout for each of the three parts would add up to three seconds.
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    assert!(asked(before, host.hypercalls()) > 10, "it did not keep retrying");
}

fn asked(before: Hypercalls, after: Hypercalls) -> u64 {
    after.mmuext_op - before.mmuext_op
}

#[test]
fn infinite_timeout_waits_until_the_frame_is_back() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 2);
    guest.page_out(guest.frames()[1], 3).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::MAX);
    memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
}

#[test]
fn permanent_failure_of_another_frame_ends_the_wait() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 3);
    guest.page_out(guest.frames()[1], u32::MAX).unwrap();
    guest.balloon_out(guest.frames()[2]);
    let gfns: Vec<_> = (0..3).map(|gfn| xenmap::Gfn::new(gfn).unwrap()).collect();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::MAX);
    let result = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns);
    assert_eq!(failures(result), [(1, libc::ENOENT), (2, libc::EINVAL)]);
}

#[test]
fn zero_timeout_tries_once() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 1);
    guest.page_out(guest.frames()[0], 1).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::ZERO);
    assert_eq!(failures(memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames())), [(0, libc::ENOENT)]);
    assert_eq!(host.hypercalls().mmu_update, 1);
}

#[test]
fn partial_mapping_keeps_what_came_back() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 10);
    guest.page_out(guest.frames()[2], 3).unwrap();
    guest.page_out(guest.frames()[5], u32::MAX).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(1));
    let mapping = memory.map_foreign_batch_partial(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    assert_eq!(mapping.failed().iter().map(|e| (e.index, e.errno)).collect::<Vec<_>>(), [(5, libc::ENOENT)]);
    assert_eq!(mapping.view().read::<u64>(2 * 4096).unwrap(), 2);
}

#[test]
fn every_frame_of_a_run_is_retried() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 10);
    for (frame, asks) in [(4, 2), (5, u32::MAX), (6, 2)] {
        guest.page_out(guest.frames()[frame], asks).unwrap();
    }
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(1));
    let mapping = memory.map_foreign_batch_partial(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    assert_eq!(mapping.failed().iter().map(|e| e.index).collect::<Vec<_>>(), [5], "its neighbours are mapped");
    assert_eq!(mapping.view().read::<u64>(4 * 4096).unwrap(), 4);
    assert_eq!(mapping.view().read::<u64>(6 * 4096).unwrap(), 6);
}

#[test]
fn retry_that_the_kernel_refuses_is_an_error() {
    let host = host(Dom0::Pv, (6, 1));
    let guest = guest(&host, 10);
    guest.page_out(guest.frames()[4], 2).unwrap();
    host.inject_after(1, Fault::MapBatch(libc::EPERM));
    let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert_eq!(result.unwrap_err().errno(), libc::EPERM);
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn auto_translated_dom0_cannot_wait_for_a_frame() {
    let host = host(Dom0::Pvh, (6, 1));
    let guest = guest(&host, 2);
    guest.page_out(guest.frames()[1], 1).unwrap();
    let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert_eq!(failures(result), [(1, libc::EINVAL)]);
}

#[test]
fn retry_in_an_auto_translated_dom0_replaces_the_whole_mapping() {
    // These kernels never return ENOENT. If one did, a hole must not be filled in place, since that would use other
    // pages.
    for (host, frames, mapped, unmapped) in
        [(host(Dom0::Pvh, (6, 1)), 600, 600, 600), (mock_with_pages(Dom0::Arm, 0x4000), 598, 150, 600)]
    {
        let guest = guest(&host, frames);
        host.inject(Fault::Frame { index: 597, error: -libc::ENOENT });
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        assert_eq!(numbers(&mapping), (0..frames as u64).collect::<Vec<u64>>());
        drop(mapping);
        assert_eq!(host.hypercalls().memory_op, 2 * (mapped + unmapped), "mapped twice, unmapped twice");
    }
}
