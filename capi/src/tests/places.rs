//! Where a mapping can be: each flag of mmap(2) at good and bad addresses.

use std::process::Command;

use super::super::{xenforeignmemory_map_resource, xenforeignmemory_unmap, xenforeignmemory_unmap_resource};
use super::*;

/// A free address, far from where the kernel puts mappings of its own choice.
const FREE: usize = 0x1000_0000_0000;
const PAGES: usize = 3;

/// Flags, and the result of a call with them: an errno, or 0.
const FLAGS: &[(&str, c_int, c_int)] = &[
    ("none", 0, 0),
    ("MAP_SHARED", libc::MAP_SHARED, 0),
    ("MAP_PRIVATE", libc::MAP_PRIVATE, 0),
    ("MAP_SHARED_VALIDATE", libc::MAP_SHARED_VALIDATE, 0),
    ("MAP_DROPPABLE", 0x8, libc::EINVAL),
    ("no type of mapping", 0x4, libc::EINVAL),
    ("MAP_32BIT, of x86", 0x40, 0),
    ("MAP_ABOVE4G, of x86", 0x80, 0),
    ("MAP_ANONYMOUS", libc::MAP_ANONYMOUS, libc::EINVAL),
    ("MAP_GROWSDOWN", libc::MAP_GROWSDOWN, libc::EINVAL),
    ("MAP_DENYWRITE", libc::MAP_DENYWRITE, 0),
    ("MAP_EXECUTABLE", libc::MAP_EXECUTABLE, 0),
    ("MAP_LOCKED", libc::MAP_LOCKED, 0),
    ("MAP_NORESERVE", libc::MAP_NORESERVE, 0),
    ("MAP_POPULATE", libc::MAP_POPULATE, 0),
    ("MAP_NONBLOCK", libc::MAP_NONBLOCK, 0),
    ("MAP_POPULATE | MAP_NONBLOCK", libc::MAP_POPULATE | libc::MAP_NONBLOCK, 0),
    ("MAP_STACK", libc::MAP_STACK, 0),
    ("MAP_HUGETLB", libc::MAP_HUGETLB, libc::EINVAL),
    ("MAP_HUGETLB | MAP_HUGE_2MB", libc::MAP_HUGETLB | libc::MAP_HUGE_2MB, libc::EINVAL),
    ("MAP_HUGE_2MB alone", libc::MAP_HUGE_2MB, 0),
    ("MAP_SYNC", libc::MAP_SYNC, 0),
    ("MAP_SHARED_VALIDATE | MAP_SYNC", libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC, libc::EOPNOTSUPP),
    ("MAP_UNINITIALIZED", 0x400_0000, 0),
    ("bit 9", 1 << 9, 0),
    ("bit 25", 1 << 25, 0),
    ("MAP_SHARED_VALIDATE | bit 25", libc::MAP_SHARED_VALIDATE | 1 << 25, libc::EOPNOTSUPP),
];

/// How the address is requested.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Hint,
    Over,
    NotOver,
    /// Both flags, which means the same as `NotOver`.
    Both,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Hint, Mode::Over, Mode::NotOver, Mode::Both];

    fn flags(self) -> c_int {
        match self {
            Mode::Hint => 0,
            Mode::Over => libc::MAP_FIXED,
            Mode::NotOver => libc::MAP_FIXED_NOREPLACE,
            Mode::Both => libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE,
        }
    }
}

/// Addresses to map at, in addition to that of a reservation.
const PLACES: &[(&str, usize)] = &[
    ("NULL", 0),
    ("inside page 0", 1),
    ("the lowest that a process may have", 0x1000),
    ("free", FREE),
    ("not page-aligned", FREE + 1),
    ("at the end of x86's addresses", (1 << 47) - 2 * FRAME_SIZE),
    ("in the kernel's half", 0xFFFF_8000_0000_0000),
    ("wraps around", usize::MAX - FRAME_SIZE + 1),
    ("the last byte", usize::MAX),
];

/// The frames of a call, and whether it has an array for their errors.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Frames {
    Good,
    HoleWithErrors,
    HoleWithout,
}

/// Runs a test in a process of its own, where no other test maps or unmaps anything.
fn alone(name: &str, test: impl FnOnce()) {
    const VARIABLE: &str = "XENMAP_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("tests::places::{name}");
    let output = command.args(["--exact", &name, "--nocapture"]).env(VARIABLE, "1").output().unwrap();
    let shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && shown.contains("1 passed"), "{}: {shown}", output.status);
}

/// The kernel's list of this process's mappings.
struct Maps(String);

impl Maps {
    fn now() -> Maps {
        Maps(std::fs::read_to_string("/proc/self/maps").unwrap())
    }

    /// Returns the number of mappings of simulated devices.
    fn of_devices(&self) -> usize {
        self.0.lines().filter(|line| line.contains("/memfd:xenmap-")).count()
    }

    /// Returns the permissions at an address, or `None` if nothing is mapped there.
    fn access_at(&self, addr: usize) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
            range.contains(&addr).then(|| &rest[..4])
        })
    }
}

/// Unmaps what a test has at an address.
fn free(addr: usize) {
    // SAFETY: the range is the test's own memory, or free.
    unsafe { libc::munmap(ptr::with_exposed_provenance_mut(addr), PAGES * FRAME_SIZE) };
}

/// An address to map at, and its state before the call.
struct Place<'a> {
    name: &'a str,
    addr: usize,
    is_taken: bool,
}

/// Makes a call for each place, which the call must free afterwards.
fn each_place(mut call: impl FnMut(&Place<'_>)) {
    for &(name, addr) in PLACES {
        call(&Place { name, addr, is_taken: false });
    }
    call(&Place { name: "taken", addr: reserved(PAGES).as_ptr().expose_provenance(), is_taken: true });
}

/// Returns the only right result of a call, 0 or an errno, or `None` if it depends on the kernel.
fn expected(mode: Mode, place: &Place<'_>, (flags, errno): (c_int, c_int)) -> Option<c_int> {
    let validates = flags & libc::MAP_TYPE & !libc::MAP_SHARED == libc::MAP_PRIVATE;
    match (mode, place.name) {
        (Mode::Hint, _) | (Mode::Over, "free" | "taken") => Some(errno),
        // Even if the kernel would map there.
        (_, "NULL") => Some(libc::EINVAL),
        // The kernel accepts this flag only if it does not validate flags.
        (Mode::NotOver | Mode::Both, "free") if validates => Some(libc::EOPNOTSUPP),
        (Mode::NotOver | Mode::Both, "free") => Some(errno),
        (Mode::NotOver | Mode::Both, "taken") if errno == 0 => Some(libc::EEXIST),
        _ => None,
    }
}

/// Maps at a place and unmaps. Checks the memory before and after, and returns 0 or the errno.
fn map_at(
    (host, guest, handle): &(MockHost, MockDomain, Handle),
    place: &Place<'_>,
    (mode, flags): (Mode, c_int),
    frames: Frames,
) -> c_int {
    let what = format!("{flags:#x} {mode:?} {} {frames:?}", place.name);
    let gfns = if frames == Frames::Good { [3, 1, 2] } else { [3, 99, 2] };
    let mut errors = [1; PAGES];
    let err = if frames == Frames::HoleWithErrors { errors.as_mut_ptr() } else { ptr::null_mut() };
    let (addr, prot) = (ptr::with_exposed_provenance_mut(place.addr), libc::PROT_READ | libc::PROT_WRITE);
    Errno::clear();
    // SAFETY: the range is the test's own memory, or free.
    let mapped =
        unsafe { xenforeignmemory_map2(handle, 1, addr, prot, flags | mode.flags(), PAGES, gfns.as_ptr(), err) };
    let errno = if mapped.is_null() { Errno::last_raw() } else { 0 };

    assert!(!mapped.is_null() || errno != 0, "{what}: NULL without an errno");
    if !mapped.is_null() {
        assert!(mode == Mode::Hint || mapped.addr() == place.addr, "{what}: {mapped:p}");
        assert_eq!(host.references(guest.domid()), gfns.iter().filter(|&&gfn| gfn != 99).count(), "{what}");
        // SAFETY: just mapped, and nothing uses it.
        assert_eq!(unsafe { xenforeignmemory_unmap(handle, mapped, PAGES) }, 0, "{what}");
    }
    let maps = Maps::now();
    assert_eq!((maps.access_at(0), maps.of_devices()), (None, 0), "{what}");
    match maps.access_at(place.addr) {
        None => assert!(!place.is_taken || mode == Mode::Over && !mapped.is_null(), "{what}: it stays taken"),
        Some(access) => {
            assert_eq!(access, "---p", "{what}");
            // A range that the caller owned and that was mapped over stays reserved.
            let was_mapped_over = (mode, frames) == (Mode::Over, Frames::HoleWithout);
            assert!(place.is_taken || was_mapped_over, "{what}");
        }
    }
    free(place.addr);
    errno
}

#[test]
fn any_flag_and_address_of_mmap_maps_everything_or_nothing() {
    alone("any_flag_and_address_of_mmap_maps_everything_or_nothing", || {
        assert_eq!(Maps::now().access_at(FREE), None);
        for dom0 in [Dom0::Pv, Dom0::Pvh] {
            let simulated = host_of(dom0, (6, 1));
            for &(name, flags, errno) in FLAGS {
                for mode in Mode::ALL {
                    for frames in [Frames::Good, Frames::HoleWithErrors, Frames::HoleWithout] {
                        each_place(|place| {
                            let found = map_at(&simulated, place, (mode, flags), frames);

                            let Some(errno) = expected(mode, place, (flags, errno)) else { return };
                            let is_hole = errno == 0 && frames == Frames::HoleWithout;
                            let expected = if is_hole { libc::EINVAL } else { errno };
                            assert_eq!(found, expected, "{name} {mode:?} {} {frames:?}", place.name);
                        });
                    }
                }
            }
        }
    });
}

#[test]
fn resource_is_mapped_at_any_hint_but_only_with_posix_flags() {
    alone("resource_is_mapped_at_any_hint_but_only_with_posix_flags", || {
        for dom0 in [Dom0::Pv, Dom0::Pvh] {
            let (_host, guest, handle) = host_of(dom0, (6, 1));
            guest.add_resource(Resource::GrantTable, PAGES);
            for (&(name, flags, _), mode) in FLAGS.iter().flat_map(|flag| Mode::ALL.map(|mode| (flag, mode))) {
                let flags = flags | mode.flags();
                each_place(|place| {
                    let what = format!("{name} {mode:?} {}", place.name);
                    let hint: *mut c_void = ptr::with_exposed_provenance_mut(place.addr);
                    let mut addr = hint;
                    let (domid, prot, frames) = (guest.domid().get(), libc::PROT_READ, PAGES as c_ulong);
                    Errno::clear();
                    // SAFETY: the call replaces nothing, whatever the flags.
                    let mapped = unsafe {
                        xenforeignmemory_map_resource(
                            &raw const handle,
                            domid,
                            1,
                            0,
                            0,
                            frames,
                            &raw mut addr,
                            prot,
                            flags,
                        )
                    };

                    let is_posix = flags & !(libc::MAP_SHARED | libc::MAP_PRIVATE) == 0;
                    let errno = if is_posix { 0 } else { libc::EINVAL };
                    assert_eq!(if mapped.is_null() { Errno::last_raw() } else { 0 }, errno, "{what}");
                    if is_posix {
                        assert!(!addr.is_null(), "{what}");
                        assert_eq!(Maps::now().of_devices(), 1, "{what}");
                        // SAFETY: just mapped, and nothing uses it.
                        assert_eq!(unsafe { xenforeignmemory_unmap_resource(&raw const handle, mapped) }, 0, "{what}");
                    } else {
                        assert_eq!(addr, hint, "{what}");
                    }
                    let maps = Maps::now();
                    assert_eq!((maps.access_at(0), maps.of_devices()), (None, 0), "{what}");
                    assert_eq!(maps.access_at(place.addr), place.is_taken.then_some("---p"), "{what}");
                    free(place.addr);
                });
            }
        }
    });
}

#[test]
fn mapping_at_null_fails_without_a_call_to_the_kernel() {
    let (_host, _guest, handle, log) = host_that_logs(HostConfig::default());
    for mode in [Mode::Over, Mode::NotOver, Mode::Both] {
        let place = map::Place::requested(0, mode.flags());
        let request =
            Request { dom: 1, place, prot: libc::PROT_READ, pages: 1, arr: [1].as_ptr(), err: ptr::null_mut() };

        // SAFETY: nothing is mapped at address 0.
        assert_eq!(unsafe { map::map(&handle, &request) }, Err(libc::EINVAL));

        assert_eq!(log.all(), [""; 0], "{mode:?}");
    }
}
