//! The mock detects misuse that a real Xen punishes, and counts costs.

#![expect(unsafe_code, reason = "misuses mappings")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use crate::common::{
    FRAME, ReadOnly, ReadWrite, ThenChild, in_child, in_own_process, mock, mock_with, on_each_host, with_each_guest,
};
use xenmap::mock::{Dom0, MockDomain, MockHost};
use xenmap::{Access, Domid, ForeignMapping, Gfn, GuestKind};

fn mapped(dom0: Dom0, frames: usize) -> (MockHost, MockDomain, std::mem::ManuallyDrop<ForeignMapping>) {
    let host = mock(dom0);
    let guest = host.create_domain(GuestKind::Hvm, frames);
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadWrite, &guest.frames()).unwrap();
    // Drop must not touch a mapping that the test has broken.
    (host, guest, std::mem::ManuallyDrop::new(mapping))
}

/// Returns the message of the panic when the host counts references.
fn complaint(host: &MockHost, domid: Domid) -> String {
    let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| host.references(domid)));
    *counted.expect_err("the count did not panic").downcast::<String>().unwrap()
}

#[test]
fn partial_munmap_is_detected() {
    let (host, guest, mapping) = mapped(Dom0::Pv, 4);
    let at = mapping.view().as_ptr().wrapping_add(FRAME);
    // SAFETY: nobody uses the mapping.
    assert_eq!(unsafe { libc::munmap(at.cast(), FRAME) }, 0);
    let complaint = complaint(&host, guest.domid());
    assert!(complaint.contains("a part of the mapping"), "{complaint}");
}

#[test]
fn mprotect_is_detected() {
    let (host, guest, mapping) = mapped(Dom0::Pv, 4);
    // SAFETY: nobody uses the mapping.
    assert_eq!(unsafe { libc::mprotect(mapping.view().as_ptr().cast(), 4 * FRAME, libc::PROT_READ) }, 0);
    let complaint = complaint(&host, guest.domid());
    assert!(complaint.contains("mprotect of foreign frames is undefined on Xen"), "{complaint}");
}

#[test]
fn mremap_is_detected() {
    let (host, guest, mapping) = mapped(Dom0::Pvh, 4);
    let (at, len) = (mapping.view().as_ptr().cast(), 4 * FRAME);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel picks free addresses.
    let free = unsafe { libc::mmap(std::ptr::null_mut(), len, 0, flags, -1, 0) };
    // SAFETY: nobody uses the mapping or the target.
    let moved = unsafe { libc::mremap(at, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, free) };
    assert_ne!(moved, libc::MAP_FAILED);
    let complaint = complaint(&host, guest.domid());
    assert!(complaint.contains("a mapping was moved"), "{complaint}");
}

#[test]
fn replacing_a_part_is_detected() {
    let (host, guest, mapping) = mapped(Dom0::Pv, 4);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: nobody uses the mapping.
    let over = unsafe { libc::mmap(mapping.view().as_ptr().cast(), FRAME, libc::PROT_READ, flags, -1, 0) };
    assert_ne!(over, libc::MAP_FAILED);
    assert!(complaint(&host, guest.domid()).contains("a part of the mapping"));
}

#[test]
fn replacing_the_whole_drops_the_references() {
    with_each_guest(4, |host, guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let mapping = std::mem::ManuallyDrop::new(mapping);
        let mut guest = guest;
        guest.destroy();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: nobody uses the mapping.
        let over = unsafe { libc::mmap(mapping.view().as_ptr().cast(), 4 * FRAME, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(over, libc::MAP_FAILED);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn mapping_is_not_inherited_by_a_child_process() {
    on_each_host(|host| {
        let mut guest = host.create(GuestKind::Hvm, 4);
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        guest.destroy();
        drop(mapping);
        let owned = host.owned(guest.domid());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(owned, None);
    });
}

#[test]
fn counting_in_a_child_frees_nothing_in_the_parent() {
    in_own_process("mock::counting_in_a_child_frees_nothing_in_the_parent", || {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 4);
        guest.write(guest.frames()[0], 0, b"precious");
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        guest.destroy();
        let child = |wait: &dyn Fn()| {
            wait();
            host.references(guest.domid()) == 0
        };
        assert!(in_child(child, || ThenChild::Continues));
        let mut text = [0; 8];
        mapping.view().read_bytes(0, &mut text).unwrap();
        assert_eq!(&text, b"precious");
    });
}

#[test]
fn panic_about_a_dead_guest_leaves_other_guests_usable() {
    let host = mock(Dom0::Pv);
    let (dead, guest) = (host.create_domain(GuestKind::Hvm, 1), host.create_domain(GuestKind::Hvm, 4));
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    dead.destroy();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dead.frames())).is_err());
    assert_eq!(host.references(guest.domid()), 4);
    let other = host.create_domain(GuestKind::Hvm, 2);
    assert_eq!((other.frames().len(), mapping.view().read::<u8>(0).unwrap()), (2, 0));
}

#[test]
fn resources_are_not_frames_of_xen() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let before = host.xen_frames();
    guest.add_resource(xenmap::Resource::GrantTable, 3);
    guest.add_resource(xenmap::Resource::GrantTable, 2);
    assert_eq!(host.xen_frames(), before);
    assert_eq!(host.open().unwrap().current_reservation(Domid::XEN).unwrap_err().errno(), libc::ESRCH);
}

#[test]
fn mapping_costs_one_hypercall_per_block_in_a_pv_dom0() {
    for (frames, mmu_update, unmap_flushes) in
        [(1, 1, 1), (16, 1, 16), (33, 3, 33), (34, 3, 1), (512, 32, 1), (513, 33, 1)]
    {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, frames);
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        let map = host.hypercalls();
        assert_eq!((map.mmu_update, map.pte_writes, map.memory_op), (mmu_update, 0, 0), "{frames} frames");
        assert_eq!(map.mmuext_op, frames.div_ceil(512) as u64);
        drop(mapping);
        let unmap = host.hypercalls();
        assert_eq!((unmap.mmu_update, unmap.pte_writes), (mmu_update, frames as u64));
        assert_eq!(unmap.mmuext_op - map.mmuext_op, unmap_flushes);
    }
}

#[test]
fn mapping_costs_one_hypercall_per_frame_in_an_auto_translated_dom0() {
    for frames in [1, 16, 513] {
        let host = mock(Dom0::Pvh);
        let guest = host.create_domain(GuestKind::Hvm, frames);
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        assert_eq!((host.hypercalls().memory_op, host.hypercalls().mmu_update), (frames as u64, 0));
        drop(mapping);
        assert_eq!(host.hypercalls().memory_op, 2 * frames as u64);
    }
}

#[test]
fn sparse_file_is_a_guest_with_holes() {
    use std::os::unix::fs::FileExt;
    let name = format!("sparse_file_is_a_guest_with_holes-{}", std::process::id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    // Far apart, so that any file system leaves a hole between them.
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"last", 64 << 20).unwrap();
    let host = mock_with(xenmap::mock::HostConfig::default());
    let guest = host.create_domain_from_file(&file).unwrap();
    std::fs::remove_file(path).unwrap();
    let frames = guest.frames();
    assert!(frames.len() < 1000, "{} frames", frames.len());
    let last = *frames.last().unwrap();
    assert_eq!(last, Gfn::containing(64 << 20).unwrap());
    assert_eq!(guest.read(frames[0], 0, 6), b"first\0");
    assert_eq!(guest.read(last, 0, 5), b"last\0");
}
