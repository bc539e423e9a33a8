//! The driver's answers to calls that the library never makes: the order of checks, populated and partial mappings.

#![expect(unsafe_code, reason = "calls the driver as a program calls the kernel")]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::driver::MockDevice;
use super::{Dom0, HostConfig, MockDomain, MockHost};
use crate::abi;
use crate::backend::{Backend, Ioctl, Place};
use crate::types::{FRAME_SIZE, Gfn, GuestKind, Protection};

struct Driver {
    host: MockHost,
    device: MockDevice,
    guest: MockDomain,
}

impl Driver {
    fn new(dom0: Dom0) -> Driver {
        Driver::with_config(HostConfig { dom0, ..HostConfig::default() })
    }

    fn with_config(config: HostConfig) -> Driver {
        let host = MockHost::with_config(config);
        let guest = host.create_domain(GuestKind::Hvm, 64);
        Driver { device: MockDevice::new(Arc::clone(&host.0), Protection::ReadWrite), host, guest }
    }

    fn mmap(&self, frames: usize) -> NonNull<u8> {
        // SAFETY: the kernel picks unused addresses.
        unsafe { self.device.mmap_at(Place::default(), frames * FRAME_SIZE, Protection::ReadWrite) }.unwrap()
    }

    /// Makes the batch call for frames of the guest, `skip` frames after an address.
    fn map(&self, addr: NonNull<u8>, skip: usize, gfns: &[u64]) -> (Option<i32>, Vec<i32>) {
        self.map_of(self.guest.domid().get(), addr, skip, gfns)
    }

    fn map_of(&self, dom: u16, addr: NonNull<u8>, skip: usize, gfns: &[u64]) -> (Option<i32>, Vec<i32>) {
        let mut errors = vec![0x5555; gfns.len()];
        let mut batch = abi::MmapBatchV2 {
            num: u32::try_from(gfns.len()).unwrap(),
            dom,
            addr: (addr.as_ptr().addr() + skip * FRAME_SIZE) as u64,
            arr: gfns.as_ptr(),
            err: errors.as_mut_ptr(),
        };
        (errno(self.ioctl(Ioctl::MmapBatchV2(&mut batch))), errors)
    }

    fn ioctl(&self, call: Ioctl<'_>) -> io::Result<u64> {
        // SAFETY: the arrays are as long as the argument says, or null, and nothing uses the mapping.
        unsafe { self.device.ioctl(call) }
    }

    fn munmap(&self, addr: NonNull<u8>, skip: usize, frames: usize) -> Option<i32> {
        // SAFETY: inside the mapping, or one past its end.
        let addr = unsafe { addr.add(skip * FRAME_SIZE) };
        // SAFETY: nothing uses the mapping.
        errno(unsafe { self.device.unmapper().munmap(addr, frames * FRAME_SIZE) })
    }

    fn references(&self) -> usize {
        self.host.references(self.guest.domid())
    }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn first_call_must_cover_the_whole_mapping() {
    let driver = Driver::new(Dom0::Pv);
    let addr = driver.mmap(4);
    assert_eq!(driver.map(addr, 0, &[0, 1, 2]), (Some(libc::EINVAL), vec![0; 3]), "too short; the errors are cleared");
    assert_eq!(driver.map(addr, 1, &[0, 1, 2]), (Some(libc::EINVAL), vec![0; 3]), "not at the start");
    assert_eq!(driver.map(addr, 0, &[0, 1, 2, 3, 4]), (Some(libc::EINVAL), vec![0; 5]), "too long");
    assert_eq!(driver.map(addr, 0, &[0, 1, 2, 3]), (None, vec![0; 4]));
    assert_eq!(driver.map(addr, 0, &[0, 1, 2, 3]).0, Some(libc::EINVAL), "populated already");
    assert_eq!(driver.references(), 4);
    assert_eq!(driver.munmap(addr, 0, 4), None);
    assert_eq!(driver.references(), 0);
}

#[test]
fn only_a_pv_dom0_populates_a_hole_later() {
    for (dom0, kernel, later) in [
        (Dom0::Pv, (6, 1), None),
        (Dom0::Pv, (3, 11), Some(libc::EINVAL)),
        (Dom0::Pvh, (6, 1), Some(libc::EINVAL)),
        (Dom0::Pvh, (4, 3), Some(libc::EINVAL)),
        (Dom0::Arm, (6, 1), Some(libc::EINVAL)),
    ] {
        let driver = Driver::with_config(HostConfig { dom0, kernel, ..HostConfig::default() });
        let addr = driver.mmap(3);
        assert_eq!(driver.map(addr, 0, &[0, 0xE_0000, 2]), (None, vec![0, -libc::EINVAL, 0]));
        assert_eq!(driver.map(addr, 1, &[1]).0, later, "{dom0:?}, linux {kernel:?}");
        assert_eq!(driver.references(), if later.is_none() { 3 } else { 2 });
        assert_eq!(driver.munmap(addr, 0, 3), None);
    }
}

#[test]
fn checks_come_in_the_kernels_order() {
    let driver = Driver::new(Dom0::Pv);
    let (mut error, first) = (7, 0);
    let mut batch = abi::MmapBatchV2 { num: 0, dom: 1, addr: 0, arr: std::ptr::null(), err: std::ptr::null_mut() };
    assert_eq!(errno(driver.ioctl(Ioctl::MmapBatchV2(&mut batch))), Some(libc::EFAULT), "no array for errors");
    batch.err = &raw mut error;
    assert_eq!(errno(driver.ioctl(Ioctl::MmapBatchV2(&mut batch))), Some(libc::EINVAL), "no frames");
    batch.num = 1;
    assert_eq!(errno(driver.ioctl(Ioctl::MmapBatchV2(&mut batch))), Some(libc::EFAULT), "no frame numbers");
    batch.arr = &raw const first;
    assert_eq!(errno(driver.ioctl(Ioctl::MmapBatchV2(&mut batch))), Some(libc::EINVAL), "no mapping");
    assert_eq!(error, 0, "the errors were cleared before");

    driver.ioctl(Ioctl::Restrict(&mut 9)).unwrap();
    batch.num = 0;
    assert_eq!(errno(driver.ioctl(Ioctl::MmapBatchV2(&mut batch))), Some(libc::EPERM), "before the number of frames");
}

#[test]
fn part_of_a_mapping_is_not_unmapped() {
    for dom0 in [Dom0::Pv, Dom0::Pvh, Dom0::Arm] {
        let driver = Driver::new(dom0);
        let addr = driver.mmap(4);
        driver.map(addr, 0, &[0, 1, 2, 3]);
        assert_eq!(driver.munmap(addr, 1, 2), Some(libc::EINVAL));
        assert_eq!(driver.munmap(addr, 0, 3), Some(libc::EINVAL));
        assert_eq!(driver.references(), 4, "nothing has changed");
        assert_eq!(driver.munmap(addr, 0, 4), None);
    }
}

#[test]
fn old_kernel_unmaps_a_part_in_a_pv_dom0() {
    let driver = Driver::with_config(HostConfig { allows_splits: true, ..HostConfig::default() });
    let addr = driver.mmap(4);
    driver.map(addr, 0, &[0, 1, 2, 3]);
    assert_eq!(driver.munmap(addr, 1, 2), None);
    assert_eq!(driver.references(), 2);
    assert_eq!(driver.munmap(addr, 0, 1), None);
    assert_eq!(driver.munmap(addr, 3, 1), None);
    assert_eq!(driver.references(), 0);
}

#[test]
#[should_panic(expected = "this kernel frees its frames twice")]
fn old_kernel_unmaps_a_part_in_an_auto_translated_dom0() {
    let driver = Driver::with_config(HostConfig { dom0: Dom0::Pvh, allows_splits: true, ..HostConfig::default() });
    let addr = driver.mmap(4);
    driver.map(addr, 0, &[0, 1, 2, 3]);
    driver.munmap(addr, 1, 2);
}

#[test]
fn large_frame_numbers_alias_in_a_pv_dom0() {
    assert_eq!(Gfn::MAX.get() + 1, 1 << 40);
    let driver = Driver::new(Dom0::Pv);
    assert_eq!(driver.map(driver.mmap(1), 0, &[1 << 40]), (None, vec![0]), "it is frame 0");
    assert_eq!(driver.references(), 1);
    for dom0 in [Dom0::Pvh, Dom0::Arm] {
        let driver = Driver::new(dom0);
        for gfn in [1 << 40, u64::MAX] {
            assert_eq!(driver.map(driver.mmap(1), 0, &[gfn]), (None, vec![-libc::EINVAL]));
        }
    }
}

#[test]
fn special_domains_fail_as_on_xen() {
    const DOMID_SELF: u16 = 0x7FF0;
    const DOMID_IO: u16 = 0x7FF1;
    for (dom0, own, zero) in
        [(Dom0::Pv, 0, -libc::ESRCH), (Dom0::Pvh, -libc::ESRCH, -libc::EPERM), (Dom0::Arm, -libc::EINVAL, -libc::ESRCH)]
    {
        let driver = Driver::new(dom0);
        for (dom, error) in
            [(DOMID_SELF, own), (DOMID_IO, own), (0x7FF4, -libc::ESRCH), (0x7FFF, -libc::ESRCH), (0, zero)]
        {
            assert_eq!(driver.map_of(dom, driver.mmap(1), 0, &[5]), (None, vec![error]), "{dom:#x} in {dom0:?}");
        }
    }
}

#[test]
fn call_fails_with_enoent_by_the_kernels_rule() {
    // The one frame of 600 that is paged out, and whether the call fails in old and in new kernels.
    for (frame, old, new) in [(0, true, false), (511, true, true), (512, true, false), (599, true, true)] {
        for (kernel, fails) in [((4, 0), old), ((4, 1), new)] {
            let driver = Driver::with_config(HostConfig { kernel, ..HostConfig::default() });
            let more = driver.guest.add_frames(600 - 64);
            assert_eq!(more.len(), 536);
            driver.guest.page_out(Gfn::new(frame).unwrap(), 1).unwrap();
            let gfns: Vec<u64> = (0..600).collect();
            let (errno, errors) = driver.map(driver.mmap(600), 0, &gfns);
            assert_eq!(errno, fails.then_some(libc::ENOENT), "frame {frame}, linux {kernel:?}");
            assert_eq!(errors.iter().filter(|&&e| e == -libc::ENOENT).count(), 1);
        }
    }
}

#[test]
fn mapping_of_one_file_is_populated_through_another() {
    let driver = Driver::new(Dom0::Pv);
    let addr = driver.mmap(1);
    let other = Driver {
        device: MockDevice::new(Arc::clone(&driver.host.0), Protection::ReadWrite),
        host: driver.host.clone(),
        guest: driver.guest.clone(),
    };
    driver.ioctl(Ioctl::Restrict(&mut 77)).unwrap();
    assert_eq!(driver.map(addr, 0, &[0]).0, Some(libc::EPERM));
    assert_eq!(other.map(addr, 0, &[0]), (None, vec![0]), "the other file is not restricted");
}

#[test]
fn mapping_over_a_part_fails_and_over_the_whole_replaces_it() {
    for (dom0, kernel, refusal) in
        [(Dom0::Pv, (6, 1), libc::ENOMEM), (Dom0::Arm, (6, 11), libc::ENOMEM), (Dom0::Arm, (6, 12), libc::EINVAL)]
    {
        let driver = Driver::with_config(HostConfig { dom0, kernel, ..HostConfig::default() });
        let addr = driver.mmap(4);
        driver.map(addr, 0, &[0, 1, 2, 3]);
        // SAFETY: nothing uses the mapping.
        let part = unsafe { driver.device.mmap_at(Place::over(addr), FRAME_SIZE, Protection::ReadOnly) };
        assert_eq!(errno(part), Some(refusal), "{dom0:?}, linux {kernel:?}");
        assert_eq!(driver.references(), 4);
        // SAFETY: nothing uses the mapping.
        unsafe { driver.device.mmap_at(Place::over(addr), 4 * FRAME_SIZE, Protection::ReadOnly) }.unwrap();
        assert_eq!(driver.references(), 0);
        assert_eq!(driver.map(addr, 0, &[0, 1, 2, 3]), (None, vec![0; 4]), "it is unpopulated again");
    }
}

#[test]
fn call_covers_whole_pages_of_the_kernel() {
    let driver = Driver::with_config(HostConfig { dom0: Dom0::Arm, page_size: 0x4000, ..HostConfig::default() });
    let addr = driver.mmap(8);
    assert_eq!(driver.map(addr, 0, &[0, 1, 2, 3]).0, Some(libc::EINVAL), "a page too short");
    assert_eq!(driver.map(addr, 0, &[0; 9]).0, Some(libc::EINVAL), "a page too long");
    assert_eq!(driver.map(addr, 4, &[0, 1, 2, 3]).0, Some(libc::EINVAL), "not at the start");
    assert_eq!(driver.map(addr, 1, &[0; 7]).0, Some(libc::EINVAL), "from inside a page");
    assert_eq!(driver.map(addr, 0, &[5, 5, 3, 2, 1]), (None, vec![0; 5]), "any frames, in any order");
    assert_eq!(driver.references(), 5);
    assert_eq!(driver.host.hypercalls().memory_op, 2, "one for each page");
    assert_eq!(driver.munmap(addr, 0, 4), Some(libc::EINVAL));
    assert_eq!(driver.munmap(addr, 0, 8), None);
    assert_eq!(driver.references(), 0);
    assert_eq!(driver.host.hypercalls().memory_op, 2 + 8, "one for each frame of the pages");
}

#[test]
#[should_panic(expected = "20480 bytes are not whole pages")]
fn mapping_part_of_a_page_panics() {
    Driver::with_config(HostConfig { dom0: Dom0::Arm, page_size: 0x4000, ..HostConfig::default() }).mmap(5);
}

#[test]
#[should_panic(expected = "no Pvh kernel has such pages")]
fn larger_pages_on_x86_panic() {
    Driver::with_config(HostConfig { dom0: Dom0::Pvh, page_size: 0x4000, ..HostConfig::default() });
}

#[test]
fn frames_take_memory_of_an_auto_translated_dom0() {
    for (dom0, page_size, refusal) in
        [(Dom0::Arm, 0x1000, Some(libc::ENOMEM)), (Dom0::Arm, 0x4000, Some(libc::ENOMEM)), (Dom0::Pv, 0x1000, None)]
    {
        let config = HostConfig { dom0, page_size, dom0_free_frames: Some(16), ..HostConfig::default() };
        let driver = Driver::with_config(config);
        let (first, second) = (driver.mmap(12), driver.mmap(8));
        assert_eq!(driver.map(first, 0, &[0xE_0000; 9 + 3]).0, None, "failed frames count, too");
        assert_eq!(driver.map(second, 0, &[0; 8]).0, refusal, "{dom0:?}");
        assert_eq!(driver.munmap(first, 0, 12), None);
        assert_eq!(driver.map(second, 0, &[0; 8]).0, if dom0 == Dom0::Pv { Some(libc::EINVAL) } else { None });
    }
}

#[test]
fn frames_that_other_code_unmapped_are_free_again() {
    let driver =
        Driver::with_config(HostConfig { dom0: Dom0::Arm, dom0_free_frames: Some(4), ..HostConfig::default() });
    let (first, second) = (driver.mmap(4), driver.mmap(4));
    assert_eq!(driver.map(first, 0, &[0, 1, 2, 3]).0, None);
    // SAFETY: nothing uses the mapping.
    unsafe { super::memory::unmap(first, 4 * FRAME_SIZE) }.unwrap();
    assert_eq!(driver.map(second, 0, &[0, 1, 2, 3]).0, None);
}

#[test]
fn out_of_memory_leaves_the_mapping_unpopulated() {
    let driver = Driver::new(Dom0::Pvh);
    let addr = driver.mmap(2);
    driver.host.inject(super::Fault::MapBatch(libc::ENOMEM));
    assert_eq!(driver.map(addr, 0, &[0, 1]).0, Some(libc::ENOMEM));
    assert_eq!(driver.map(addr, 0, &[0, 1]), (None, vec![0; 2]), "the call can be repeated");
}

#[test]
fn call_without_frames_and_address_returns_a_resources_size() {
    let driver = Driver::new(Dom0::Pv);
    driver.guest.add_resource(crate::handle::Resource::GrantTable, 3);
    let mut request = abi::MmapResource { dom: 1, type_: 1, id: 0, idx: 0, num: 0, addr: 0 };
    driver.ioctl(Ioctl::MmapResource(&mut request)).unwrap();
    assert_eq!(request.num, 3);
    request.addr = driver.mmap(1).as_ptr().addr() as u64;
    request.num = 0;
    assert_eq!(errno(driver.ioctl(Ioctl::MmapResource(&mut request))), Some(libc::EINVAL), "an address, but no frames");
}

#[test]
fn hypercall_argument_outside_a_buffer_fails_with_efault() {
    let driver = Driver::new(Dom0::Pv);
    let domid = driver.guest.domid().get();
    let op = u64::from(abi::HYPERVISOR_MEMORY_OP);
    let arg = [u64::from(abi::XENMEM_CURRENT_RESERVATION), (&raw const domid).addr() as u64, 0, 0, 0];
    assert_eq!(errno(driver.ioctl(Ioctl::Hypercall(&mut abi::Hypercall { op, arg }))), Some(libc::EFAULT));
}
