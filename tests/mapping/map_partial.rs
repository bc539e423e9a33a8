//! `map_foreign_batch_partial`: maps what it can, and every access checks for holes.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::cell::Cell;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;

use crate::common::expected::HoleRead;
use crate::common::{
    FRAME, Guest, Host, ReadOnly, ReadWrite, current_task, on_each_host, run_in_own_process, with_each_guest,
};
use xenmap::{Access, Error, ForeignMapping, GuestKind};

/// Maps frames 0 to 7, of which 2, 3 and 6 are holes.
fn with_holes(host: &Host, guest: &Guest) -> ForeignMapping {
    let mut gfns = guest.gfns();
    for hole in [2, 3, 6] {
        gfns[hole] = guest.hole();
    }
    host.open().map_foreign_batch_partial(guest.domid(), ReadWrite, &gfns).unwrap()
}

#[test]
fn failed_frames_are_listed_and_the_others_are_mapped() {
    with_each_guest(8, |host, guest| {
        guest.number_frames();
        let mapping = with_holes(host, &guest);
        let failed: Vec<usize> = mapping.failed().iter().map(|e| e.index).collect();
        assert_eq!(failed, [2, 3, 6]);
        assert!(mapping.failed().iter().all(|e| e.gfn == guest.hole()));
        for frame in [0, 1, 4, 5, 7] {
            assert_eq!(mapping.view().read::<u64>(frame * FRAME).unwrap(), frame as u64);
        }
        let ranges: Vec<_> = mapping.mapped_ranges().map(|r| r.start / FRAME..r.end / FRAME).collect();
        assert_eq!(ranges, [0..2, 4..6, 7..8]);
    });
}

#[test]
fn access_that_touches_a_hole_is_an_error_that_names_it() {
    with_each_guest(8, |host, guest| {
        let mapping = with_holes(host, &guest);
        let view = mapping.view();
        let hole = |result: xenmap::Result<()>| match result {
            Err(Error::Hole { offset, frame }) => (offset, frame.index),
            other => panic!("not a hole: {other:?}"),
        };
        assert_eq!(hole(view.read::<u8>(2 * FRAME).map(drop)), (2 * FRAME, 2));
        assert_eq!(hole(view.read::<u64>(2 * FRAME - 1).map(drop)), (2 * FRAME - 1, 2));
        assert_eq!(hole(view.write(4 * FRAME - 1, 0_u16)), (4 * FRAME - 1, 3));
        assert_eq!(hole(view.read_bytes(0, &mut vec![0; 8 * FRAME])), (0, 2));
        assert_eq!(hole(view.fill(FRAME, 2 * FRAME, 0)), (FRAME, 2));
        assert_eq!(hole(view.eq_bytes(FRAME, &vec![0; 2 * FRAME]).map(drop)), (FRAME, 2));
        assert_eq!(hole(view.write_bytes(6 * FRAME + 100, &[1])), (6 * FRAME + 100, 6));
        assert_eq!(hole(view.fetch_add(6 * FRAME, 1_u32).map(drop)), (6 * FRAME, 6));
        // A narrower view names holes by their index in the mapping.
        let narrow = view.slice(5 * FRAME, 2 * FRAME).unwrap();
        assert_eq!(hole(narrow.read::<u8>(FRAME).map(drop)), (FRAME, 6));
        assert_eq!(narrow.read::<u8>(FRAME - 1).unwrap(), 0);
        assert_eq!(view.read_bytes(2 * FRAME, &mut []).ok(), Some(()), "an empty access touches no frame");
        assert_eq!(view.read_bytes(2 * FRAME + 5, &mut []).ok(), Some(()), "an empty access touches no frame");
    });
}

#[test]
fn failed_frame_is_never_handed_to_a_system_call() {
    with_each_guest(8, |host, guest| {
        let mapping = with_holes(host, &guest);
        let (reader, writer) = std::io::pipe().unwrap();
        let written = mapping.view().write_to(FRAME, 2 * FRAME, &writer);
        assert!(matches!(written, Err(Error::Hole { .. })), "{written:?}");
        drop(writer);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "", "not even the bytes before it");

        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let read = mapping.view().read_from(5 * FRAME, 2 * FRAME, &zeros);
        assert!(matches!(read, Err(Error::Hole { .. })), "{read:?}");
    });
}

#[test]
fn frames_next_to_a_failed_one_are_usable() {
    with_each_guest(8, |host, guest| {
        let mapping = with_holes(host, &guest);
        let (mut reader, writer) = std::io::pipe().unwrap();
        for range in mapping.mapped_ranges() {
            mapping.view().fill(range.start, range.len(), 0xAB).unwrap();
            mapping.view().write_to(range.start, range.len(), &writer).unwrap();
            let mut found = vec![0; range.len()];
            reader.read_exact(&mut found).unwrap();
            assert!(found.iter().all(|&byte| byte == 0xAB));
        }
    });
}

#[test]
fn batch_of_holes_only_is_a_mapping_without_memory() {
    with_each_guest(1, |host, guest| {
        let gfns = [guest.hole(); 3];
        let mapping = host.open().map_foreign_batch_partial(guest.domid(), ReadOnly, &gfns).unwrap();
        assert_eq!(mapping.failed().len(), 3);
        assert_eq!(mapping.mapped_ranges().count(), 0);
        assert!(mapping.view().read::<u8>(0).is_err());
    });
}

#[test]
fn partial_mapping_gives_its_references_back() {
    with_each_guest(8, |host, mut guest| {
        let mapping = with_holes(host, &guest);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(5));
        drop(mapping);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn holes_across_device_mappings_keep_their_index() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16 * 1024 + 10);
        let mut gfns = guest.gfns();
        for hole in [0, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 9] {
            gfns[hole] = guest.hole();
        }
        let mapping = host.open().map_foreign_batch_partial(guest.domid(), ReadOnly, &gfns).unwrap();
        let failed: Vec<usize> = mapping.failed().iter().map(|e| e.index).collect();
        assert_eq!(failed, [0, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 9]);
        assert_eq!(mapping.view().read::<u8>((16 * 1024 + 1) * FRAME).unwrap(), 0);
    });
}

#[test]
fn raw_access_to_a_hole_behaves_as_the_kernel_decides() {
    const THIS: &str = "map_partial::raw_access_to_a_hole_behaves_as_the_kernel_decides";
    let number = Cell::new(0);
    on_each_host(|host| {
        number.set(number.get() + 1);
        let task = number.get().to_string();
        let Some(output) = run_in_own_process(THIS, &task) else {
            if current_task() == task {
                read_a_hole(host);
            }
            return;
        };
        let found = match output.status.signal() {
            Some(signal) => HoleRead::Signal(signal),
            None => HoleRead::Byte(u8::try_from(output.status.code().unwrap()).unwrap()),
        };
        assert_eq!(found, host.reads_a_hole_as());
    });
}

/// Reads a hole, and exits with the byte as the status.
#[expect(unsafe_code, reason = "reads a hole, which as_ptr warns about")]
fn read_a_hole(host: &Host) -> ! {
    let mut guest = host.create(GuestKind::Hvm, 1);
    let mapping = host.open().map_foreign_batch_partial(guest.domid(), ReadOnly, &[guest.hole()]).unwrap();
    guest.destroy();
    // SAFETY: if this faults, the parent expects it.
    let byte = unsafe { mapping.view().as_ptr().read_volatile() };
    std::process::exit(byte.into())
}
