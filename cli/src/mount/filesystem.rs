//! The directory and its files, as the kernel asks for them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, Request,
};
use nix::unistd::{getegid, geteuid};

use super::content::{Content, survey};
use super::live::LiveRam;
use crate::args::Format;
use crate::dump::report;
use crate::map::{Found, Map};
use crate::printable::write_json;
use crate::ram::Ram;
use crate::{Result, info, say};

/// How long the kernel may keep attributes.
const TTL: Duration = Duration::from_secs(1);

/// The inode of the first file; the others follow.
const FIRST: u64 = INodeNo::ROOT.0 + 1;

/// What the kernel gets: an answer or an errno.
type Answer<T> = std::result::Result<T, Errno>;

pub(crate) struct Files {
    ram: Arc<LiveRam>,
    /// The files in the order of [`Files::NAMES`], except for `info.json`.
    contents: Vec<Content>,
    /// What each open `info.json` says.
    infos: Mutex<BTreeMap<u64, Arc<Content>>>,
    next_handle: AtomicU64,
    created: SystemTime,
}

impl Files {
    const DUMPS: [Format; 3] = [Format::Raw, Format::Elf, Format::Lime];
    /// The names of the dumps, and of the other files.
    const NAMES: [&'static str; 5] = ["ram", "ram.elf", "ram.lime", "map.json", "info.json"];

    /// Reads all RAM once, to find what cannot be read and the kernel's note.
    pub(crate) fn new(ram: Arc<LiveRam>, found: &Found) -> Result<Files> {
        let tally = survey(&ram.ram, found)?;
        report::lost(&tally).for_each(|line| say(&line));
        let mut contents = Vec::new();
        for format in Files::DUMPS {
            let (content, doubt) = Content::of_dump(format, &ram.ram, found, &tally)?;
            if let Some(doubt) = doubt {
                say(&doubt);
            }
            contents.push(content);
        }
        let mut map = Vec::new();
        write_json(&mut map, &Map::new(&ram.ram, found))?;
        contents.push(Content::of_bytes(map));
        let (infos, next_handle) = (Mutex::default(), AtomicU64::new(0));
        Ok(Files { ram, contents, infos, next_handle, created: SystemTime::now() })
    }

    /// Returns the inodes of the files that have RAM.
    pub(crate) fn with_ram() -> impl Iterator<Item = INodeNo> {
        (FIRST..FIRST + Files::DUMPS.len() as u64).map(INodeNo)
    }

    fn info(&self) -> Answer<Content> {
        let mut text = Vec::new();
        let written = match &self.ram.ram {
            Ram::Guest(guest) => info::info(guest, true, &mut text),
            Ram::Dump(image) => info::dump_info(image, true, &mut text),
        };
        written.map(|()| Content::of_bytes(text)).map_err(|_| Errno::EIO)
    }

    fn infos(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Content>>> {
        self.infos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, inode: INodeNo) -> Answer<FileAttr> {
        if inode == INodeNo::ROOT {
            return Ok(self.attributes_of(inode, FileType::Directory, 0, 0));
        }
        let of = |content: &Content| self.attributes_of(inode, FileType::RegularFile, content.len, content.data_len());
        Ok(match self.contents.get(index_of(inode)?) {
            Some(content) => of(content),
            None => of(&self.info()?),
        })
    }

    fn attributes_of(&self, ino: INodeNo, kind: FileType, size: u64, data: u64) -> FileAttr {
        const BLOCK: u64 = 512;
        let is_directory = kind == FileType::Directory;
        FileAttr {
            ino,
            size,
            blocks: data.div_ceil(BLOCK),
            atime: self.created,
            mtime: self.created,
            ctime: self.created,
            crtime: self.created,
            kind,
            perm: if is_directory { 0o500 } else { 0o400 },
            nlink: if is_directory { 2 } else { 1 },
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            rdev: 0,
            // The size of the largest request.
            blksize: 1 << 20,
            flags: 0,
        }
    }

    fn with_content<T>(&self, inode: INodeNo, handle: FileHandle, f: impl FnOnce(&Content) -> Answer<T>) -> Answer<T> {
        if let Some(content) = self.contents.get(index_of(inode)?) {
            return f(content);
        }
        let info = self.infos().get(&handle.0).cloned();
        f(&*info.ok_or(Errno::EBADF)?)
    }

    /// Reads bytes into a buffer, and returns which of its bytes they are.
    fn read_into(&self, buffer: &mut Vec<u8>, content: &Content, offset: u64, size: u32) -> Answer<Range<usize>> {
        let len = u64::from(size).min(content.len.saturating_sub(offset));
        let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let read = content.read(offset, &mut buffer[..len], |address, to| self.ram.read(address, to));
        read.map(|()| 0..len).map_err(|_| Errno::EIO)
    }
}

/// Returns the index of a file in [`Files::NAMES`].
fn index_of(inode: INodeNo) -> Answer<usize> {
    let index = inode.0.checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
    index.filter(|index| *index < Files::NAMES.len()).ok_or(Errno::ENOENT)
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without this, which older kernels lack, programs can map files privately only.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let file = (FIRST..).zip(Files::NAMES).find(|(_, own)| parent == INodeNo::ROOT && name == *own);
        match file.ok_or(Errno::ENOENT).and_then(|(inode, _)| self.attributes(INodeNo(inode))) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(e) => reply.error(e),
        }
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let own = [(inode, FileType::Directory, "."), (inode, FileType::Directory, "..")].into_iter();
        let files = (FIRST..).zip(Files::NAMES).map(|(inode, name)| (INodeNo(inode), FileType::RegularFile, name));
        // The offset of an entry is the number of the next one.
        for (next, (inode, kind, name)) in (1..).zip(own.chain(files)).filter(|(next, _)| *next > offset) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        match index_of(inode) {
            Err(e) => return reply.error(e),
            Ok(index) if index < self.contents.len() => {}
            Ok(_) => match self.info() {
                Ok(info) => _ = self.infos().insert(handle, Arc::new(info)),
                Err(e) => return reply.error(e),
            },
        }
        // Nothing is read ahead or kept: each read returns what the RAM holds then.
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            match self.with_content(inode, handle, |content| self.read_into(buffer, content, offset, size)) {
                Ok(read) => reply.data(&buffer[read]),
                Err(e) => reply.error(e),
            }
        });
    }

    fn lseek(&self, _: &Request, inode: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.with_content(inode, handle, |content| {
            let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            let found = match whence {
                libc::SEEK_DATA => content.next_data(offset),
                libc::SEEK_HOLE => content.next_hole(offset),
                _ => return Err(Errno::EINVAL),
            };
            found.and_then(|found| i64::try_from(found).ok()).ok_or(Errno::ENXIO)
        });
        match found {
            Ok(found) => reply.offset(found),
            Err(e) => reply.error(e),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.infos().remove(&handle.0);
        reply.ok();
    }
}
