//! `xenmap dump`, run as a person does. Other code reads what it writes, which must be what the guest holds.

#![expect(unsafe_code, reason = "sets what a signal does")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use xenmap::FRAME_SIZE;

use crate::harness::*;

const FORMATS: [&str; 4] = ["raw", "elf", "lime", "xen"];

/// Pages of a guest, by frame number.
type Pages = BTreeMap<u64, Vec<u8>>;

/// Makes RAM with some frames of data, some of zeros, and a far one.
fn some_ram(folder: &Path) -> Pages {
    let zeros = vec![0; 40 * FRAME_SIZE];
    let note = vmcoreinfo_note();
    ram(
        folder,
        &[
            (0, &pattern(3 * FRAME_SIZE)),
            (frame(10), CANARY),
            (frame(11), &zeros),
            (frame(51) + 4090, b"the last byte of a frame"),
            (frame(60), &note),
            (frame(5000), &zeros),
            (frame(5007), b"one among zeros"),
            (frame(9000) + 4000, b"last"),
        ],
    );
    pages_of_file(&folder.join("ram"))
}

/// Returns a note as a Linux kernel has it at the start of a page.
fn vmcoreinfo_note() -> Vec<u8> {
    let text = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n";
    let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes);
    [&words.concat(), b"VMCOREINFO\0\0".as_slice(), text, b"\0"].concat()
}

/// Returns the frames that a sparse file has, the last one whole.
fn pages_of_file(path: &Path) -> Pages {
    let file = File::open(path).unwrap();
    let mut pages = Pages::new();
    for (start, end) in extents(path) {
        let numbers = u64::try_from(start).unwrap() / frame(1)..u64::try_from(end).unwrap().div_ceil(frame(1));
        for number in numbers {
            let mut page = vec![0; FRAME_SIZE];
            let mut done = 0;
            while let Ok(read @ 1..) = file.read_at(&mut page[done..], frame(number) + done as u64) {
                done += read;
            }
            pages.insert(number, page);
        }
    }
    pages
}

fn add(pages: &mut Pages, first: u64, bytes: &[u8]) {
    assert_eq!(bytes.len() % FRAME_SIZE, 0);
    for (number, page) in (first..).zip(bytes.chunks(FRAME_SIZE)) {
        assert!(pages.insert(number, page.to_vec()).is_none(), "frame {number} comes twice");
    }
}

fn pages_of_elf(file: &[u8]) -> Pages {
    let header = elf::FileHeader64::<LE>::parse(file).unwrap();
    assert_eq!((header.e_type.get(LE), header.e_machine.get(LE)), (elf::ET_CORE, elf::EM_X86_64));
    let mut pages = Pages::new();
    for segment in header.program_headers(LE, file).unwrap() {
        if segment.p_type.get(LE) == elf::PT_LOAD {
            assert_eq!(segment.p_offset.get(LE) % frame(1), 0, "holes need whole pages");
            assert_eq!(segment.p_vaddr.get(LE), segment.p_paddr.get(LE));
            assert_eq!(segment.p_memsz.get(LE), segment.p_filesz.get(LE));
            add(&mut pages, segment.p_paddr.get(LE) / frame(1), segment.data(LE, file).unwrap());
        }
    }
    pages
}

/// Returns the notes' names and contents.
fn notes_of_elf(file: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let header = elf::FileHeader64::<LE>::parse(file).unwrap();
    let segments = header.program_headers(LE, file).unwrap();
    assert_eq!(segments[0].p_type.get(LE), elf::PT_NOTE, "crash expects it to be the first");
    let mut notes = segments[0].notes(LE, file).unwrap().unwrap();
    let mut found = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        found.push((note.name().to_vec(), note.desc().to_vec()));
    }
    found
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn pages_of_lime(mut file: &[u8]) -> Pages {
    let mut pages = Pages::new();
    while !file.is_empty() {
        let (header, rest) = file.split_at(32);
        assert_eq!(header[..8], *b"EMiL\x01\0\0\0");
        let (start, last) = (word(header, 8), word(header, 16));
        let (data, rest) = rest.split_at(usize::try_from(last + 1 - start).unwrap());
        add(&mut pages, start / frame(1), data);
        file = rest;
    }
    pages
}

fn pages_of_xen(file: &[u8]) -> Pages {
    let header = elf::FileHeader64::<LE>::parse(file).unwrap();
    let sections = header.sections(LE, file).unwrap();
    let data = |name: &str| sections.section_by_name(LE, name.as_bytes()).map(|(_, s)| s.data(LE, file).unwrap());
    let (data_of_pages, numbers) = (data(".xen_pages").unwrap(), data(".xen_pfn").unwrap());
    assert_eq!(data(".xen_prstatus"), Some([].as_slice()));
    let mut notes = NoteIterator::<elf::FileHeader64<LE>>::new(LE, 4, data(".note.Xen").unwrap()).unwrap();
    let mut kinds = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        assert_eq!(note.name(), b"Xen");
        kinds.push(note.n_type(LE).0);
        let desc = note.desc();
        match note.n_type(LE).0 {
            0x200_0000 => assert!(desc.is_empty()),
            0x200_0001 => {
                let words: Vec<u64> = (0..4).map(|i| word(desc, 8 * i)).collect();
                assert_eq!(words, [0xF00F_EBEE, 0, numbers.len() as u64 / 8, frame(1)]);
            }
            0x200_0002 => {
                assert_eq!((word(desc, 0), word(desc, 8)), (4, 17));
                assert!(desc[16..].starts_with(b".7-mock\0"));
                assert!(desc[16 + 16 + 144..].starts_with(b"xen-3.0-x86_64 "));
                assert_eq!(word(desc, desc.len() - 8), frame(1));
            }
            0x200_0003 => assert_eq!(desc, 1_u64.to_le_bytes()),
            other => panic!("{other:#x}"),
        }
    }
    assert_eq!(kinds, [0x200_0000, 0x200_0001, 0x200_0002, 0x200_0003]);
    let mut pages = Pages::new();
    for (number, page) in numbers.chunks(8).zip(data_of_pages.chunks(FRAME_SIZE)) {
        add(&mut pages, word(number, 0), page);
    }
    pages
}

fn pages_of(format: &str, file: &[u8]) -> Pages {
    match format {
        "elf" => pages_of_elf(file),
        "lime" => pages_of_lime(file),
        "xen" => pages_of_xen(file),
        other => panic!("{other} does not say which frames there are"),
    }
}

/// Returns a raw dump of these pages.
fn raw(pages: &Pages) -> Vec<u8> {
    let Some(last) = pages.keys().next_back() else { return Vec::new() };
    let mut file = vec![0; usize::try_from(frame(last + 1)).unwrap()];
    for (&number, page) in pages {
        file[usize::try_from(frame(number)).unwrap()..][..FRAME_SIZE].copy_from_slice(page);
    }
    file
}

fn dump(folder: &Path, args: &str) -> Vec<u8> {
    let output = run_in(folder, &format!("--mock ram dump {args} out"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let file = fs::read(folder.join("out")).unwrap();
    fs::remove_file(folder.join("out")).unwrap();
    file
}

fn stream(folder: &Path, args: &str) -> Vec<u8> {
    let output = run_in(folder, &format!("--mock ram dump {args} -"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout
}

#[test]
fn raw_dump_holds_each_frame_at_its_address() {
    let folder = folder("dump");
    let pages = some_ram(&folder);
    let output = run_in(&folder, "--mock ram dump out");
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    assert!(stderr.starts_with("xenmap: dumped 88 frames (352.00 KiB), 79 of them zero, 0 lost; "), "{stderr}");
    assert!(output.status.success());
    assert!(fs::read(folder.join("out")).unwrap() == raw(&pages));
    assert_eq!(names(&folder), ["out", "ram"]);
    assert_eq!(fs::metadata(folder.join("out")).unwrap().mode() & 0o777, 0o600, "full of secrets");
}

#[test]
fn raw_dump_has_holes_for_frames_of_zeros() {
    let folder = folder("zero");
    ram(&folder, &[(frame(1), b"x"), (frame(2), &[0; 4 * FRAME_SIZE]), (frame(6), b"y"), (frame(7), &[0; FRAME_SIZE])]);
    run_in(&folder, "--mock ram dump out");
    assert_eq!(extents(&folder.join("out")), extents_of_frames(&[(1, 2), (6, 7)]));
    let metadata = fs::metadata(folder.join("out")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks() * 512), (frame(8), frame(2)));
}

#[test]
fn every_format_holds_the_frames_of_the_guest_and_no_other() {
    let folder = folder("formats");
    let pages = some_ram(&folder);
    for format in &FORMATS[1..] {
        let file = dump(&folder, &format!("--format {format}"));
        assert!(pages_of(format, &file) == pages, "{format}");
    }
}

#[test]
fn dump_in_every_format_is_sparse() {
    let folder = folder("sparse");
    some_ram(&folder);
    for format in FORMATS {
        run_in(&folder, &format!("--mock ram dump --format {format} {format}"));
        let metadata = fs::metadata(folder.join(format)).unwrap();
        // 9 of 88 frames are not zero; headers, notes and tables take some more.
        assert!(metadata.blocks() * 512 <= frame(18), "{format}: {} of {}", metadata.blocks() * 512, metadata.len());
    }
}

#[test]
fn stream_is_the_same_as_the_file() {
    let folder = folder("stream");
    let pages = some_ram(&folder);
    for format in FORMATS {
        let args = format!("--format {format}");
        let (file, stream) = (dump(&folder, &args), stream(&folder, &args));
        if format == "elf" {
            // Its notes come last, because they are not known before.
            assert!(pages_of_elf(&stream) == pages);
            assert!(notes_of_elf(&stream) == notes_of_elf(&file));
            assert_eq!(stream.len().next_multiple_of(FRAME_SIZE), file.len());
        } else {
            assert!(stream == file, "{format}");
        }
    }
}

#[test]
fn zstd_decodes_to_the_stream() {
    let folder = folder("zstd");
    some_ram(&folder);
    for format in FORMATS {
        let args = format!("--format {format}");
        let plain = stream(&folder, &args);
        let file = dump(&folder, &format!("{args} --compress zstd"));
        let stream = stream(&folder, &format!("{args} --compress zstd"));
        assert!(zstd::decode_all(&*file).unwrap() == plain, "{format}");
        assert!(zstd::decode_all(&*stream).unwrap() == plain, "{format}");
        assert!(file.len() < plain.len() / 2, "{format}");
    }
}

#[test]
fn threads_write_the_same_file() {
    let folder = folder("threads");
    // Three shares, and a border of shares within an extent.
    let (content, zeros) = (pattern(3 * FRAME_SIZE), vec![0; 20_000 * FRAME_SIZE]);
    ram(&folder, &[(frame(16_383), &content), (frame(16_400), &zeros), (frame(36_390), &content)]);
    for format in FORMATS {
        let single = dump(&folder, &format!("--format {format} --copy-by single"));
        let threads = dump(&folder, &format!("--format {format} --copy-by threads"));
        assert!(single == threads, "{format}");
    }
}

#[test]
fn elf_core_has_the_kernels_note_and_one_of_ours() {
    let folder = folder("notes");
    some_ram(&folder);
    let notes = notes_of_elf(&dump(&folder, "--format elf"));
    let names: Vec<&str> = notes.iter().map(|(name, _)| text(name)).collect();
    assert_eq!(names, ["VMCOREINFO", "XENMAP"]);
    assert!(notes[0].1 == b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n");
    assert!(text(&notes[1].1).starts_with("xenmap 0.1.0: domain 1\n88 frames, 0 of them lost\n"));
}

#[test]
fn bytes_that_only_look_like_the_kernels_note_are_ignored() {
    let folder = folder("no-notes");
    let note = vmcoreinfo_note();
    let mut bad: Vec<Vec<u8>> = [0, 8, 12, 24].iter().map(|&at| edited(&note, at, 0xFF)).collect();
    bad.push(edited(&note, 5, 0x20)); // 8 KiB of text
    bad.push(edited(&note, 4, 3)); // less than it begins with
    bad.push([&note, &note[..2]].concat().split_off(2)); // not at the start of the frame
    let content: Vec<(u64, &[u8])> = (0..).map(frame).zip(bad.iter().map(Vec::as_slice)).collect();
    ram(&folder, &content);
    let notes = notes_of_elf(&dump(&folder, "--format elf"));
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].0, b"XENMAP");
}

fn edited(bytes: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = byte;
    bytes
}

#[test]
fn dump_of_a_guest_without_ram_is_empty() {
    let folder = folder("no-ram");
    ram(&folder, &[]);
    assert_eq!(dump(&folder, ""), b"");
    for format in &FORMATS[1..] {
        let args = format!("--format {format}");
        assert!(pages_of(format, &dump(&folder, &args)).is_empty(), "{format}");
        assert!(pages_of(format, &stream(&folder, &args)).is_empty(), "{format}");
    }
}

#[test]
fn large_address_space_is_dumped_sparse_and_in_little_memory() {
    let folder = folder("large");
    let end = 64_u64 << 30;
    let mib = pattern(1 << 20);
    // 256 MiB, half at the bottom, half at the top; every second one is zeros.
    let at = |i: u64| if i < 64 { (2 * i) << 20 } else { end - ((2 * (128 - i)) << 20) };
    let zeros = vec![0; 1 << 20];
    let pieces = (0..128).flat_map(|i| [(at(i), &*mib), (at(i) + (1 << 20), &*zeros)]);
    ram(&folder, &pieces.collect::<Vec<_>>());
    for args in ["--copy-by single", "--copy-by threads", "--format xen --compress zstd"] {
        // Private memory of 64 MiB at most; the guest's is shared.
        let limited = format!("ulimit -d 65536; exec \"$0\" --mock ram dump {args} out");
        let output = shell(&folder, &limited).output().unwrap();
        assert!(output.status.success(), "{args}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("dumped 65536 frames (256.00 MiB), 32768 of them zero, 0 lost"));
        let out = folder.join("out");
        assert!(fs::metadata(&out).unwrap().blocks() * 512 < 130 << 20, "{args}");
        let mut found = vec![0; mib.len()];
        if args.contains("zstd") {
            // Header and notes; then the pages, and their frame numbers.
            let mut dump = zstd::Decoder::new(File::open(&out).unwrap()).unwrap();
            dump.read_exact(&mut found[..FRAME_SIZE]).unwrap();
            for i in 0..128 {
                for expected in [&mib, &zeros] {
                    dump.read_exact(&mut found).unwrap();
                    assert!(found == *expected, "{args}: at {:#x}", at(i));
                }
            }
            let numbers = (0..128).flat_map(|i| (at(i) >> 12..).take(512)).flat_map(u64::to_le_bytes);
            let mut table = Vec::new();
            dump.read_to_end(&mut table).unwrap();
            assert!(table == numbers.collect::<Vec<u8>>(), "{args}");
        } else {
            let dump = File::open(&out).unwrap();
            assert_eq!(dump.metadata().unwrap().len(), end);
            for i in [0, 1, 63, 64, 127] {
                dump.read_exact_at(&mut found, at(i)).unwrap();
                assert!(found == mib, "{args}: at {:#x}", at(i));
            }
        }
        fs::remove_file(out).unwrap();
    }
}

#[test]
fn dump_leaves_an_existing_output_as_it_was() {
    let folder = folder("exists");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join("out"), "precious").unwrap();
    symlink("nowhere", folder.join("link")).unwrap();
    for name in ["out", "link", "."] {
        let output = run_in(&folder, &format!("--mock ram dump {name}"));
        assert_eq!(refusal(&output), format!("output exists: {name}"));
        assert_eq!(text(&output.stdout), "");
    }
    assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
    assert_eq!(names(&folder), ["link", "out", "ram"]);
}

#[test]
fn stream_cannot_be_written_by_several_processes() {
    let folder = folder("several");
    ram(&folder, &[(0, CANARY)]);
    for args in ["--copy-by threads -", "--copy-by workers --compress zstd out"] {
        let output = run_in(&folder, &format!("--mock ram dump {args}"));
        assert_eq!(refusal(&output), "a stream is written by one process: give --copy-by single, or leave it out");
    }
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn pausing_and_not_pausing_exclude_each_other() {
    let folder = folder("pause-live");
    ram(&folder, &[(0, CANARY)]);
    let output = run_in(&folder, "--mock ram dump --pause --live out");
    assert!(usage_error(&output).contains("'--pause' cannot be used with '--live'"), "{}", text(&output.stderr));
    for how in ["--pause", "--live"] {
        assert!(run_in(&folder, &format!("--mock ram dump {how} out{how}")).status.success());
    }
}

#[test]
fn reader_that_goes_away_is_an_error() {
    let folder = folder("reader");
    ram(&folder, &[(0, &pattern(1 << 20))]);
    let mut child = start(&folder, "--mock ram dump -", Stdio::piped());
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(refusal(&output).starts_with("cannot write standard output: "), "{}", text(&output.stderr));
}

fn start(folder: &Path, args: &str, stdout: Stdio) -> Child {
    // A shell makes its background jobs ignore the signal, which the tool would inherit.
    // SAFETY: the default action.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let mut command = tool();
    command.current_dir(folder).args(args.split_whitespace()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until the tool blocks signals, and sends one.
fn interrupt(child: &Child, signal: &str) {
    let status = format!("/proc/{}/status", child.id());
    let blocks = |status: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (libc::SIGINT - 1) != 0
    };
    while !blocks(&fs::read_to_string(&status).unwrap()) {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn interrupted_dump_leaves_nothing() {
    let folder = folder("interrupted");
    // A TiB of zeros takes long to compress.
    ram(&folder, &[(0, CANARY), (1 << 40, CANARY)]);
    for (signal, number) in [("-INT", libc::SIGINT), ("-TERM", libc::SIGTERM)] {
        let child = start(&folder, "--mock ram dump --compress zstd out", Stdio::piped());
        interrupt(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), "xenmap: interrupted\n");
        assert_eq!(output.status.code(), Some(128 + number));
        assert_eq!(names(&folder), ["ram"]);
    }
}

#[test]
fn killed_dump_leaves_nothing() {
    let folder = folder("killed");
    ram(&folder, &[(0, CANARY), (1 << 40, CANARY)]);
    let child = start(&folder, "--mock ram dump --compress zstd out", Stdio::piped());
    interrupt(&child, "-KILL");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGKILL));
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn stream_that_nobody_reads_can_be_interrupted() {
    let folder = folder("blocked");
    ram(&folder, &[(0, &pattern(1 << 20))]);
    let mut child = start(&folder, "--mock ram dump -", Stdio::piped());
    let mut stdout = child.stdout.take().unwrap();
    // Once it has begun, it waits for room in the pipe.
    stdout.read_exact(&mut [0]).unwrap();
    interrupt(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + libc::SIGINT));
}
