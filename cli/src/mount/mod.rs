//! `mount`: a file system whose files are dumps of the RAM at the moment when they are read (FUSE).
//!
//! The layout of the files, and all that is in them besides the RAM, is made when the file system is mounted. The RAM
//! is never kept: a read copies it from a mapping to the reader.

mod content;
mod filesystem;
mod live;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{Config, MountOption, Session, SessionUnmounter};
use nix::mount::{MntFlags, umount2};

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

/// How long a mapping, or a page that the kernel keeps for a program that maps a file, may be out of date.
const STALE: u16 = 1000; // ms

/// Mounts at a directory, and returns when the file system is unmounted, a signal arrives or the guest is gone; says
/// whether the search for RAM was complete.
pub(crate) fn mount(ram: Ram, directory: &Path, search: SearchArgs, out: &mut impl Write) -> Result<bool> {
    let cannot_mount = |why: &str| format!("cannot mount at {}: {why}", directory.display());
    // Before the search for RAM, which takes long.
    check_directory(directory).and_then(|()| check_device()).map_err(|e| cannot_mount(&chain(&*e)))?;
    let found = map::scan(&ram, search)?;
    let ram = Arc::new(LiveRam::new(ram));
    let files = Files::new(Arc::clone(&ram), &found)?;

    let interrupts = Interrupts::block()?;
    let mut session = Session::new(files, directory, &config()).map_err(|e| cannot_mount(&why_not_mounted(&e)))?;
    let (mut unmounter, notifier) = (session.unmount_callable(), session.notifier());
    // The thread's end closes when the file system is unmounted.
    let (work, over) = io::pipe()?;
    let thread = thread::spawn(move || {
        let _over = over;
        session.run()
    });
    writeln!(out, "mounted at {}; Ctrl-C or umount ends it", printable(&directory.to_string_lossy()))?;
    out.flush()?;
    loop {
        match interrupts.wait(work.as_fd(), STALE.into())? {
            Event::Over => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                break;
            }
            Event::Signal(_) => {
                unmount(&mut unmounter, directory)?;
                break;
            }
            Event::TimeUp if !ram.is_there() => {
                say("the guest is gone: unmounting");
                unmount(&mut unmounter, directory)?;
                break;
            }
            Event::TimeUp => {
                ram.unmap();
                // Fails for a file that nobody has opened.
                Files::changing().for_each(|inode| _ = notifier.inval_inode(inode, 0, 0));
            }
        }
    }
    ram.close();
    Ok(found.is_complete())
}

fn config() -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("xenmap".to_owned()), MountOption::RO, MountOption::NoExec];
    config.mount_options.push(MountOption::DefaultPermissions);
    config.n_threads = Some(thread::available_parallelism().map_or(THREADS, NonZero::get).max(THREADS));
    config
}

/// Unmounts even if files are open: their readers get an error once this process has ended.
fn unmount(unmounter: &mut SessionUnmounter, directory: &Path) -> Result<()> {
    if unmounter.unmount().is_err() {
        let detached = umount2(directory, MntFlags::MNT_DETACH);
        detached.map_err(|e| format!("cannot unmount {}: {e}", directory.display()))?;
    }
    Ok(())
}

/// Checks that the directory exists and is empty, because a mount hides what is in it.
fn check_directory(directory: &Path) -> Result<()> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err("it is not empty; give an empty directory".into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err("it does not exist; create it (mkdir)".into()),
        // A process that ends unexpectedly leaves its mount.
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            Err("a process that has ended was mounted there; unmount it first (umount)".into())
        }
        Err(e) => Err(e.into()),
    }
}

fn check_device() -> Result<()> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Err("this system has no /dev/fuse; load the kernel's module for it (modprobe fuse)".into())
        }
        Err(e) => Err(format!("cannot open /dev/fuse: {e}; run this as root").into()),
    }
}

fn why_not_mounted(error: &io::Error) -> String {
    match error.kind() {
        // What it was looking for is the program that mounts for other users.
        ErrorKind::NotFound => "this needs the privilege to mount: run it as root, or install fusermount3".to_owned(),
        _ => error.to_string(),
    }
}
