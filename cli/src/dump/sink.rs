//! The outputs of a dump: a sparse file, or a stream.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zstd::stream::write::Encoder;

use crate::Result;
use crate::bytes::Bytes;
use crate::chain::chain;

/// Takes the bytes of a dump. Bytes that it does not get are zero.
pub(crate) trait Sink {
    /// Prepares for `len` bytes. Fails, before any is written, if the file system or a limit does not allow as many.
    fn begin(&mut self, len: u64) -> io::Result<()>;

    /// Takes bytes from this process's memory.
    fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Takes bytes of what is dumped.
    fn ram(&mut self, offset: u64, bytes: Bytes<'_>) -> Result<()>;

    /// Ends the dump, which has `len` bytes, and returns how many were written.
    fn end(&mut self, len: u64) -> Result<u64>;
}

/// A file that has holes where nothing is written. Several of these may write to one file, each with an open file
/// description of its own.
pub(crate) struct SparseFile {
    pub(crate) file: File,
    pub(crate) name: String,
}

impl Sink for SparseFile {
    fn begin(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, offset).map_err(|e| cannot_write(&self.name, &e))?)
    }

    fn ram(&mut self, offset: u64, bytes: Bytes<'_>) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| cannot_write(&self.name, &e))?;
        Ok(bytes.write_to(&self.file).map_err(|e| cannot_write(&self.name, &*e))?)
    }

    fn end(&mut self, len: u64) -> Result<u64> {
        const BLOCK: u64 = 512;
        let metadata = self.file.set_len(len).and_then(|()| self.file.metadata());
        Ok(metadata.map_err(|e| cannot_write(&self.name, &e))?.blocks() * BLOCK)
    }
}

/// An output that is written from the beginning to the end.
pub(crate) struct Stream {
    to: Writer,
    position: u64,
    name: String,
}

enum Writer {
    Plain(Counted),
    Zstd(Encoder<'static, Counted>),
    Ended,
}

/// A file, and the number of bytes written to it.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The default level of zstd.
const ZSTD_LEVEL: i32 = 3;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Stream {
    pub(crate) fn plain(file: File, name: String) -> Stream {
        Stream { to: Writer::Plain(Counted { file, bytes: 0 }), position: 0, name }
    }

    pub(crate) fn zstd(file: File, name: String) -> Result<Stream> {
        let encoder = Encoder::new(Counted { file, bytes: 0 }, ZSTD_LEVEL).and_then(|mut encoder| {
            // Without a checksum a damaged file can decode to other pages unnoticed.
            encoder.include_checksum(true)?;
            Ok(encoder)
        });
        let encoder = encoder.map_err(|e| cannot_write(&name, &e))?;
        Ok(Stream { to: Writer::Zstd(encoder), position: 0, name })
    }

    fn skip_to(&mut self, offset: u64) -> Result<()> {
        let mut missing = offset.checked_sub(self.position).ok_or("a stream cannot go back")?;
        while missing > 0 {
            let zeros = usize::try_from(missing).map_or(ZEROS.len(), |missing| missing.min(ZEROS.len()));
            self.write(&ZEROS[..zeros])?;
            missing -= zeros as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.to {
            Writer::Plain(file) => file.write_all(bytes),
            Writer::Zstd(encoder) => encoder.write_all(bytes),
            Writer::Ended => Err(io::ErrorKind::WriteZero.into()),
        };
        written.map_err(|e| cannot_write(&self.name, &e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Sink for Stream {
    fn begin(&mut self, len: u64) -> io::Result<()> {
        match &mut self.to {
            Writer::Plain(counted) if counted.file.metadata()?.is_file() => check_len(&mut counted.file, len),
            // The compressed length is unknown, and what is not a file has no limit.
            _ => Ok(()),
        }
    }

    fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.skip_to(offset)?;
        self.write(bytes)
    }

    fn ram(&mut self, offset: u64, bytes: Bytes<'_>) -> Result<()> {
        self.skip_to(offset)?;
        if let Writer::Plain(counted) = &mut self.to {
            bytes.write_to(&counted.file).map_err(|e| cannot_write(&self.name, &*e))?;
            counted.bytes += bytes.len() as u64;
            self.position += bytes.len() as u64;
            return Ok(());
        }
        // zstd needs memory that nobody else writes to.
        let mut copy = vec![0; ZEROS.len()];
        for start in (0..bytes.len()).step_by(copy.len()) {
            let part = (bytes.len() - start).min(copy.len());
            bytes.read(start, &mut copy[..part])?;
            self.write(&copy[..part])?;
        }
        Ok(())
    }

    fn end(&mut self, len: u64) -> Result<u64> {
        self.skip_to(len)?;
        let ended = match std::mem::replace(&mut self.to, Writer::Ended) {
            Writer::Plain(counted) => Ok(counted),
            Writer::Zstd(encoder) => encoder.finish(),
            Writer::Ended => Err(io::ErrorKind::WriteZero.into()),
        };
        Ok(ended.map_err(|e| cannot_write(&self.name, &e))?.bytes)
    }
}

/// Checks that `len` bytes can be written to a file, without changing its length.
fn check_len(file: &mut File, len: u64) -> io::Result<()> {
    let position = file.stream_position()?;
    let appends = OFlag::from_bits_retain(fcntl(&*file, FcntlArg::F_GETFL)?).contains(OFlag::O_APPEND);
    let start = if appends { file.metadata()?.len() } else { position };
    let end = start.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
    if file_size_limit()?.is_some_and(|limit| end > limit) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Fails past the largest size of the file system.
    file.seek(SeekFrom::Start(end))?;
    file.seek(SeekFrom::Start(position))?;
    Ok(())
}

/// Returns the size in bytes that a file of this process may have (`RLIMIT_FSIZE`); `None` if there is no limit.
fn file_size_limit() -> io::Result<Option<u64>> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()))
}

fn cannot_write(name: &str, error: &(dyn std::error::Error + 'static)) -> String {
    format!("cannot write {name}: {}", chain(error))
}
