//! A file that gets its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::linkat;

use crate::Result;

/// A file without a name until it is finished. On a file system that cannot do that, the file has a temporary name next
/// to the final one, which is removed on drop.
pub(crate) struct Output {
    file: File,
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl Output {
    pub(crate) fn create(path: &Path) -> Result<Output> {
        // Fails before the work is done; `finish` is what protects an existing file.
        if path.symlink_metadata().is_ok() {
            return Err(exists(path).into());
        }
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.file_name().is_none() {
            return Err(format!("{} is not the name of a file", path.display()).into());
        }
        // A guest's RAM is full of secrets: nobody else may read it.
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
            return Ok(Output { file, temporary: None, path: path.to_owned() });
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.part", std::process::id()));
        let file = options.create_new(true).open(&temporary);
        let file = file.map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok(Output { file, temporary: Some(temporary.into()), path: path.to_owned() })
    }

    /// Returns another handle of the file, which shares the position with this one.
    pub(crate) fn file(&self) -> Result<File> {
        Ok(self.file.try_clone()?)
    }

    /// Returns a path at which this process and its workers can open the file.
    pub(crate) fn path_to_open(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_fd().as_raw_fd()).into()
    }

    /// Waits until the file is on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_all().map_err(|e| self.cannot_write(&e))?)
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<()> {
        // Unlike a rename, a link never replaces another file.
        let linked = match &self.temporary {
            Some(temporary) => match fs::hard_link(temporary, &self.path) {
                // The file system does not support links.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
                    let flags = RenameFlags::RENAME_NOREPLACE;
                    renameat2(AT_FDCWD, temporary, AT_FDCWD, &self.path, flags).map_err(io::Error::from)
                }
                linked => linked,
            },
            None => linkat(AT_FDCWD, &self.path_to_open(), AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_FOLLOW)
                .map_err(io::Error::from),
        };
        Ok(linked.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.path),
            _ => self.cannot_write(&e),
        })?)
    }

    /// Removes the temporary name, if the file has one.
    pub(crate) fn discard(&self) {
        if let Some(temporary) = &self.temporary {
            // Nothing can be done about a failure, and the file does no harm.
            let _ = fs::remove_file(temporary);
        }
    }

    fn cannot_write(&self, error: &io::Error) -> String {
        format!("cannot write {}: {error}", self.path.display())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.discard();
    }
}

fn exists(path: &Path) -> String {
    format!("output exists: {}", path.display())
}
