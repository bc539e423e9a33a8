//! `xenmap mount`. Those that mount are ignored unless asked for; CI runs them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use xenmap::mock::{MockDomain, MockHost};
use xenmap::{FRAME_SIZE, Guest, GuestKind};

use crate::args::{Format, SearchArgs};
use crate::dumps::{elf_with_notes, lime_of_parts, note, page};
use crate::harness::*;
use crate::mount::content::{Content, survey};
use crate::mount::live::LiveRam;
use crate::ram::Ram;
use crate::{map, mount};

/// The dumps in a mount, and how `dump` makes them.
const DUMPS: [(&str, &str); 3] = [("ram", "raw"), ("ram.elf", "elf"), ("ram.lime", "lime")];

/// A mount at `mount` in a folder, by a process that ends when this is dropped.
struct Mounted {
    tool: Child,
    folder: PathBuf,
}

impl Mounted {
    /// Mounts with these arguments, which are split at spaces, and waits until it is done.
    fn new(folder: &Path, args: &str) -> Mounted {
        fs::create_dir(folder.join("mount")).unwrap();
        let mut tool = tool();
        tool.current_dir(folder).args(["mount", "mount"]).args(args.split_whitespace()).stdout(Stdio::piped());
        let mut mounted = Mounted { tool: tool.spawn().unwrap(), folder: folder.to_owned() };
        let mut line = String::new();
        BufReader::new(mounted.tool.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted at mount; Ctrl-C or umount ends it\n");
        mounted
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.join("mount").join(file)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.tool.id().cast_signed()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        self.tool.wait().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Both fail if the mount has been ended.
        let _ = umount2(&self.folder.join("mount"), MntFlags::MNT_DETACH);
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

/// Makes a folder with a sparse file `ram` of three extents, a page of which is zero.
fn folder_with_ram(test: &str) -> PathBuf {
    let folder = folder(test);
    let mut extent = pattern(300 * FRAME_SIZE);
    extent[5 * FRAME_SIZE..6 * FRAME_SIZE].fill(0);
    ram(&folder, &[(0, &extent), (frame(600), &pattern(FRAME_SIZE)), (frame(700), &extent)]);
    folder
}

/// Checks that each dump in a mount is byte for byte what `dump` writes.
fn assert_dumps(folder: &Path, mounted: &Mounted, source: &str) {
    for (file, format) in DUMPS {
        let output = run_in(folder, &format!("dump {source} --format {format} out.{format}"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let (dump, read) = (fs::read(folder.join(format!("out.{format}"))).unwrap(), fs::read(mounted.path(file)));
        assert!(read.unwrap() == dump, "{file} of {source}");
        assert_eq!(fs::metadata(mounted.path(file)).unwrap().len(), dump.len() as u64, "{file}");
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn files_of_a_mounted_guest_are_its_dumps() {
    for kind in ["pvh", "pv"] {
        let folder = folder_with_ram(&format!("mount-{kind}"));
        let source = format!("--mock ram --mock-kind {kind}");
        let mounted = Mounted::new(&folder, &source);
        assert_eq!(names(&folder.join("mount")), ["info.json", "map.json", "ram", "ram.elf", "ram.lime"]);
        assert_dumps(&folder, &mounted, &source);
        let printed = run_in(&folder, &format!("map --json {source}")).stdout;
        assert_eq!(text(&fs::read(mounted.path("map.json")).unwrap()), text(&printed));
        let info: serde_json::Value = serde_json::from_slice(&fs::read(mounted.path("info.json")).unwrap()).unwrap();
        assert_eq!(info["kind"], kind);
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn files_of_a_mounted_dump_are_its_conversions() {
    let pages = [1, 2, 300].into_iter().zip((7..).map(page)).collect();
    let vmcoreinfo = note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1.0-test\n");
    // Parts of pages, two of them in one page.
    let parts = [(100, pattern(50)), (200, pattern(5000)), (frame(9) + 1, pattern(FRAME_SIZE))];
    for (name, dump) in [("elf", elf_with_notes(&pages, &vmcoreinfo)), ("lime", lime_of_parts(&parts))] {
        let folder = folder(&format!("mount-dump-{name}"));
        fs::write(folder.join("dump"), dump).unwrap();
        let mounted = Mounted::new(&folder, "--dump dump");
        assert_dumps(&folder, &mounted, "--dump dump");
        let info = run_in(&folder, "info --json --dump dump").stdout;
        assert_eq!(text(&fs::read(mounted.path("info.json")).unwrap()), text(&info));
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn holes_of_a_mounted_file_are_where_there_is_no_ram() {
    let folder = folder_with_ram("mount-holes");
    let mounted = Mounted::new(&folder, "--mock ram");
    let ram = [(0, 300), (600, 601), (700, 1000)];
    assert_eq!(extents(&mounted.path("ram")), extents_of_frames(&ram));
    // Headers and notes come before the frames, which take as much space as in the guest.
    let elf = extents(&mounted.path("ram.elf"));
    let of_frames = elf.last().unwrap();
    assert_eq!(of_frames.1 - of_frames.0, extents_of_frames(&[(0, 601)])[0].1);
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn programs_read_a_mount_at_the_same_time() {
    let folder = folder_with_ram("mount-parallel");
    let expected = Arc::new(fs::read(folder.join("ram")).unwrap());
    let mounted = Mounted::new(&folder, "--mock ram");
    let readers: Vec<_> = (0..8)
        .map(|reader| {
            let (file, expected) = (File::open(mounted.path("ram")).unwrap(), Arc::clone(&expected));
            thread::spawn(move || {
                for start in (reader * 1000..expected.len()).step_by(70_001) {
                    let mut bytes = vec![0; 100_000.min(expected.len() - start)];
                    file.read_exact_at(&mut bytes, start as u64).unwrap();
                    assert!(bytes == expected[start..start + bytes.len()], "at {start:#x}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn mount_can_only_be_read() {
    let folder = folder_with_ram("mount-read-only");
    let mounted = Mounted::new(&folder, "--mock ram");
    for result in [
        fs::write(mounted.path("ram"), "x"),
        fs::write(mounted.path("new"), "x"),
        fs::remove_file(mounted.path("ram.elf")),
    ] {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert_eq!(fs::read(mounted.path("new")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn signal_unmounts_even_if_files_are_open() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = folder_with_ram("mount-signal");
        let mut mounted = Mounted::new(&folder, "--mock ram");
        let open = File::open(mounted.path("ram")).unwrap();
        mounted.signal(signal);
        assert_eq!(mounted.wait().code(), Some(0));
        assert!(names(&folder.join("mount")).is_empty());
        assert_eq!(open.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn umount_ends_the_command_and_nothing_else() {
    let folder = folder_with_ram("mount-umount");
    let below = folder.join("mount");
    let mut mounted = Mounted::new(&folder, "--mock ram");
    umount2(&below, MntFlags::empty()).unwrap();
    assert_eq!(mounted.wait().code(), Some(0));
    fs::remove_dir(&below).unwrap();

    // A mount over another file system leaves that one.
    fs::create_dir_all(folder.join("other/mount")).unwrap();
    nix::mount::mount(Some("none"), &folder.join("other"), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    let over = tool().current_dir(&folder).args(["mount", "--mock", "ram", "other"]).stdout(Stdio::piped()).spawn();
    let mut over = over.unwrap();
    BufReader::new(over.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    umount2(&folder.join("other"), MntFlags::empty()).unwrap();
    assert_eq!(over.wait().unwrap().code(), Some(0));
    assert!(names(&folder.join("other")).is_empty(), "the file system below is still mounted");
    umount2(&folder.join("other"), MntFlags::empty()).unwrap();
    assert_eq!(names(&folder.join("other")), ["mount"]);
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn mount_of_a_killed_process_is_refused_with_advice() {
    let folder = folder_with_ram("mount-killed");
    let mut mounted = Mounted::new(&folder, "--mock ram");
    mounted.signal(Signal::SIGKILL);
    mounted.wait();
    let output = run_in(&folder, "mount --mock ram mount");
    let advice = "cannot mount at mount: it is the mount of a process that has ended; unmount it first (umount)";
    assert_eq!(refusal(&output), advice);
}

#[test]
fn mount_needs_an_empty_directory() {
    let folder = folder_with_ram("mount-refused");
    for (directory, why) in [
        ("missing", "it does not exist; create it (mkdir)"),
        (".", "it is not empty; give an empty directory"),
        ("ram", "Not a directory (os error 20)"),
    ] {
        let output = run_in(&folder, &format!("mount --mock ram {directory}"));
        assert_eq!(refusal(&output), format!("cannot mount at {directory}: {why}"));
    }
}

/// A guest of this process that is mounted by a thread of it.
struct MountedGuest {
    host: MockHost,
    domain: MockDomain,
    directory: PathBuf,
    thread: Option<thread::JoinHandle<Result<bool, String>>>,
}

impl MountedGuest {
    fn new(test: &str) -> MountedGuest {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Hvm, 64);
        domain.write(domain.frames()[3], 0, b"before");
        let ram = Ram::Guest(Guest::open(&host.open().unwrap(), domain.domid()).unwrap());
        let directory = folder(test);
        let at = directory.clone();
        let (said, mut say) = std::io::pipe().unwrap();
        let thread =
            thread::spawn(move || mount::mount(ram, &at, SearchArgs::default(), &mut say).map_err(|e| e.to_string()));
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        MountedGuest { host, domain, directory, thread: Some(thread) }
    }

    fn bytes(&self, pfn: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(self.directory.join("ram")).unwrap().read_exact_at(&mut bytes, frame(pfn)).unwrap();
        bytes
    }

    fn end(mut self) {
        // Fails if the guest's end has ended it.
        let _ = umount2(&self.directory, MntFlags::empty());
        assert_eq!(self.thread.take().unwrap().join().unwrap(), Ok(true));
    }
}

impl Drop for MountedGuest {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

/// Waits until something happens, which must be soon.
#[track_caller]
fn eventually(what: &str, happens: impl Fn() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::yield_now();
    }
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn reads_of_a_mount_see_what_the_guest_has_written() {
    let mounted = MountedGuest::new("mount-live");
    let gfn = mounted.domain.frames()[3];
    assert_eq!(mounted.bytes(3, 6), b"before");
    // The kernel keeps pages for a program that maps a file, but not for long.
    #[expect(unsafe_code, reason = "maps a file that changes")]
    // SAFETY: the only accesses are the copies below, of bytes that may be any.
    let mapped = unsafe { Mmap::map(&File::open(mounted.directory.join("ram")).unwrap()) }.unwrap();
    let at = usize::try_from(frame(3)).unwrap();
    assert_eq!(mapped[at..at + 6], *b"before");

    mounted.domain.write(gfn, 0, b"after!");
    assert_eq!(mounted.bytes(3, 6), b"after!");
    eventually("the mapped file changes", || std::hint::black_box(&mapped)[at..at + 6] == *b"after!");

    // The guest loses the frame, and gets another one for it.
    mounted.domain.balloon_out(gfn);
    eventually("a lost frame is zeros", || mounted.bytes(3, 6) == [0; 6]);
    assert_eq!(mounted.bytes(2, FRAME_SIZE + 6).len(), FRAME_SIZE + 6);
    mounted.domain.populate(&[gfn]);
    mounted.domain.write(gfn, 0, b"again!");
    eventually("a new frame is seen", || mounted.bytes(3, 6) == b"again!");
    drop(mapped);
    eventually("nothing stays mapped", || mounted.host.references(mounted.domain.domid()) == 0);
    mounted.end();
}

#[test]
#[ignore = "mounts, which needs root and /dev/fuse: cargo test -p xenmap-cli --test tool -- --include-ignored mount"]
fn end_of_the_guest_ends_its_mount() {
    let mounted = MountedGuest::new("mount-end");
    let mut open = File::open(mounted.directory.join("ram")).unwrap();
    assert_eq!(mounted.bytes(3, 6), b"before");
    mounted.domain.destroy();
    eventually("it is unmounted", || names(&mounted.directory).is_empty());
    eventually("no zombie is left", || mounted.host.zombies().is_empty());
    assert_eq!(open.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(open);
    mounted.end();
}

#[test]
fn content_is_that_of_the_dump_at_any_offset() {
    let folder = folder_with_ram("mount-content");
    let host = MockHost::new();
    let domain = host.create_domain_from_file(&File::open(folder.join("ram")).unwrap()).unwrap();
    let ram = Ram::Guest(Guest::open(&host.open().unwrap(), domain.domid()).unwrap());
    let found = map::find(&ram, SearchArgs::default()).unwrap();
    let live = LiveRam::new(ram);
    let tally = survey(&live.ram, &found).unwrap();
    for (format, name) in [(Format::Raw, "raw"), (Format::Elf, "elf"), (Format::Lime, "lime")] {
        let output = run_in(&folder, &format!("--mock ram dump --format {name} {name}"));
        assert!(output.status.success());
        let expected = fs::read(folder.join(name)).unwrap();
        let (content, _) = Content::of_dump(format, &live.ram, &found, &tally).unwrap();
        assert_eq!(content.len, expected.len() as u64);
        proptest!(|(start in 0..expected.len(), len in 0..3 * FRAME_SIZE)| {
            let end = (start + len).min(expected.len());
            // The buffer has been used before.
            let mut bytes = vec![0xEE; end - start];
            content.read(start as u64, &mut bytes, |address, to| live.read(address, to)).unwrap();
            prop_assert!(bytes == expected[start..end], "{name}, {start:#x}..{end:#x}");

            let (data, hole) = (content.next_data(start as u64), content.next_hole(start as u64).unwrap());
            prop_assert!(data == Some(start as u64) || hole == start as u64, "{data:?} {hole:?} from {start:#x}");
            let end_of_zeros = data.map_or(expected.len(), |data| usize::try_from(data).unwrap());
            prop_assert!(expected[start..end_of_zeros].iter().all(|byte| *byte == 0));
        });
        assert_eq!((content.next_data(content.len), content.next_hole(content.len)), (None, None));
    }
}
