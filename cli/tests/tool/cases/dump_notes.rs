//! The kernel's VMCOREINFO note in `xenmap dump --format elf`: it is found wherever it is, and the running kernel's is taken.

use std::fs;
use std::path::Path;

use object::LittleEndian as LE;
use object::elf::{FileHeader64, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use xenmap::FRAME_SIZE;

use crate::harness::*;

const HEADER: usize = 24;

/// Returns a note as a kernel has it in its memory.
fn note(text: &str) -> Vec<u8> {
    let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes).concat();
    let mut note = [&words, b"VMCOREINFO\0\0".as_slice(), text.as_bytes()].concat();
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Returns the text of a kernel whose names are at an address, as x86-64 kernels up to 5.10 have it.
fn text_of(release: &str, names_at: u64) -> String {
    let symbol = 0xFFFF_FFFF_8000_0000 + names_at - 4;
    format!("OSRELEASE={release}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={symbol:x}\nNUMBER(phys_base)=0\n")
}

/// Returns the names: a `struct new_utsname`.
fn names_of(release: &str) -> Vec<u8> {
    ["Linux", "host", release, "#1 SMP", "x86_64", "(none)"]
        .iter()
        .flat_map(|name| {
            let mut field = [0; 65];
            field[..name.len()].copy_from_slice(name.as_bytes());
            field
        })
        .collect()
}

/// Returns frames of zeros.
fn zeros(frames: usize) -> Vec<u8> {
    vec![0; frames * FRAME_SIZE]
}

/// Dumps the RAM in a folder. Returns the texts of the kernel's notes in the dump, and the lines about them on stderr.
fn dump(folder: &Path, args: &str) -> (Vec<String>, Vec<String>) {
    let _ = fs::remove_file(folder.join("out"));
    let output = run_in(folder, &format!("--mock ram {args} out --format elf"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let file = fs::read(folder.join("out")).unwrap();
    let header = FileHeader64::<LE>::parse(&*file).unwrap();
    let segments = header.program_headers(LE, &*file).unwrap();
    let notes = segments.iter().find(|segment| segment.p_type.get(LE) == PT_NOTE).unwrap();
    let mut notes = notes.notes(LE, &*file).unwrap().unwrap();
    let mut texts = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        if note.name() == b"VMCOREINFO" {
            texts.push(text(note.desc()).to_owned());
        }
    }
    let lines = text(&output.stderr).lines().filter(|line| line.contains("VMCOREINFO"));
    (texts, lines.map(ToOwned::to_owned).collect())
}

/// Checks that the dump of some RAM has this note, and that stderr says nothing about it.
#[track_caller]
fn assert_certain(folder: &Path, ram_is: &[(u64, &[u8])], expected: &str) {
    ram(folder, ram_is);
    let (notes, lines) = dump(folder, "dump");
    assert_eq!((notes, lines), (vec![expected.to_owned()], Vec::new()));
}

#[test]
fn note_is_found_wherever_it_is_in_a_page() {
    let folder = folder("note-unaligned");
    let text = text_of("4.4.0", 0x7E1_3324);
    let (note, filler) = (note(&text), pattern(40 * FRAME_SIZE));
    for offset in [0, 4, 0x7A0, 0x7A1, 4096 - 24, 4095] {
        assert_certain(&folder, &[(0, &filler), (frame(20) + offset, &note)], &text);
    }
    // Header and text across a page border; between pages of zeros, and at the ends of RAM.
    for before in [1, 4, 11, 12, 23, 24, 30, 33, 34, 60] {
        assert_certain(&folder, &[(frame(8), &zeros(4)), (frame(10) - before, &note)], &text);
    }
    assert_certain(&folder, &[(frame(8), &note)], &text);
    assert_certain(&folder, &[(frame(8), &zeros(1)), (frame(9) - note.len() as u64, &note)], &text);
}

#[test]
fn note_is_found_across_the_borders_of_chunks_and_windows() {
    let folder = folder("note-windows");
    let text = text_of("4.4.0", 0x7E1_3324);
    let note = note(&text);
    // The borders of what is copied by one thread, mapped, and searched at a time.
    for (border, before) in [(16_384, 24), (4096, 12), (4096, 33), (16, 1), (16, 33)] {
        ram(&folder, &[(0, &zeros(border + 8)), (frame(border as u64) - before, &note)]);
        for way in ["single", "threads"] {
            let found = dump(&folder, &format!("dump --copy-by {way}"));
            assert_eq!(found, (vec![text.clone()], Vec::new()), "{before} bytes before frame {border}, {way}");
        }
    }
    let found = dump(&folder, "--mock-kind pv dump");
    assert_eq!(found, (vec![text], Vec::new()));
}

#[test]
fn note_of_the_kernel_in_memory_is_taken() {
    let folder = folder("note-running");
    let (old, new) = (text_of("5.10.0-old", 0x8004), text_of("6.1.0-new", 0x9ABC));
    let (old_note, new_note, names) = (note(&old), note(&new), names_of("6.1.0-new"));
    let zeros = zeros(32);
    // The note of an older kernel, whose names are overwritten, is before it and then after it.
    for places in [[frame(20), frame(25)], [frame(25), frame(20)]] {
        assert_certain(&folder, &[(0, &zeros), (places[0], &old_note), (places[1], &new_note), (0x9ABC, &names)], &new);
    }
    // The same with a note that is of no kernel.
    for other in [
        "OSRELEASE=OLD\nPAGESIZE=4096\n",
        "OSRELEASE=6.1.0-new\n",
        "OSRELEASE=\nSYMBOL(init_uts_ns)=ffffffffffffffff\n",
    ] {
        let other = note(other);
        for places in [[frame(20), frame(25)], [frame(25) + 4, frame(20)]] {
            assert_certain(
                &folder,
                &[(0, &zeros), (places[0], &other), (places[1], &new_note), (0x9ABC, &names)],
                &new,
            );
        }
    }
}

#[test]
fn kernel_is_found_by_what_its_note_says() {
    let folder = folder("note-places");
    let zeros = zeros(32);
    let (stale, names) = (note("OSRELEASE=5.0.0\nPAGESIZE=4096\n"), names_of("6.1.0"));
    for (names_at, lines) in [
        // The image is elsewhere, below and above where it was linked to.
        (0x9004, "SYMBOL(init_uts_ns)=ffffffff81009000\nNUMBER(phys_base)=-16777216\n"),
        (0x9004, "SYMBOL(init_uts_ns)=ffffffff80001000\nNUMBER(phys_base)=32768\n"),
        // Since 5.11 the note has the offset.
        (0x9000, "OFFSET(uts_namespace.name)=0\nSYMBOL(init_uts_ns)=ffffffff80009000\nNUMBER(phys_base)=0\n"),
        // Before 4.10 it does not have the base. The names are across a page border.
        (0x9F84, "SYMBOL(init_uts_ns)=ffffffff80009f80\nSYMBOL(phys_base)=ffffffff81a00000\n"),
        // arm64.
        (
            0x9004,
            "SYMBOL(init_uts_ns)=ffff800009009000\nNUMBER(kimage_voffset)=0xffff800009000000\nNUMBER(phys_base)=5\n",
        ),
    ] {
        let running = format!("OSRELEASE=6.1.0\nPAGESIZE=4096\n{lines}");
        let running_note = note(&running);
        let content: [(u64, &[u8]); 4] =
            [(0, &zeros), (frame(18), &stale), (frame(20) + 8, &running_note), (names_at, &names)];
        assert_certain(&folder, &content, &running);
    }
}

#[test]
fn copies_of_a_note_count_once() {
    let folder = folder("note-copies");
    let text = text_of("6.1.0", 0x7E1_3324);
    let note = note(&text);
    let zeros = zeros(32);
    assert_certain(&folder, &[(0, &zeros), (frame(9) + 99, &note), (frame(20), &note), (frame(30), &note)], &text);
}

#[test]
fn notes_that_cannot_be_told_apart_are_named() {
    let folder = folder("note-doubt");
    let zeros = zeros(32);
    // There is no RAM at the address that it names.
    let named = text_of("4.4.0\u{7e}x", 0x7E1_3324);
    let (named_note, vague_note) = (note(&named), note("OSRELEASE=OLD\nPAGESIZE=4096\n"));
    for (named_at, vague_at) in [(frame(20), frame(5)), (frame(5), frame(20))] {
        ram(&folder, &[(0, &zeros), (named_at, &named_note), (vague_at, &vague_note)]);
        let list = if named_at > vague_at {
            "0x5000 (Linux OLD), 0x14000 (Linux 4.4.0~x)"
        } else {
            "0x5000 (Linux 4.4.0~x), 0x14000 (Linux OLD)"
        };
        let line = format!(
            "xenmap: 2 VMCOREINFO notes could be the running kernel's, at {list}: \
             took the one at {named_at:#x}, which may not be the running kernel's"
        );
        assert_eq!(dump(&folder, "dump"), (vec![named.clone()], vec![line]));
    }
}

#[test]
fn only_note_is_doubted_if_its_kernel_is_not_in_memory() {
    let folder = folder("note-gone");
    let text = text_of("5.10.0", 0x8004);
    ram(&folder, &[(0, &zeros(32)), (frame(20), &note(&text))]);
    let line = "xenmap: the VMCOREINFO note at 0x14000 (Linux 5.10.0) may be an earlier kernel's: \
                that kernel is not where the note says";
    assert_eq!(dump(&folder, "dump"), (vec![text], vec![line.to_owned()]));
}

/// Such as a kernel that crashed, and the one that runs now.
#[test]
fn two_kernels_in_memory_are_named() {
    let folder = folder("note-two");
    let zeros = zeros(32);
    let (first, second) = (text_of("5.10.0", 0x8004), text_of("6.1.0", 0x9004));
    let (first_note, second_note) = (note(&first), note(&second));
    let (names_of_first, names_of_second) = (names_of("5.10.0"), names_of("6.1.0"));
    let names: [(u64, &[u8]); 2] = [(0x8004, &names_of_first), (0x9004, &names_of_second)];
    ram(&folder, &[(0, &zeros), names[0], names[1], (frame(20), &first_note), (frame(25), &second_note)]);
    let (notes, lines) = dump(&folder, "dump");
    assert_eq!((notes, lines.len()), (vec![first], 1));
    assert!(
        lines[0].ends_with("took the one at 0x14000, whose kernel is in memory but may not be running"),
        "{}",
        lines[0]
    );
}

#[test]
fn note_that_is_not_whole_is_ignored() {
    let folder = folder("note-broken");
    let good = text_of("6.1.0", 0x7E1_3324);
    let longest = format!("OSRELEASE=6.1.0\n{}", "x".repeat(4096 - 16));
    let whole = note(&good);
    let with_len = |len: usize| {
        let mut note = whole.clone();
        note[4..8].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        note
    };
    let mut overwritten = whole.clone();
    overwritten[HEADER + 40] = 0;
    let broken = [
        // Sizes that lie: past its end, within a line, and past any.
        with_len(good.len() + 1),
        with_len(4096),
        with_len(4097),
        with_len(usize::try_from(u32::MAX).unwrap()),
        with_len(good.len() - 1),
        with_len(10),
        with_len(0),
        overwritten,
        note("OSRELEASE=6.1.0\n\u{1b}[31m\n"),
        note(&longest[..4000]),
        // Cut off.
        whole[..whole.len() / 2].to_vec(),
        whole[..HEADER].to_vec(),
    ];
    for (i, broken) in broken.iter().enumerate() {
        ram(&folder, &[(0, &zeros(8)), (frame(3) + 0x10, broken)]);
        assert_eq!(dump(&folder, "dump"), (vec![], vec![]), "{i}");
        // At the end of RAM.
        ram(&folder, &[(0, &zeros(8)), (frame(8) - broken.len().min(FRAME_SIZE) as u64, broken)]);
        assert_eq!(dump(&folder, "dump").1, Vec::<String>::new(), "{i}");
        // It does not hide a whole note.
        let content: [(u64, &[u8]); 3] = [(0, &zeros(16)), (frame(3) + 0x10, broken), (frame(9), &whole)];
        assert_certain(&folder, &content, &good);
    }
    // The longest possible note, of a kernel that had more to say.
    let note = note(&longest);
    assert_certain(&folder, &[(0, &zeros(8)), (frame(3) + 0x10, &note)], &longest);
}

#[test]
fn thousands_of_notes_are_checked_and_the_others_are_counted() {
    let folder = folder("note-many");
    let (running, names) = (text_of("6.1.0", 0x9004), names_of("6.1.0"));
    let running_note = note(&running);
    let others =
        |count: u32| -> Vec<u8> { (0..count).flat_map(|i| note(&text_of(&format!("6.{i}.9"), 0x9004))).collect() };
    for (count, is_found) in [(4000, true), (50_000, false)] {
        let others = others(count);
        let end = frame(16) + (others.len() as u64).next_multiple_of(frame(1));
        ram(&folder, &[(0, &zeros(16)), (0x9004, &names), (frame(16), &others), (end, &running_note)]);
        let (notes, lines) = dump(&folder, "dump");
        assert_eq!(notes.len(), 1);
        if is_found {
            assert_eq!((&notes[0], lines), (&running, vec![]));
        } else {
            assert!(lines[0].starts_with("xenmap: 50001 VMCOREINFO notes could be"), "{}", lines[0]);
            assert!(lines[0].contains(", 49993 more: took the one at 0x10000, which may not be"), "{}", lines[0]);
            assert!(lines[0].len() < 1000);
        }
    }
}
