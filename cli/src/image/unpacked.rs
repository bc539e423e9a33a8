//! A file without a name that holds what is unpacked from a dump, with holes for pages of zeros.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use xenmap::FRAME_SIZE;

use super::ZEROS;
use crate::Result;

pub(super) struct Unpacked {
    file: File,
    folder: PathBuf,
    /// The end of what was written.
    pub(super) len: u64,
}

impl Unpacked {
    /// Creates the file. It disappears when it is closed.
    pub(super) fn create() -> Result<Unpacked> {
        let folder = temporary_folder();
        let file = nameless_file(&folder).map_err(|e| cannot_write(&folder, &e))?;
        Ok(Unpacked { file, folder, len: 0 })
    }

    /// Appends bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(self.len, bytes)
    }

    /// Makes a range zeros.
    pub(super) fn clear(&mut self, range: Range<u64>) -> Result<()> {
        let written = range.start..range.end.min(self.len);
        if !written.is_empty() {
            punch_hole(&self.file, &written).map_err(|e| cannot_write(&self.folder, &e))?;
        }
        self.len = self.len.max(range.end);
        Ok(())
    }

    /// Writes bytes over zeros from an offset on, and leaves holes for pages of zeros.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_sparse(&self.file, offset, bytes).map_err(|e| cannot_write(&self.folder, &e))?;
        self.len = self.len.max(offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    pub(super) fn finish(self) -> Result<File> {
        self.file.set_len(self.len).map_err(|e| cannot_write(&self.folder, &e))?;
        Ok(self.file)
    }
}

/// Returns a folder with room for a guest's RAM: `/tmp`, the usual default, may be in memory.
fn temporary_folder() -> PathBuf {
    let chosen = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    chosen.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Makes a range of a file zeros. It costs little, however long the range is, unless the file system has no holes.
fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    let [offset, signed_len] = [range.start, len].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, offset, signed_len) {
        Err(Errno::EOPNOTSUPP) => {
            let mut file = file;
            file.seek(SeekFrom::Start(range.start))?;
            io::copy(&mut io::repeat(0).take(len), &mut file).map(drop)
        }
        punched => Ok(punched?),
    }
}

/// Writes the pages that are not zero, and leaves holes for the others.
fn write_sparse(to: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |page: &[u8]| *page == ZEROS[..page.len()];
    let (mut start, mut end) = (0, 0);
    for page in bytes.chunks(FRAME_SIZE) {
        let next = end + page.len();
        if is_zero(page) {
            to.write_all_at(&bytes[start..end], offset + start as u64)?;
            start = next;
        }
        end = next;
    }
    to.write_all_at(&bytes[start..end], offset + start as u64)
}

/// Creates a file without a name in a folder. Nobody else can open it.
fn nameless_file(folder: &Path) -> io::Result<File> {
    // A guest's RAM is full of secrets: nobody else may read it.
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        return Ok(file);
    }
    let path = folder.join(format!("xenmap.{}.tmp", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn cannot_write(folder: &Path, error: &dyn Display) -> String {
    let folder = folder.display();
    format!(
        "cannot decompress it into {folder}: {error}; set TMPDIR to a folder with room for it, or decompress it first"
    )
}
