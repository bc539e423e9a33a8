//! Dumps in formats that are unpacked before they are read: avml's, kdump-compressed, flattened.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;
use crate::image::{Content, Image, Making};
use crate::kernel;
use crate::packed::*;
use crate::ram::Ram;
use crate::registers::Registers;

fn some_pages() -> Pages {
    let mut pages: Pages = [0, 1, 7, 9, 300].into_iter().zip((1..).map(page)).collect();
    pages.insert(8, page(0));
    pages.insert(10, page(0));
    pages.insert(20, pattern(FRAME_SIZE).try_into().unwrap());
    pages
}

/// Returns each packed form of some pages, with its name.
fn forms(pages: &Pages) -> Vec<(String, Vec<u8>)> {
    let mut forms = vec![("avml".to_owned(), avml(pages))];
    for (name, method) in METHODS {
        let dump = kdump(pages, method, &Kdump::default());
        forms.push((format!("flattened-{name}"), flattened(&dump)));
        forms.push((format!("kdump-{name}"), dump));
    }
    forms
}

fn assert_same(folder: &Path, name: &str) {
    let output = run_in(folder, &format!("diff elf {name}"));
    let expected = "8 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
    assert_eq!((text(&output.stdout), text(&output.stderr)), (expected, ""), "{name}");
}

#[test]
fn packed_dumps_have_the_pages_that_were_packed() {
    let folder = folder("packed");
    fs::write(folder.join("elf"), elf(&some_pages())).unwrap();
    for (name, dump) in forms(&some_pages()) {
        fs::write(folder.join(&name), &dump).unwrap();
        assert_same(&folder, &name);
        fs::write(folder.join("zst"), zstd::encode_all(&dump[..], 0).unwrap()).unwrap();
        assert_same(&folder, "zst");
        let read = run_in(&folder, &format!("read --dump {name} 0x7ffe 4 --binary"));
        assert_eq!(read.stdout, [3, 3, 0, 0], "{name}");
    }
    // An elf core can be flattened as well.
    fs::write(folder.join("flat"), flattened(&elf(&some_pages()))).unwrap();
    assert_same(&folder, "flat");
}

#[test]
fn kdump_of_larger_pages_is_read() {
    let folder = folder("packed-64k");
    let (_, zlib) = METHODS[1];
    let mut dump = kdump(&Pages::new(), zlib, &Kdump::default());
    dump.truncate(4096);
    // Block size 64 KiB: header, sub-header, two bitmaps, each in a block of its own.
    dump[428..432].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    dump.resize(4 << 16, 0);
    // The second page of 64 KiB.
    dump[3 << 16] = 2;
    let page = pattern(1 << 16);
    let bytes = zlib.1(&page);
    dump.extend(words(&[dump.len() as u64 + 24, bytes.len() as u64 | 1 << 32, 0]));
    dump.extend(bytes);
    fs::write(folder.join("dump"), dump).unwrap();
    assert_eq!(run_in(&folder, "read --dump dump 64K 64K --binary").stdout, page);
    assert_eq!(refusal(&run_in(&folder, "read --dump dump 0 1")), "cannot read at 0x0: not in the dump");
}

#[test]
fn later_piece_of_a_flattened_dump_replaces_an_earlier_one() {
    let folder = folder("packed-pieces");
    let core = elf(&[(0, page(1)), (1, page(2)), (2, page(3))].into());
    let at = core.len() as u64 - 3 * 4096;
    fs::write(folder.join("flat"), flattened_pieces(&[(0, &core), (at + 4096, &page(0))])).unwrap();
    let expected = [page(1), page(0), page(3)].concat();
    assert!(run_in(&folder, "read --dump flat 0 12K --binary").stdout == expected);

    // The same by a hole of the file.
    let flat = flattened_pieces(&[(0, &core), (at + 4096, &[])]);
    let end = flat.len() as u64 - 16;
    let file = fs::File::create(folder.join("flat")).unwrap();
    file.write_all_at(&flat[..flat.len() - 24], 0).unwrap();
    let (hole, terabyte) = (end.next_multiple_of(4096), 1_u64 << 40);
    file.write_all_at(&(hole + terabyte - end).to_be_bytes(), end - 8).unwrap();
    file.write_all_at(&[0xFF; 16], hole + terabyte).unwrap();
    let expected = [page(1), page(0), page(0)].concat();
    assert!(run_in(&folder, "read --dump flat 0 12K --binary").stdout == expected);
}

#[test]
fn pieces_that_are_a_hole_of_a_flattened_dump_are_refused_at_once() {
    let folder = folder("packed-holes");
    let flat = flattened(b"file");
    fs::write(folder.join("flat"), &flat[..4096]).unwrap();
    fs::File::options().write(true).open(folder.join("flat")).unwrap().set_len(1 << 40).unwrap();
    let line = refusal(&run_in(&folder, "map --dump flat")).to_owned();
    assert!(line.ends_with("it is damaged: there is no piece where one should be"), "{line}");
}

#[test]
fn info_of_a_kdump_does_not_decompress_it() {
    let folder = folder("packed-info");
    let mut dump = kdump(&some_pages(), METHODS[1].1, &Kdump::default());
    fs::write(folder.join("good"), &dump).unwrap();
    let expected = json(&run_in(&folder, "info --dump good --json"));
    assert_eq!((&expected["pages"], &expected["highest_frame"]), (&8.into(), &300.into()));
    // The descriptors lead nowhere.
    dump[4 * 4096..4 * 4096 + 8 * 24].fill(0xFF);
    fs::write(folder.join("bad"), &dump).unwrap();
    assert_eq!(json(&run_in(&folder, "info --dump bad --json")), expected);
    assert!(refusal(&run_in(&folder, "map --dump bad")).ends_with("it is cut off"));
}

/// Writes a file and returns why it cannot be used.
fn why_refused(folder: &Path, file: &[u8]) -> String {
    fs::write(folder.join("file"), file).unwrap();
    refusal(&run_in(folder, "map --dump file")).strip_prefix("cannot use file as a dump: ").unwrap().to_owned()
}

#[test]
fn damaged_packed_dumps_are_refused_with_the_reason() {
    let folder = folder("packed-damaged");
    let pages: Pages = [(5, pattern(FRAME_SIZE).try_into().unwrap())].into();
    for (name, file) in forms(&pages) {
        // The last 16 bytes of a flattened dump mark its end.
        let reason = why_refused(&folder, &file[..file.len() - 17]);
        assert!(reason.contains("cut off"), "{name}: {reason}");
    }
    let patched = |at: usize, bytes: &[u8], mut file: Vec<u8>| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let [none, zlib] = [0, 1].map(|i| kdump(&pages, METHODS[i].1, &Kdump::default()));
    let too_long = [&zlib[..], &[0; 8192]].concat();
    let avml_len = avml(&pages).len();
    for (file, expected) in [
        (patched(428, &[0, 1, 0, 0], none.clone()), "it is a kdump of a machine that is not 64-bit and little-endian"),
        (patched(4096 + 12, &[1], none.clone()), "it is one of several parts of a dump: join them first"),
        (patched(436, &[0xFF; 4], none.clone()), "it is cut off"),
        (patched(4 * 4096, &[0xFF; 8], none.clone()), "the page at 0x5000: it is cut off"),
        (patched(4 * 4096 + 9, &[17], too_long), "the page at 0x5000: it is damaged: it takes more bytes than a page"),
        (patched(4 * 4096 + 9, &[8], none.clone()), "the page at 0x5000: it is damaged: it has 2048 bytes"),
        (patched(4 * 4096 + 12, &[3], none.clone()), "the page at 0x5000: it is compressed in an unknown way"),
        (patched(4 * 4096 + 12, &[1], none), "the page at 0x5000: it is damaged: "),
        (patched(4 * 4096 + 8, &[9], zlib), "the page at 0x5000: it is damaged: "),
        (patched(4, &[3], avml(&pages)), "there is no avml header, version 2, at byte 0"),
        (patched(16, &[0, 0], avml(&pages)), "a part of it ends before it begins"),
        (patched(avml_len - 8, &[0], avml(&pages)), "it is damaged: the part before byte"),
        (patched(60, &[0xAA], avml(&pages)), "it cannot be decompressed: "),
        (patched(31, &[2], flattened(b"file")), "it is a flattened dump of an unknown version"),
        (patched(4096, &[0x7F; 16], flattened(b"file")), "it is damaged: a piece of it is past the end of any file"),
        (flattened(&flattened(b"file")), "it is flattened twice"),
        (flattened(b"file"), "once rearranged, it is of no known kind, and not raw RAM"),
    ] {
        let reason = why_refused(&folder, &file);
        assert!(reason.starts_with(expected), "{expected}: {reason}");
    }
}

#[test]
fn packed_dump_is_not_a_guests_ram() {
    let folder = folder("packed-mock");
    for (name, what) in [("avml", "a compressed dump of avml"), ("kdump-zlib", "a kdump-compressed dump")] {
        let (_, dump) = forms(&some_pages()).into_iter().find(|(form, _)| form == name).unwrap();
        fs::write(folder.join("file"), dump).unwrap();
        let line = refusal(&run_in(&folder, "--mock file info")).to_owned();
        assert!(line.starts_with(&format!("cannot use file: it is {what}; --mock takes raw RAM")), "{line}");
    }
}

/// Opens a file as a dump, which must not take long or panic, and reads all of it.
fn open(folder: &Path, file: &[u8]) {
    let path = folder.join("file");
    fs::write(&path, file).unwrap();
    if let Ok(image) = Image::open(&path, Making::new(false, "--raw")) {
        let _ = image.machine_frames(0..16);
        let contents = image.extents().into_iter().flat_map(|extent| image.contents(extent));
        let bytes = contents.map(|(_, content)| if let Content::Bytes(bytes) = content { bytes.len() } else { 0 });
        // Zeros that are not in the file cost nothing, however many a segment claims.
        assert!(bytes.sum::<usize>() <= 1000 * file.len());
        let ram = Ram::Dump(image);
        let tables = [ram.page_tables(0).ok(), ram.vmcoreinfo().and_then(kernel::page_tables)];
        for tables in tables.into_iter().flatten() {
            let _ = ram.translate(&tables, 0xFFFF_FFFF_8000_0000);
        }
    }
}

/// Returns dumps whose parsers are tried with changed bytes: the packed ones, and those with registers and other notes.
fn hostile_forms() -> Vec<Vec<u8>> {
    let registers = Registers { control: [1 << 31, 0, 0, 0x7000, 1 << 5], ..Registers::default() };
    let text = b"OSRELEASE=6.1.0\nSYMBOL(init_top_pgt)=ffffffff80007000\nNUMBER(phys_base)=0\n";
    let notes = [
        note(b"CORE\0", 1, &registers.to_prstatus(0)),
        note(b"QEMU\0", 0, &registers.to_qemu()),
        note(b"VMCOREINFO\0", 0, text),
    ];
    let pages = some_pages();
    let p2m: Vec<u64> = pages.keys().flat_map(|pfn| [*pfn, 0x1000 + pfn]).collect();
    let others = [
        elf_with_notes(&pages, &notes.concat()),
        kdump(&pages, METHODS[1].1, &Kdump { notes: &notes.concat(), vmcoreinfo: text }),
        xen_with(&pages, &[(".xen_p2m", &words(&p2m), 16), (".xen_prstatus", &registers.to_xen(), 5168)]),
    ];
    forms(&pages).into_iter().map(|(_, file)| file).chain(others).collect()
}
const HOSTILE_FORMS: usize = 14;

#[test]
fn all_hostile_forms_are_tried() {
    assert_eq!(hostile_forms().len(), HOSTILE_FORMS);
}

proptest! {
    #[test]
    fn changed_bytes_do_not_crash_it(form in 0..HOSTILE_FORMS, changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut file = hostile_forms().swap_remove(form);
        for (index, byte) in changes {
            let at = index.index(file.len());
            file[at] = byte;
        }
        open(&folder("packed-changed"), &file);
    }

    #[test]
    fn changed_headers_do_not_crash_it(form in 0..HOSTILE_FORMS, changes in vec((0..128_usize, any::<u32>()), 1..8)) {
        let mut file = hostile_forms().swap_remove(form);
        // The words of headers and descriptors.
        let starts = [0, 0x1A0, 0x1000, 0x1000 + 0x1A0, 0x2000, 0x3000, 0x4000];
        for (word, value) in changes {
            let at = starts[word % starts.len()] + word / starts.len() * 4;
            if let Some(bytes) = file.get_mut(at..at + 4) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        open(&folder("packed-headers"), &file);
    }

    #[test]
    fn cut_files_do_not_crash_it(form in 0..HOSTILE_FORMS, end in any::<prop::sample::Index>()) {
        let file = hostile_forms().swap_remove(form);
        open(&folder("packed-cut"), &file[..end.index(file.len())]);
    }
}
