//! Parts of `xenmap dump`, in cases that the command line cannot produce: lost frames, failing workers, and very many
//! extents.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use xenmap::mock::{Dom0, Fault, HostConfig, MockHost, Vcpu};
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind};

use crate::args::{self, Args, Format, SearchArgs};
use crate::dump::copy::{Lost, Tally};
use crate::dump::layout::{Layout, Part};
use crate::dump::output::Output;
use crate::dump::worker::{Job, employ_as};
use crate::dump::{Dump, report};
use crate::harness::folder;
use crate::ram::Ram;
use crate::vmcoreinfo::{self, Candidates};
use crate::{map, window};

/// Dumps a guest of 100 frames, each filled with its number plus 1. The guest loses some of them between the search for
/// its RAM and the copying.
fn dump_and_lose(test: &str, args: &str, lost: &[u64]) -> (Tally, Vec<u8>) {
    dump_and_break(test, args, lost, &[])
}

/// Does the same with a guest some of whose frames are broken before the search.
fn dump_and_break(test: &str, args: &str, lost: &[u64], broken: &[u64]) -> (Tally, Vec<u8>) {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 100);
    for (number, gfn) in (1..).zip(domain.frames()) {
        domain.write(gfn, 0, &[number; FRAME_SIZE]);
    }
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    for &pfn in broken {
        domain.break_frame(Gfn::new(pfn).unwrap());
    }
    let found = map::find(&ram, SearchArgs::default()).unwrap();
    for &pfn in lost {
        domain.balloon_out(Gfn::new(pfn).unwrap());
    }
    let out = folder(test).join("out");
    let (source, args, output) = dump_to(&out, args);
    let dump = Dump { ram: &ram, args: &args, source: &source, output: Some(&output) };
    let written = dump.write(&found).unwrap();
    output.finish().unwrap();
    (written.tally, fs::read(out).unwrap())
}

fn lost_without_ram(ranges: &[std::ops::Range<u64>]) -> Vec<Lost> {
    ranges.iter().map(|pfns| Lost { pfns: pfns.clone(), errno: libc::EINVAL }).collect()
}

#[test]
fn lost_frames_are_listed_and_zero_in_the_file() {
    for way in ["single", "threads"] {
        let (tally, file) = dump_and_lose("lost", &format!("--copy-by {way}"), &[20, 21, 50, 99]);
        assert_eq!(tally.lost, lost_without_ram(&[20..22, 50..51, 99..100]));
        assert_eq!((tally.copied, tally.zero, tally.frames()), (96, 0, 100));
        assert_eq!(
            report::lost(&tally).collect::<Vec<_>>(),
            [
                "lost: frames 0x14 to 0x15 (2): no RAM there",
                "lost: frames 0x32 to 0x32 (1): no RAM there",
                "lost: frames 0x63 to 0x63 (1): no RAM there",
            ]
        );
        assert_eq!(file.len(), 100 * FRAME_SIZE);
        for (number, page) in (1_u8..).zip(file.chunks(FRAME_SIZE)) {
            let expected = if [21, 22, 51, 100].contains(&number) { 0 } else { number };
            assert!(page.iter().all(|&byte| byte == expected), "frame {}", number - 1);
        }
    }
}

#[test]
fn broken_frames_are_lost() {
    let (tally, file) = dump_and_break("broken", "", &[20], &[30]);
    let lines: Vec<String> = report::lost(&tally).collect();
    assert_eq!((tally.copied, lines.len()), (98, 2));
    assert!(lines[1].starts_with("lost: frames 0x1e to 0x1e (1): Memory page has hardware error"), "{}", lines[1]);
    assert!(file[30 * FRAME_SIZE..31 * FRAME_SIZE].iter().all(|&byte| byte == 0));
}

#[test]
fn lost_frames_are_named_in_the_elf_file() {
    for args in ["--format elf", "--format elf --compress zstd"] {
        let (_, mut file) = dump_and_lose("lost-elf", args, &[20, 21]);
        if args.contains("zstd") {
            file = zstd::decode_all(&*file).unwrap();
        }
        let text =
            b"xenmap 0.1.0: domain 1\n100 frames, 2 of them lost\nlost: frames 0x14 to 0x15 (2): no RAM there\n\0";
        let header = FileHeader64::<LE>::parse(&*file).unwrap();
        let segments = header.program_headers(LE, &*file).unwrap();
        let mut notes = segments[0].notes(LE, &*file).unwrap().unwrap();
        let note = notes.next().unwrap().unwrap();
        assert_eq!(note.name(), b"XENMAP", "{args}");
        assert!(note.desc().starts_with(text), "{args}");
    }
}

#[test]
fn lost_frames_have_no_number_in_the_xen_file() {
    let (_, file) = dump_and_lose("lost-xen", "--format xen", &[20, 99]);
    let header = FileHeader64::<LE>::parse(&*file).unwrap();
    let sections = header.sections(LE, &*file).unwrap();
    let (_, table) = sections.section_by_name(LE, b".xen_pfn").unwrap();
    let numbers = table.data(LE, &*file).unwrap().chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let expected = (0..100).map(|pfn| if [20, 99].contains(&pfn) { u64::MAX } else { pfn });
    assert!(numbers.eq(expected));
}

#[test]
fn all_lost_ranges_are_listed_and_in_the_file_as_many_as_fit() {
    let lost: Vec<_> = (0..1_000_000).map(|i| 2 * i..2 * i + 1).collect();
    let tally = Tally { lost: lost_without_ram(&lost), ..Tally::default() };
    assert_eq!(report::lost(&tally).count(), 1_000_000);

    let host = MockHost::new();
    let memory = host.open().unwrap();
    let domid = host.create_domain(GuestKind::Hvm, 1).domid();
    let text = report::text(&Ram::Guest(Guest::open(&memory, domid).unwrap()), &tally, 4000);
    assert!(text.len() <= 4000 && text.ends_with(" more ranges of frames\n"), "{text}");
}

#[test]
fn elf_header_of_more_extents_than_it_can_count() {
    let host = MockHost::new();
    let memory = host.open().unwrap();
    let domid = host.create_domain(GuestKind::Hvm, 1).domid();
    let ram = Ram::Guest(Guest::open(&memory, domid).unwrap());
    for (extents, counted) in [(0xFFFD, 0xFFFE), (0xFFFE, 0xFFFF), (0x1_0000, 0xFFFF)] {
        let ranges: Vec<_> = (0..extents).map(|i| 2 * i..2 * i + 1).collect();
        let layout = Layout::new(Format::Elf, &ram, &ranges, false).unwrap();
        let header = FileHeader64::<LE>::parse(&*layout.head).unwrap();
        assert_eq!(header.e_phnum.get(LE), counted);
        let segments = header.program_headers(LE, &*layout.head).unwrap();
        assert_eq!(segments.len(), ranges.len() + 1);
        let last = segments.last().unwrap();
        assert_eq!(last.p_type.get(LE), elf::PT_LOAD);
        assert_eq!(last.p_paddr.get(LE), ranges.last().unwrap().start * 4096);
        assert_eq!(last.p_offset.get(LE) + 4096, layout.len);
    }
}

/// Returns the arguments and the output of a dump to a new file.
pub(crate) fn dump_to(out: &Path, args: &str) -> (args::Source, args::DumpArgs, Output) {
    let line = ["xenmap", "--mock", "ram", "dump"].into_iter().chain(args.split_whitespace());
    let Args { source, command, .. } = Args::try_parse_from(line.chain([out.to_str().unwrap()])).unwrap();
    let args::Command::Dump(args) = command else { panic!("no dump") };
    (source, args, Output::create(out).unwrap())
}

#[test]
fn last_possible_frame_is_dumped() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 0);
    domain.populate(&[Gfn::MAX]);
    domain.write(Gfn::MAX, 0, &[7; FRAME_SIZE]);
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let found = map::find(&ram, SearchArgs::default()).unwrap();
    for (format, place) in [("elf", 20 << 10), ("lime", 32), ("xen", 4096)] {
        let out = folder("last-frame").join(format);
        let (source, args, output) = dump_to(&out, &format!("--format {format}"));
        let dump = Dump { ram: &ram, args: &args, source: &source, output: Some(&output) };
        assert_eq!(dump.write(&found).unwrap().tally.copied, 1, "{format}");
        output.finish().unwrap();
        assert!(fs::read(out).unwrap()[place..].starts_with(&[7; FRAME_SIZE]), "{format}");
    }
}

#[test]
fn dump_that_fails_half_way_leaves_no_file() {
    for way in ["single", "threads"] {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Hvm, 10_000);
        domain.frames().iter().for_each(|&gfn| domain.write(gfn, 0, b"data"));
        let memory = host.open().unwrap();
        let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
        let found = map::find(&ram, SearchArgs::default()).unwrap();
        let folder = folder("half");
        let (source, args, output) = dump_to(&folder.join("out"), &format!("--copy-by {way}"));
        host.inject(Fault::MapBatch(libc::EFAULT));
        let dump = Dump { ram: &ram, args: &args, source: &source, output: Some(&output) };
        dump.write(&found).unwrap_err();
        drop(output);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{way}");
    }
}

/// Returns a VMCOREINFO note of a kernel whose names are at a symbol.
fn kernel_note(release: &str, symbol: u64) -> Vec<u8> {
    let text = format!("OSRELEASE={release}\nSYMBOL(init_uts_ns)={symbol:x}\nOFFSET(uts_namespace.name)=0\n");
    let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes).concat();
    [&words, b"VMCOREINFO\0\0".as_slice(), text.as_bytes()].concat()
}

#[test]
fn note_is_that_of_the_kernel_that_vcpu_0_runs_on() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 32);
    let gfn = |pfn| Gfn::new(pfn).unwrap();
    // Four levels of page tables, in frames 1 to 4, lead 0xffffffff80009000 to frame 11.
    for (table, entry, to) in [(1, 511, 2), (2, 510, 3), (3, 0, 4), (4, 9, 11)] {
        domain.write(gfn(table), entry * 8, &(to << 12 | 3_u64).to_le_bytes());
    }
    for (names, release) in [(8, "5.10.0"), (11, "6.1.0")] {
        domain.write(gfn(names), 0, b"Linux");
        domain.write(gfn(names), 130, release.as_bytes());
    }
    // The first one's names are where they would be if the image had not been moved.
    domain.write(gfn(20), 0, &kernel_note("5.10.0", 0xFFFF_FFFF_8000_8000));
    domain.write(gfn(21), 0, &kernel_note("6.1.0", 0xFFFF_FFFF_8000_9000));
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let candidates = Candidates { addresses: vec![20 << 12, 21 << 12], more: 0 };
    let chosen = || {
        let (note, doubt) = vmcoreinfo::choose(&ram, &candidates);
        (String::from_utf8(note.unwrap()).unwrap().lines().next().unwrap().to_owned(), doubt.unwrap_or_default())
    };

    let (note, doubt) = chosen();
    assert_eq!((note.as_str(), doubt.as_str()), ("OSRELEASE=5.10.0", ""), "no vcpu says more");
    let mut vcpu = Vcpu::default();
    (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) = (1 << 31, 0x1000, 1 << 5, 1 << 8 | 1 << 10);
    domain.set_vcpu(0, vcpu);
    let (note, doubt) = chosen();
    assert_eq!(note, "OSRELEASE=6.1.0");
    let expected = "2 VMCOREINFO notes could be the running kernel's, at 0x14000 (Linux 5.10.0), \
                    0x15000 (Linux 6.1.0): took the one at 0x15000, whose kernel vcpu 0 runs";
    assert_eq!(doubt, expected);
}

#[test]
fn shares_have_all_parts_in_pieces_of_at_most_that_size() {
    let part = |pfns: std::ops::Range<u64>, offset: u64| Part { pfns, offset };
    let parts = vec![part(0..3, 100), part(10..25, 20_000), part(30..31, 90_000), part(40..41, 99_000)];
    let layout = Layout { format: Format::Raw, head: Vec::new(), parts, late: 0, vcpus: Vec::new(), len: 0 };
    let shares: Vec<Vec<Part>> = layout.shares(8).collect();
    let expected = [
        vec![part(0..3, 100)],
        vec![part(10..18, 20_000)],
        vec![part(18..25, 20_000 + 8 * 4096), part(30..31, 90_000)],
        vec![part(40..41, 99_000)],
    ];
    assert_eq!(shares, expected);
}

#[test]
fn little_memory_for_mappings_is_enough() {
    // Of 5000 frames, this many can be mapped at a time.
    for free in [10, 1500, 4095, 4999] {
        let mut config = HostConfig::default();
        config.dom0 = Dom0::Arm;
        config.dom0_free_frames = Some(free);
        let host = MockHost::with_config(config);
        let domain = host.create_domain(GuestKind::Hvm, 5000);
        let content = |pfn: u64| (pfn + 1).to_ne_bytes();
        for gfn in domain.frames() {
            domain.write(gfn, 0, &content(gfn.get()));
        }
        let memory = host.open().unwrap();
        let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
        let out = folder("little-memory").join("out");
        let (source, args, output) = dump_to(&out, "");
        let dump = Dump { ram: &ram, args: &args, source: &source, output: Some(&output) };
        let tally = dump.write(&map::find(&ram, SearchArgs::default()).unwrap()).unwrap().tally;
        output.finish().unwrap();
        assert_eq!((tally.copied, tally.lost_frames()), (5000, 0), "{free} frames");
        let file = fs::read(out).unwrap();
        assert!(file.chunks(FRAME_SIZE).zip(0..).all(|(page, pfn)| page.starts_with(&content(pfn))), "{free} frames");
    }
}

#[test]
fn no_memory_for_a_single_frame_is_an_error_that_says_so() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 8);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    // 8, 4, 2 and 1.
    (0..4).for_each(|_| host.inject(Fault::MapBatch(libc::ENOMEM)));
    let mut windows = window::MappedWindows::new(&guest, 0..8, 8);
    let error = windows.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("map less at a time"), "{error}");
    assert!(windows.next().is_none());
}

/// Returns the result of a worker that runs a shell script.
fn worker(script: &str) -> Result<Tally, String> {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let job = Job {
        file: "/dev/null".into(),
        name: "out".into(),
        parts: vec![Part { pfns: 5..9, offset: 0 }],
        find_notes: true,
    };
    employ_as(command, &job, |_| {}).map_err(|e| e.to_string())
}

#[test]
fn worker_gets_its_job_and_its_reports_are_added_up() {
    let script = r#"
        read job
        [ "$job" = '{"file":"/dev/null","name":"out","parts":[{"pfns":{"start":5,"end":9},"offset":0}],"find_notes":true}' ] || exit 1
        echo '{"Copied":{"copied":2,"zero":1,"lost":[],"vmcoreinfo":{"addresses":[24576,7],"more":1}}}'
        echo '{"Copied":{"copied":1,"zero":0,"lost":[{"pfns":{"start":8,"end":9},"errno":2}],"vmcoreinfo":{"addresses":[9],"more":18446744073709551615}}}'
        echo '"Done"'"#;
    let lost = vec![Lost { pfns: 8..9, errno: libc::ENOENT }];
    let vmcoreinfo = Candidates { addresses: vec![7, 9, 24576], more: u64::MAX };
    assert_eq!(worker(script), Ok(Tally { copied: 3, zero: 1, lost, vmcoreinfo }));
}

#[test]
fn worker_that_reports_something_impossible_is_an_error() {
    let max = u64::MAX;
    for (copied, zero, start, end, expected) in [
        (5, 0, 0, 0, "more frames than it was given"),
        (max, 0, 0, 0, "more frames than it was given"),
        (3, 0, 5, 7, "more frames than it was given"),
        (max, 0, 5, 7, "more frames than it was given"),
        (1, max, 0, 0, "more frames than it was given"),
        (0, 0, 8, 5, "is not a range of frames"),
        (0, 0, max - 1, max, "is not a range of frames"),
    ] {
        let lost = format!(r#"[{{"pfns":{{"start":{start},"end":{end}}},"errno":-2147483648}}]"#);
        let report = format!(
            r#"{{"Copied":{{"copied":{copied},"zero":{zero},"lost":{lost},"vmcoreinfo":{{"addresses":[],"more":0}}}}}}"#
        );
        let error = worker(&format!("echo '{report}'; echo '\"Done\"'")).unwrap_err();
        assert!(error.contains(expected), "{report}: {error}");
    }
    // One such report is possible, two are not.
    let copied = r#"echo '{"Copied":{"copied":3,"zero":1,"lost":[],"vmcoreinfo":{"addresses":[],"more":0}}}'"#;
    assert!(worker(&format!("{copied}; {copied}; echo '\"Done\"'")).unwrap_err().contains("more frames"));
}

#[test]
fn worker_that_does_not_finish_is_an_error() {
    let copied = r#"echo '{"Copied":{"copied":4,"zero":1,"lost":[],"vmcoreinfo":{"addresses":[],"more":0}}}'"#;
    for (script, expected) in [
        ("kill -KILL $$", "a worker failed: signal: 9 (SIGKILL)"),
        (&format!("{copied}; kill -TERM $$"), "a worker failed: signal: 15 (SIGTERM)"),
        (copied, "a worker failed: exit status: 0"),
        (&format!("{copied}; echo '\"Done\"'; exit 1"), "a worker failed: exit status: 1"),
        ("echo 'xenmap: cannot do it' >&2; exit 2", "a worker failed: cannot do it"),
        ("echo nonsense", "a worker's report cannot be read: expected value at line 1 column 1"),
    ] {
        assert_eq!(worker(script), Err(expected.to_owned()), "{script}");
    }
    let job = Job { file: "/dev/null".into(), name: "out".into(), parts: Vec::new(), find_notes: false };
    let error = employ_as(Command::new("/nowhere"), &job, |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("cannot start a worker: No such file"), "{error}");
}
