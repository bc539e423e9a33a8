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

use super::content::Content;
use super::live::LiveRam;
use crate::args::Format;
use crate::dump;
use crate::dump::copy::{Tally, copy_part};
use crate::dump::layout::Layout;
use crate::map::{Found, Map};
use crate::printable::write_json;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::{Result, info, say};

/// How long the kernel may keep attributes.
const TTL: Duration = Duration::from_secs(1);

/// The inode of the first file; the others follow.
const FIRST: u64 = INodeNo::ROOT.0 + 1;

/// A file, by its index in [`Files::NAMES`].
type Index = usize;

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
    const NAMES: [&'static str; 5] = ["ram", "ram.elf", "ram.lime", "map.json", Files::INFO];
    const INFO: &'static str = "info.json";

    /// Reads all RAM once, to find what cannot be read and the kernel's note.
    pub(crate) fn new(ram: Arc<LiveRam>, found: &Found) -> Result<Files> {
        let ranges = found.ranges();
        let tally = survey(&ram.ram, &ranges, dump::broken(found))?;
        let mut contents = Vec::new();
        for format in [Format::Raw, Format::Elf, Format::Lime] {
            let (content, doubt) = Content::of_dump(format, &ram.ram, &ranges, &tally)?;
            doubt.iter().for_each(|doubt| say(doubt));
            contents.push(content);
        }
        let mut map = Vec::new();
        write_json(&mut map, &Map::new(&ram.ram, found))?;
        contents.push(Content::of_bytes(map));
        let (infos, next_handle) = (Mutex::default(), AtomicU64::new(0));
        Ok(Files { ram, contents, infos, next_handle, created: SystemTime::now() })
    }

    /// Returns the inodes of files whose content changes with the guest.
    pub(crate) fn changing() -> impl Iterator<Item = INodeNo> {
        (FIRST..FIRST + Files::NAMES.len() as u64).map(INodeNo)
    }

    fn info(&self) -> Result<Content> {
        let mut text = Vec::new();
        match &self.ram.ram {
            Ram::Guest(guest) => info::info(guest, true, &mut text)?,
            Ram::Dump(image) => info::dump_info(image, true, &mut text)?,
        }
        Ok(Content::of_bytes(text))
    }

    fn infos(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Content>>> {
        self.infos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, index: Index) -> Result<FileAttr> {
        let inode = INodeNo(FIRST + index as u64);
        let of = |content: &Content| self.attributes_of(inode, FileType::RegularFile, content.len, content.data_len());
        Ok(match self.contents.get(index) {
            Some(content) => of(content),
            None => of(&self.info()?),
        })
    }

    fn attributes_of(&self, ino: INodeNo, kind: FileType, size: u64, data: u64) -> FileAttr {
        const BLOCK: u64 = 512;
        let is_directory = kind == FileType::Directory;
        let times = self.created;
        FileAttr {
            ino,
            size,
            blocks: data.div_ceil(BLOCK),
            atime: times,
            mtime: times,
            ctime: times,
            crtime: times,
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

    fn with_content<T>(
        &self,
        inode: INodeNo,
        handle: FileHandle,
        f: impl FnOnce(&Content) -> std::result::Result<T, Errno>,
    ) -> std::result::Result<T, Errno> {
        let index = index_of(inode)?;
        if let Some(content) = self.contents.get(index) {
            return f(content);
        }
        let info = self.infos().get(&handle.0).cloned();
        f(&*info.ok_or(Errno::EBADF)?)
    }

    /// Reads bytes into a buffer, and returns which of its bytes they are.
    fn read_into(
        &self,
        buffer: &mut Vec<u8>,
        content: &Content,
        offset: u64,
        size: u32,
    ) -> std::result::Result<Range<usize>, Errno> {
        let len = u64::from(size).min(content.len.saturating_sub(offset));
        let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let read = content.read(offset, &mut buffer[..len], |address, to| self.ram.read(address, to));
        read.map(|()| 0..len).map_err(|_| Errno::EIO)
    }
}

/// Reads all RAM as a dump does.
fn survey(ram: &Ram, ranges: &[Range<u64>], broken: Tally) -> Result<Tally> {
    let layout = Layout::new(Format::Elf, ram, ranges, false)?;
    let progress = Progress::new("looking for the kernel", layout.frames())?;
    let mut tally = Tally::default();
    for part in &layout.parts {
        copy_part(ram, part, true, &mut super::content::WithoutRam::new(), |copied, _| {
            tally.add(copied);
            progress.set(tally.frames());
            Ok(())
        })?;
    }
    tally.add(broken);
    Ok(tally)
}

/// Returns the file of an inode.
fn index_of(inode: INodeNo) -> std::result::Result<Index, Errno> {
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
        let index = Files::NAMES.iter().position(|own| parent == INodeNo::ROOT && name == *own);
        match index.map(|index| self.attributes(index)) {
            Some(Ok(attributes)) => reply.entry(&TTL, &attributes, Generation(0)),
            Some(Err(_)) => reply.error(Errno::EIO),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if inode == INodeNo::ROOT {
            return reply.attr(&TTL, &self.attributes_of(inode, FileType::Directory, 0, 0));
        }
        match index_of(inode).map(|index| self.attributes(index)) {
            Ok(Ok(attributes)) => reply.attr(&TTL, &attributes),
            Ok(Err(_)) => reply.error(Errno::EIO),
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
                Err(_) => return reply.error(Errno::EIO),
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
