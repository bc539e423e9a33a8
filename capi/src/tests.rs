//! Tests that need the simulated host's faults. The rest is tested in C (tests/debian.rs).

pub(crate) mod doubles;
mod places;

use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use nix::errno::Errno;
use xenmap::mock::{Dom0, Fault, HostConfig, MockDomain, MockHost};
use xenmap::{FRAME_SIZE, GuestKind, Resource};

use super::handle::Handle;
use super::map::{self, Place, Request};
use super::xentool::{ActiveHandle, Logger};
use super::{answer, xenforeignmemory_map2};
use doubles::{Messages, is_active, xentoolcore_restrict_all};

fn config(change: impl FnOnce(&mut HostConfig)) -> HostConfig {
    let mut config = HostConfig::default();
    change(&mut config);
    config
}

fn host_of(dom0: Dom0, kernel: (u16, u16)) -> (MockHost, MockDomain, Handle) {
    host_with(config(|config| (config.dom0, config.kernel) = (dom0, kernel)))
}

fn host_with(config: HostConfig) -> (MockHost, MockDomain, Handle) {
    let (host, guest, handle, _) = host_that_logs(config);
    (host, guest, handle)
}

/// Also returns the messages of the handle.
fn host_that_logs(config: HostConfig) -> (MockHost, MockDomain, Handle, &'static Messages) {
    let host = MockHost::with_config(config);
    let guest = host.create_domain(GuestKind::Hvm, 16);
    let log: &'static Messages = Box::leak(Box::default());
    // SAFETY: it is leaked, so it outlives the handle.
    let logger = unsafe { Logger::new(log.as_logger()) }.unwrap();
    let handle = Handle::new(logger, OnceLock::from(host.open().unwrap()));
    (host, guest, handle, log)
}

fn reserved(pages: usize) -> NonNull<u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel picks unused addresses.
    let addr = unsafe { libc::mmap(ptr::null_mut(), pages * FRAME_SIZE, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(addr, libc::MAP_FAILED);
    NonNull::new(addr.cast()).unwrap()
}

/// The message if mmap(2) cannot map two frames.
const NO_ADDRESSES: &str = "no address range of 8192 bytes for a mapping (see vm.max_map_count and ulimit -v): Cannot \
                            allocate memory (os error 12)";

/// Returns the kernel's description of the mapping at an address: its permissions and its file.
fn listed(addr: NonNull<u8>) -> Option<String> {
    let addr = addr.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&addr).then(|| rest.to_owned())
    })
}

/// Returns the inode in the description by [`listed`]: `permissions offset device inode name`.
fn inode(listed: &str) -> u64 {
    listed.split_ascii_whitespace().nth(3).unwrap().parse().unwrap()
}

/// Maps frames over a range, all or none.
fn map_over(handle: &Handle, addr: NonNull<u8>, gfns: &[u64]) -> Result<*mut c_void, c_int> {
    let (prot, err) = (libc::PROT_READ | libc::PROT_WRITE, ptr::null_mut());
    let place = Place { addr: addr.as_ptr().expose_provenance(), flags: libc::MAP_FIXED };
    let request = Request { dom: 1, place, prot, pages: gfns.len(), arr: gfns.as_ptr(), err };
    // SAFETY: the range is the test's own, or free, and the test does not use it.
    unsafe { map::map(handle, &request) }
}

#[test]
fn failed_mapping_over_a_range_leaves_it_reserved() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let (host, guest, handle) = host_of(dom0, (6, 1));
        let addr = reserved(3);

        assert_eq!(map_over(&handle, addr, &[0, 99, 1]), Err(libc::EINVAL));

        assert!(listed(addr).is_some_and(|at| at.starts_with("---p")), "{:?}", listed(addr));
        assert_eq!(host.references(guest.domid()), 0);
        assert_eq!(map_over(&handle, addr, &[0, 2, 1]), Ok(addr.as_ptr().cast()));
        assert_eq!(host.references(guest.domid()), 3);
        // SAFETY: just mapped, and nothing uses it.
        unsafe { map::unmap(&handle, addr.as_ptr().cast(), 3) }.unwrap();
        assert_eq!(host.references(guest.domid()), 0);
    }
}

#[test]
fn larger_pages_are_reserved_and_unmapped_as_a_whole() {
    let config = config(|config| (config.dom0, config.page_size) = (Dom0::Arm, 4 * FRAME_SIZE));
    let (host, guest, handle) = host_with(config);
    let addr = reserved(8);

    assert_eq!(map_over(&handle, addr, &[0, 99, 1, 2, 3]), Err(libc::EINVAL));

    // SAFETY: inside the reservation.
    let last = unsafe { addr.add(7 * FRAME_SIZE) };
    assert!(listed(last).is_some_and(|at| at.starts_with("---p")), "{:?}", listed(last));
    assert_eq!(map_over(&handle, addr, &[0, 4, 1, 2, 3]), Ok(addr.as_ptr().cast()));
    assert_eq!(host.references(guest.domid()), 5);
    // Memory past the last frame in its page belongs to a file that only this host maps.
    let file = inode(&listed(last).unwrap());
    // SAFETY: just mapped, and nothing uses it.
    unsafe { map::unmap(&handle, addr.as_ptr().cast(), 5) }.unwrap();
    assert_eq!(host.references(guest.domid()), 0);
    // The range need not be free: another test may have mapped there by now.
    assert_ne!(listed(last).map(|at| inode(&at)), Some(file));
}

#[test]
fn failed_batch_call_leaves_the_range_reserved() {
    let (host, guest, handle) = host_of(Dom0::Pv, (6, 1));
    let addr = reserved(2);
    map_over(&handle, addr, &[0, 1]).unwrap();
    host.inject(Fault::MapBatch(libc::ENOMEM));

    assert_eq!(map_over(&handle, addr, &[2, 3]), Err(libc::ENOMEM));

    assert!(listed(addr).is_some_and(|at| at.starts_with("---p")), "{:?}", listed(addr));
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn failed_frames_over_a_range_are_not_logged() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let (_host, _guest, handle, log) = host_that_logs(config(|config| config.dom0 = dom0));

        assert_eq!(map_over(&handle, reserved(2), &[0, 99]), Err(libc::EINVAL));

        assert_eq!(log.all(), [""; 0]);
    }
}

#[test]
fn range_that_cannot_be_reserved_is_in_the_same_message() {
    let (_host, _guest, handle, log) = host_that_logs(HostConfig::default());
    // No process can have these addresses.
    let addr = NonNull::new(ptr::with_exposed_provenance_mut(usize::MAX - 4 * FRAME_SIZE + 1)).unwrap();

    assert_eq!(map_over(&handle, addr, &[0, 1]), Err(libc::ENOMEM));

    let [message] = &log.all()[..] else { panic!("{:?}", log.all()) };
    assert!(message.starts_with(NO_ADDRESSES), "{message}");
    assert!(message.contains("; its address range cannot be reserved either: Cannot allocate memory"), "{message}");
}

#[test]
fn range_that_mmap_left_free_when_out_of_memory_is_reserved() {
    let (host, _guest, handle, log) = host_that_logs(HostConfig::default());
    // A free address, far from where the kernel puts mappings of its own choice.
    let addr = NonNull::new(ptr::with_exposed_provenance_mut(0x2000_0000_0000)).unwrap();
    host.inject(Fault::MmapEarly(libc::ENOMEM));

    assert_eq!(map_over(&handle, addr, &[0, 1]), Err(libc::ENOMEM));

    assert!(listed(addr).is_some_and(|at| at.starts_with("---p")), "{:?}", listed(addr));
    assert_eq!(log.all(), [NO_ADDRESSES]);
    // SAFETY: just reserved for the test, which does not use it.
    assert_eq!(unsafe { libc::munmap(addr.as_ptr().cast(), 2 * FRAME_SIZE) }, 0);
}

#[test]
fn range_that_another_thread_has_mapped_is_left_alone() {
    let (host, guest, handle, log) = host_that_logs(HostConfig::default());
    let addr = reserved(2);
    host.inject(Fault::Mmap(libc::ENOMEM));

    assert_eq!(map_over(&handle, addr, &[0, 1]), Err(libc::ENOMEM));

    assert_eq!(log.all(), [NO_ADDRESSES]);
    // This count would panic if the other thread's mapping were gone.
    assert_eq!(host.references(guest.domid()), 0);
    assert!(listed(addr).is_some_and(|at| at.starts_with("r--s")), "{:?}", listed(addr));
}

#[test]
fn range_that_a_failed_retry_lost_is_left_alone() {
    let (host, guest, handle) = host_of(Dom0::Pvh, (6, 1));
    let addr = reserved(1);
    host.inject(Fault::Frame { index: 0, error: -libc::ENOENT });
    host.inject_after(1, Fault::Mmap(libc::ENOMEM));

    assert_eq!(map_over(&handle, addr, &[0]), Err(libc::ENOMEM));

    assert_eq!(host.references(guest.domid()), 0);
    assert!(listed(addr).is_some_and(|at| at.starts_with("r--s")), "{:?}", listed(addr));
}

#[test]
fn only_map_fixed_replaces_a_mapping() {
    let (host, guest, handle) = host_of(Dom0::Pv, (6, 1));
    let addr = reserved(1);
    let gfns = [5];
    let at = |flags| Request {
        dom: 1,
        place: Place { addr: addr.as_ptr().addr(), flags },
        prot: libc::PROT_READ,
        pages: 1,
        arr: gfns.as_ptr(),
        err: ptr::null_mut(),
    };

    // SAFETY: nothing is replaced.
    let hinted = unsafe { map::map(&handle, &at(0)) }.unwrap();
    // SAFETY: nothing is replaced.
    let refused = unsafe { map::map(&handle, &at(libc::MAP_FIXED_NOREPLACE)) };

    assert_ne!(hinted, addr.as_ptr().cast());
    assert_eq!(refused, Err(libc::EEXIST));
    assert_eq!(host.references(guest.domid()), 1);
    // Plain munmap, as C programs use it.
    // SAFETY: just mapped, and nothing uses it.
    assert_eq!(unsafe { libc::munmap(hinted, FRAME_SIZE) }, 0);
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn resources_are_not_supported_on_an_old_kernel() {
    for kernel in [(4, 9), (4, 14)] {
        let (_host, guest, handle, log) = host_that_logs(config(|config| config.kernel = kernel));
        let domid = guest.domid().get();

        let size = map::resource_size(&handle, domid, (1, 0));
        let mapped = map::map_resource(&handle, domid, (1, 0), 0, 1, Place::default(), libc::PROT_READ);

        assert_eq!(size, Err(libc::EOPNOTSUPP), "{kernel:?}");
        assert_eq!(mapped.map(|_| ()), Err(libc::EOPNOTSUPP), "{kernel:?}");
        assert_eq!(log.all(), [""; 0], "{kernel:?}");
    }
}

#[test]
fn sizes_of_resources_are_not_supported_on_an_old_xen() {
    for (xen, expected) in [((4, 14), Err(libc::EOPNOTSUPP)), ((4, 15), Ok(2 * FRAME_SIZE))] {
        let (_host, guest, handle, log) = host_that_logs(config(|config| config.xen = xen));
        guest.add_resource(Resource::GrantTable, 2);
        handle.restrict(guest.domid().get()).unwrap();

        assert_eq!(map::resource_size(&handle, guest.domid().get(), (1, 0)), expected, "xen {xen:?}");

        assert_eq!(log.all(), [""; 0], "xen {xen:?}");
    }
}

#[test]
fn size_of_a_resource_unknown_to_xen_is_an_error() {
    for (xen, errno) in [((4, 17), libc::EOPNOTSUPP), ((4, 20), libc::EINVAL)] {
        let (_host, guest, handle, log) = host_that_logs(config(|config| config.xen = xen));

        assert_eq!(map::resource_size(&handle, guest.domid().get(), (77, 0)), Err(errno), "xen {xen:?}");

        assert_eq!(log.all(), [""; 0], "xen {xen:?}");
    }
}

#[test]
fn restricting_all_handles_restricts_an_open_one() {
    let (host, guest, handle) = host_of(Dom0::Pv, (6, 1));
    let other = host.create_domain(GuestKind::Hvm, 1);
    let handle = NonNull::from(Box::leak(Box::new(handle)));
    let active: NonNull<ActiveHandle> = handle.cast();
    // SAFETY: the handle is new and boxed, and is closed below.
    unsafe { ActiveHandle::register(active) };

    // SAFETY: the list has only this handle, which is alive: no other test registers any.
    assert_eq!(unsafe { xentoolcore_restrict_all(other.domid().get()) }, 0);

    // SAFETY: the handle has not been closed yet.
    let mapped = map_over(unsafe { handle.as_ref() }, reserved(1), &[0]);
    assert_eq!(mapped, Err(libc::EPERM));
    assert_eq!(host.references(guest.domid()), 0);
    // SAFETY: boxed and registered as by `Handle::open`, and not used any more.
    unsafe { Handle::close(handle) };
    assert!(!is_active(active.as_ptr()));
}

#[test]
fn null_handle_is_an_invalid_argument() {
    Errno::clear();
    // SAFETY: a null handle is allowed, and `arr` has one entry.
    let mapped =
        unsafe { xenforeignmemory_map2(ptr::null(), 1, ptr::null_mut(), 1, 0, 1, [0].as_ptr(), ptr::null_mut()) };

    assert!(mapped.is_null());
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn panic_becomes_an_error_for_c() {
    assert_eq!(answer(-1, || panic!("a bug")), -1);
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOTRECOVERABLE));
}
