//! When references are given back.

#![expect(unsafe_code, reason = "makes system calls that bypass the library")]

use crate::common::{
    FRAME, ReadOnly, ReadWrite, ThenChild, in_child, in_own_process, numbers, on_each_host, with_each_guest,
};
use xenmap::{Access, GuestKind};

#[test]
fn drop_gives_the_references_back() {
    with_each_guest(20, |host, mut guest| {
        let domid = guest.domid();
        let mapping = host.open().map_foreign_batch(domid, ReadWrite, &guest.gfns()).unwrap();
        assert_eq!(host.owned(domid), Some(20));

        guest.destroy();
        assert_eq!(host.owned(domid), Some(20), "the mapping keeps every frame");
        drop(mapping);
        assert_eq!(host.owned(domid), None, "the domain is freed with the last reference");
    });
}

#[test]
fn aliases_and_a_child_hold_references_of_their_own() {
    in_own_process("unmap::aliases_and_a_child_hold_references_of_their_own", || {
        with_each_guest(64, |host, mut guest| {
            let (domid, gfns) = (guest.domid(), guest.gfns());
            let memory = host.open();
            let writable = memory.map_foreign_batch(domid, ReadWrite, &gfns[..8]).unwrap();
            let alias = memory.map_foreign_batch(domid, ReadOnly, &gfns[4..8]).unwrap();
            let (mut counts, mut ended) = (Vec::new(), false);
            in_child(
                |wait| {
                    let mapping = host.open().map_foreign_batch(domid, ReadOnly, &gfns[20..25]).unwrap();
                    wait();
                    mapping.frames() == 5
                },
                || {
                    guest.destroy();
                    counts.push(host.owned(domid));
                    assert_eq!(
                        writable.view().read::<u64>(0).unwrap(),
                        0,
                        "a mapping of a dead domain can still be read"
                    );
                    writable.view().write(0, 1_u64).unwrap();
                    drop(alias);
                    counts.push(host.owned(domid));
                    drop(writable);
                    counts.push(host.owned(domid));
                    ended = true;
                    ThenChild::IsKilled
                },
            );
            counts.push(host.owned(domid));
            assert!(ended, "the child has mapped its frames");
            assert_eq!(counts, [Some(13), Some(13), Some(5), None]);
        });
    });
}

#[test]
fn child_that_exits_gives_its_references_back() {
    in_own_process("unmap::child_that_exits_gives_its_references_back", || {
        with_each_guest(8, |host, mut guest| {
            let (domid, gfns) = (guest.domid(), guest.gfns());
            let child = |wait: &dyn Fn()| {
                let mapping = host.open().map_foreign_batch(domid, ReadOnly, &gfns).unwrap();
                wait();
                mapping.view().read::<u64>(0).is_ok()
            };
            let exited = in_child(child, || {
                guest.destroy();
                assert_eq!(host.owned(domid), Some(8));
                ThenChild::Continues
            });
            assert!(exited);
            assert_eq!(host.owned(domid), None);
        });
    });
}

#[test]
fn drop_in_a_forked_child_touches_nothing() {
    in_own_process("unmap::drop_in_a_forked_child_touches_nothing", || {
        with_each_guest(4, |host, guest| {
            guest.number_frames();
            let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
            let mut mapping = Some(mapping);
            let survived = in_child(
                |wait| {
                    // The child maps memory at the address of the parent's mapping.
                    let at = mapping.as_ref().unwrap().view().as_ptr();
                    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                    // SAFETY: MAP_FIXED_NOREPLACE replaces no existing mapping.
                    let own = unsafe { libc::mmap(at.cast(), FRAME, prot, flags | libc::MAP_FIXED_NOREPLACE, -1, 0) };
                    assert_eq!(own, at.cast(), "the mapping is not inherited");
                    drop(mapping.take());
                    wait();
                    // SAFETY: our own memory, unless Drop wrongly unmapped it, which the test would detect.
                    unsafe { at.write_volatile(7) };
                    true
                },
                || ThenChild::Continues,
            );
            assert!(survived);
            assert_eq!(numbers(mapping.as_ref().unwrap()), [0, 1, 2, 3], "the parent's mapping is as it was");
        });
    });
}

#[test]
fn mapping_outlives_its_handle() {
    with_each_guest(4, |host, mut guest| {
        guest.number_frames();
        let memory = host.open();
        let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        drop(memory);
        assert_eq!(numbers(&mapping), [0, 1, 2, 3]);

        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(4));
        drop(mapping);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn mapping_is_dropped_on_any_thread() {
    with_each_guest(4, |host, mut guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        guest.destroy();
        std::thread::spawn(move || drop(mapping)).join().unwrap();
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn mapping_keeps_the_page_that_the_guest_gives_away() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 64);
        let (domid, gfn) = (guest.domid(), guest.gfns()[40]);
        guest.write(gfn, 0, &[0x66; 8]);
        let old = host.open().map_foreign_batch(domid, ReadOnly, &[gfn]).unwrap();

        guest.balloon_out(gfn);
        assert_eq!(host.owned(domid), Some(64), "the page is still the domain's");
        assert_eq!(old.view().read::<u8>(0).unwrap(), 0x66);

        guest.populate(gfn);
        assert_eq!(host.owned(domid), Some(65));
        guest.write(gfn, 0, &[0x77; 8]);
        let new = host.open().map_foreign_batch(domid, ReadOnly, &[gfn]).unwrap();
        assert_eq!((old.view().read::<u8>(0).unwrap(), new.view().read::<u8>(0).unwrap()), (0x66, 0x77));

        drop(old);
        assert_eq!(host.owned(domid), Some(64));
    });
}

#[test]
fn munmap_outside_the_library_gives_the_references_back_too() {
    with_each_guest(4, |host, mut guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        // Drop would unmap what another thread may have mapped there by then.
        let mapping = std::mem::ManuallyDrop::new(mapping);
        guest.destroy();
        // SAFETY: nobody uses the mapping any more.
        let result = unsafe { libc::munmap(mapping.view().as_ptr().cast(), 4 * FRAME) };
        assert_eq!(result, 0);
        assert_eq!(host.owned(guest.domid()), None);
    });
}
