//! Guests whose RAM comes from a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::domain::MockDomain;
use crate::types::{FRAME_SIZE, Gfn};

impl MockDomain {
    /// Gives the guest the frames for which a file holds data, with that data.
    pub(super) fn load_file(&self, file: &File) -> io::Result<()> {
        let gfns = frames_in(file)?.into_iter().flatten().map(Gfn::new);
        let gfns = gfns.collect::<Result<Vec<Gfn>, _>>().map_err(io::Error::other)?;
        self.populate(&gfns);
        gfns.into_iter().try_for_each(|gfn| self.load_frame(file, gfn.get(), gfn))
    }

    /// Fills a frame from frame `number` of a file, and pads it with zeros if the file ends inside.
    pub(super) fn load_frame(&self, file: &File, number: u64, gfn: Gfn) -> io::Result<()> {
        let mut frame = [0; FRAME_SIZE];
        let mut len = 0;
        while len < FRAME_SIZE {
            match file.read_at(&mut frame[len..], number * FRAME_SIZE as u64 + len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        self.write(gfn, 0, &frame);
        Ok(())
    }
}

/// Returns the frames for which a file holds data.
pub(super) fn frames_in(file: &File) -> io::Result<Vec<Range<u64>>> {
    let frame_size = FRAME_SIZE as u64;
    let size = file.metadata()?.len();
    let mut frames: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    while let Some(data) = seek(file, next, Whence::SeekData)?.filter(|&data| data < size) {
        let end = seek(file, data, Whence::SeekHole)?.unwrap_or(size).min(size);
        let (first, last) = ((data / frame_size).max(next.div_ceil(frame_size)), end.div_ceil(frame_size));
        frames.push(first..last);
        next = last * frame_size;
    }
    Ok(frames)
}

/// Returns where the next data or hole begins, or `None` past the last data.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
