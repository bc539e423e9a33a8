//! Specifics of an Arm dom0: fatal accesses, pages larger than a frame, and dom0's memory for each mapped frame.

#![expect(unsafe_code, reason = "misuses mappings")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::common::{
    FRAME, ReadOnly, ReadWrite, current_task, mock_with, mock_with_pages, number, numbers, run_in_own_process,
};
use xenmap::mock::{Dom0, HostConfig, MockDomain, MockHost};
use xenmap::{Access, ForeignMapping, Gfn, GuestKind, Protection, Resource};

const PAGE_SIZES: [usize; 3] = [FRAME, 4 * FRAME, 16 * FRAME];

/// A frame number without RAM.
const HOLE: u64 = 0xE_0000;

/// Maps frames 0 to 7 of a guest, of which 2 and 5 are holes.
fn with_holes(page_size: usize, protection: Protection) -> (MockHost, ForeignMapping) {
    let host = mock_with_pages(Dom0::Arm, page_size);
    let guest = host.create_domain(GuestKind::Hvm, 8);
    let mut gfns = guest.frames();
    gfns[2] = Gfn::new(HOLE).unwrap();
    gfns[5] = Gfn::new(HOLE + 5).unwrap();
    let mapping = host.open().unwrap().map_foreign_batch_partial(guest.domid(), protection, &gfns).unwrap();
    (host, mapping)
}

fn arm_guest(page_size: usize, frames: usize) -> (MockHost, MockDomain) {
    let host = mock_with_pages(Dom0::Arm, page_size);
    let guest = host.create_domain(GuestKind::Hvm, frames);
    (host, guest)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn touch(mapping: &ForeignMapping, offset: usize, protection: Protection) {
    let at = mapping.view().as_ptr().wrapping_add(offset);
    match protection {
        // SAFETY: the test expects this to kill the process.
        ReadOnly => assert_ne!(unsafe { at.read_volatile() }, 1),
        // SAFETY: as above.
        ReadWrite => unsafe { at.write_volatile(1) },
    }
}

#[test]
fn touching_a_failed_frame_ends_the_process_and_names_the_frame() {
    const THIS: &str = "arm::touching_a_failed_frame_ends_the_process_and_names_the_frame";
    for page_size in PAGE_SIZES {
        for protection in [ReadOnly, ReadWrite] {
            for (index, name) in [(2, "0xe0000"), (5, "0xe0005")] {
                let task_here = format!("{page_size} {protection:?} {index}");
                let Some(output) = run_in_own_process(THIS, &task_here) else {
                    if current_task() == task_here {
                        let (_host, mapping) = with_holes(page_size, protection);
                        touch(&mapping, index * FRAME + 77, protection);
                        std::process::exit(0);
                    }
                    continue;
                };
                assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{task_here}: {}", stderr(&output));
                let text = format!("xenmap's mock: frame {name}, which could not be mapped, was touched at 0x");
                assert!(stderr(&output).contains(&text), "{}", stderr(&output));
            }
        }
    }
}

#[test]
fn touching_the_end_of_the_last_page_ends_the_process_and_says_so() {
    const THIS: &str = "arm::touching_the_end_of_the_last_page_ends_the_process_and_says_so";
    for (page_size, frames, resource) in [(4 * FRAME, 5, false), (16 * FRAME, 1, false), (4 * FRAME, 1, true)] {
        let task_here = format!("{page_size} {frames} {resource}");
        let Some(output) = run_in_own_process(THIS, &task_here) else {
            if current_task() == task_here {
                let (host, guest) = arm_guest(page_size, frames);
                guest.add_resource(Resource::GrantTable, 1);
                let memory = host.open().unwrap();
                let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
                let grants = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 1).unwrap();
                let base = if resource { grants.view().as_ptr() } else { mapping.view().as_ptr() };
                // SAFETY: the test expects this to kill the process.
                assert_ne!(unsafe { base.wrapping_add(frames * FRAME).read_volatile() }, 1);
                std::process::exit(0);
            }
            continue;
        };
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{task_here}: {}", stderr(&output));
        let text = format!("memory past the last frame of a mapping (index {frames}) was touched at 0x");
        assert!(stderr(&output).contains(&text), "{}", stderr(&output));
    }
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: the process ends here.
    unsafe { libc::_exit(77) }
}

#[test]
fn other_bus_errors_are_left_alone() {
    const THIS: &str = "arm::other_bus_errors_are_left_alone";
    for task_here in ["another file", "sent", "handled before", "ignored and sent"] {
        let Some(output) = run_in_own_process(THIS, task_here) else {
            if current_task() == task_here {
                raise_another_bus_error(task_here);
            }
            continue;
        };
        let status = (output.status.code(), output.status.signal());
        let expected = match task_here {
            "handled before" => (Some(77), None),
            "ignored and sent" => (Some(78), None),
            _ => (None, Some(libc::SIGBUS)),
        };
        assert_eq!(status, expected, "{task_here}: {}", stderr(&output));
        assert!(!stderr(&output).contains("xenmap's mock"), "{}", stderr(&output));
    }
}

fn raise_another_bus_error(how: &str) -> ! {
    let before = match how {
        "handled before" => leave as extern "C" fn(libc::c_int) as libc::sighandler_t,
        "ignored and sent" => libc::SIG_IGN,
        // The standard library has installed a handler; remove it.
        _ => libc::SIG_DFL,
    };
    if how != "another file" {
        // SAFETY: the handler only calls _exit.
        unsafe { libc::signal(libc::SIGBUS, before) };
    }
    let (_host, _mapping) = with_holes(FRAME, ReadOnly);
    if how.ends_with("sent") {
        // SAFETY: sends a signal to our own process.
        unsafe { libc::raise(libc::SIGBUS) };
        std::process::exit(78);
    }
    // A page past the end of its file.
    // SAFETY: creates an empty file.
    let fd = unsafe { libc::memfd_create(c"other".as_ptr(), 0) };
    // SAFETY: the kernel picks free addresses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), FRAME, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the test expects this to kill the process.
    assert_ne!(unsafe { page.cast::<u8>().read_volatile() }, 1);
    std::process::exit(0)
}

#[test]
fn system_call_on_a_failed_frame_fails() {
    let (_host, mapping) = with_holes(FRAME, ReadWrite);
    let hole = mapping.view().as_ptr().wrapping_add(2 * FRAME);
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: this kernel checks the address. (On Xen this would crash the kernel, so the library never does it.)
    let written = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), hole.cast(), FRAME) };
    assert_eq!((written, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    drop(reader);
}

#[test]
fn mapping_takes_whole_pages_but_references_only_its_frames() {
    // The largest two need several device mappings.
    for (page_size, frames) in
        PAGE_SIZES.into_iter().flat_map(|size| [1, 3, 4, 5, 17, 16_384, 16_385, 40_003].map(|n| (size, n)))
    {
        let (host, guest) = arm_guest(page_size, frames);
        let memory = host.open().unwrap();
        let mapping = memory.map_foreign_batch(guest.domid(), ReadWrite, &guest.frames()).unwrap();
        assert_eq!(mapping.view().len(), frames * FRAME);
        assert_eq!(host.references(guest.domid()), frames, "{frames} frames, pages of {page_size} bytes");
        number(&mapping);
        assert_eq!(numbers(&mapping), (0..frames as u64).collect::<Vec<u64>>());
        guest.destroy();
        drop(mapping);
        assert_eq!(host.zombies(), []);
    }
}

#[test]
fn lack_of_memory_to_map_frames_is_a_clear_error() {
    let mut config = HostConfig::default();
    config.dom0 = Dom0::Arm;
    config.dom0_free_frames = Some(1000);
    let host = mock_with(config);
    let guest = host.create_domain(GuestKind::Hvm, 1500);
    let memory = host.open().unwrap();
    let gfns = guest.frames();
    let first = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..600]).unwrap();
    let error = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[600..1100]).unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM);
    assert!(error.to_string().contains("out of memory, this domain's or Xen's"), "{error}");
    assert!(error.to_string().contains("map less at a time"), "{error}");
    assert_eq!(host.references(guest.domid()), 600, "the failed batch has left references");
    drop(first);
    memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[600..1100]).unwrap();
}
