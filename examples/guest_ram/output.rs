//! A sparse file that gets its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xenmap::View;

use crate::Result;

/// The file, under a name of its own beside the final one until it is finished; dropping it removes that name.
pub(crate) struct Output {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Output {
    pub(crate) fn create(path: &Path) -> Result<Output> {
        // For a clear answer before the work is done; what counts is `finish`.
        if path.symlink_metadata().is_ok() {
            return Err(exists(path).into());
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.part", std::process::id()));
        // A guest's RAM is full of secrets: nobody else may read it.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok(Output { file, temporary: temporary.into(), path: path.to_owned() })
    }

    /// Writes a part of a view to the file, at `offset`.
    pub(crate) fn write(&mut self, offset: u64, view: View<'_>, part: Range<usize>) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| self.failed(&e))?;
        view.write_to(part.start, part.len(), &self.file).map_err(|e| self.failed(&e))?;
        Ok(())
    }

    /// Gives the file its length and its name.
    pub(crate) fn finish(self, len: u64) -> Result<()> {
        self.file.set_len(len).and_then(|()| self.file.sync_all()).map_err(|e| self.failed(&e))?;
        // Unlike a rename, a link never takes the place of another file.
        fs::hard_link(&self.temporary, &self.path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.path),
            _ => self.failed(&e),
        })?;
        Ok(())
    }

    fn failed(&self, error: &dyn std::error::Error) -> String {
        format!("cannot write {}: {error}", self.path.display())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the file does no harm.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn exists(path: &Path) -> String {
    format!("output exists: {}", path.display())
}
