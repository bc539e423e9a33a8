//! The handle as a file descriptor.

#![expect(unsafe_code, reason = "makes an ioctl")]

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use crate::common::{ReadOnly, mock, on_each_host};
use xenmap::GuestKind;
use xenmap::mock::Dom0;

#[test]
fn clones_share_an_open_descriptor() {
    on_each_host(|host| {
        let memory = host.open();
        let clone = memory.clone();
        assert_eq!(memory.as_fd().as_raw_fd(), clone.as_fd().as_raw_fd());
        drop(memory);
        let file = std::fs::File::from(clone.as_fd().try_clone_to_owned().unwrap());
        assert_ne!(file.metadata().unwrap().ino(), 0);
    });
}

#[test]
fn closing_a_copy_of_the_descriptor_leaves_the_handle_open() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        let memory = host.open();
        drop(memory.as_fd().try_clone_to_owned().unwrap());
        memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
    });
}

#[test]
fn descriptor_of_the_mock_is_not_a_privcmd_device() {
    const IOCTL_PRIVCMD_HYPERCALL: libc::Ioctl = 0x30_5000;
    let memory = mock(Dom0::Pv).open().unwrap();
    let mut version = [17_u64, 0, 0, 0, 0, 0];
    // SAFETY: the ioctl reads six words. On a real device it would ask Xen for its version, which writes nothing.
    let answer = unsafe { libc::ioctl(memory.as_fd().as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, version.as_mut_ptr()) };
    assert_eq!(answer, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOTTY));
}
