//! `mount`: a file system whose files are dumps of the RAM at the moment when they are read (FUSE).
//!
//! The layout of the files, and all that is in them besides the RAM, is made when the file system is mounted. The RAM
//! is never kept: a read copies it from a mapping to the reader.

pub(crate) mod content;
mod filesystem;
pub(crate) mod live;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};

use crate::args::SearchArgs;
use crate::chain::chain;
use crate::dump::interrupt::{Event, Interrupts};
use crate::printable::printable;
use crate::ram::Ram;
use crate::{Result, map, say};
use filesystem::Files;
use live::LiveRam;

/// Reads that are answered at the same time, at least: one of them may wait for a paged-out frame.
const THREADS: usize = 4;

/// How long a mapping, or a page that the kernel keeps for programs that map a file, may be out of date.
const STALE_MS: u16 = 1000;

/// Mounts at a directory. Returns when the file system is unmounted, a signal arrives or the guest is gone, and says
/// whether the search for RAM was complete.
pub(crate) fn mount(ram: Ram, directory: &Path, search: SearchArgs, out: &mut impl Write) -> Result<bool> {
    let cannot_mount = |why: &str| format!("cannot mount at {}: {why}", directory.display());
    // Before the search for RAM, which takes long.
    let device = check_empty(directory).and_then(|()| open_device()).map_err(|e| cannot_mount(&chain(&*e)))?;
    let found = map::scan(&ram, search)?;
    let ram = Arc::new(LiveRam::new(ram));
    let files = Files::new(Arc::clone(&ram), &found)?;
    let interrupts = Interrupts::block()?;
    attach(&device, directory).map_err(|e| cannot_mount(&chain(&*e)))?;
    let served = serve(files, device, &interrupts, &ram, || {
        writeln!(out, "mounted at {}; Ctrl-C or umount ends it", printable(&directory.to_string_lossy()))?;
        out.flush()
    });
    ram.close();
    if !matches!(served, Ok(End::Unmounted)) {
        // Also if files are open: reading them fails once this process has ended.
        let detached = umount2(directory, MntFlags::MNT_DETACH);
        detached.map_err(|e| format!("cannot unmount {}: {e}", directory.display()))?;
    }
    served?;
    Ok(found.is_complete())
}

/// Why a file system is no longer served.
enum End {
    Unmounted,
    Signal,
    GuestGone,
}

fn serve(
    files: Files,
    device: File,
    interrupts: &Interrupts,
    ram: &LiveRam,
    begin: impl FnOnce() -> io::Result<()>,
) -> Result<End> {
    let mut config = Config::default();
    config.n_threads = Some(thread::available_parallelism().map_or(THREADS, NonZero::get).max(THREADS));
    // fuser does not mount: after a umount by others, it would unmount once more, whatever is there then.
    let session = Session::from_fd(files, device.into(), SessionACL::Owner, config)?;
    let notifier = session.notifier();
    // The thread's end closes when the file system is unmounted.
    let (work, over) = io::pipe()?;
    let thread = thread::spawn(move || {
        let _over = over;
        session.run()
    });
    begin()?;
    loop {
        match interrupts.wait(work.as_fd(), STALE_MS.into())? {
            Event::Over => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                return Ok(End::Unmounted);
            }
            Event::Signal(_) => return Ok(End::Signal),
            Event::TimeUp if !ram.is_there() => {
                say("the guest is gone: unmounting");
                return Ok(End::GuestGone);
            }
            Event::TimeUp => {
                ram.unmap();
                // Fails for a file that nobody has looked at.
                Files::with_ram().for_each(|inode| _ = notifier.inval_inode(inode, 0, 0));
            }
        }
    }
}

/// Checks that the directory is empty, because a mount hides what is in it.
fn check_empty(directory: &Path) -> Result<()> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err("it is not empty; give an empty directory".into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err("it does not exist; create it (mkdir)".into()),
        // A process that is killed leaves its mount.
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            Err("it is the mount of a process that has ended; unmount it first (umount)".into())
        }
        Err(e) => Err(e.into()),
    }
}

fn open_device() -> Result<File> {
    File::options().read(true).write(true).open("/dev/fuse").map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "this system has no /dev/fuse; load the kernel's module (modprobe fuse)".into()
        }
        Some(libc::EACCES | libc::EPERM) => "no access to /dev/fuse; run this as root".into(),
        _ => format!("cannot open /dev/fuse: {e}").into(),
    })
}

/// Mounts the file system that is served through the device.
fn attach(device: &File, directory: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The root is a directory; `rootmode` is octal.
    let (fd, uid, gid) = (device.as_raw_fd(), geteuid(), getegid());
    let options = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions");
    nix::mount::mount(Some("xenmap"), directory, Some("fuse"), flags, Some(options.as_str())).map_err(|e| match e {
        Errno::EPERM => "no privilege to mount; run this as root".into(),
        Errno::ENODEV => "this kernel has no FUSE; load its module (modprobe fuse)".into(),
        _ => e.desc().into(),
    })
}
