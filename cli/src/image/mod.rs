//! Reading dumps: of every format that this tool writes, and of similar ones.
//!
//! A dump may come from anywhere, so nothing that it says about itself is believed without a check. A dump must not
//! change while it is read: it is mapped, and truncating it causes a SIGBUS.

mod contents;
mod elf;
pub(crate) mod foreign;
mod lime;
mod raw;
mod runs;
mod zst;

use std::fs::File;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xenmap::FRAME_SIZE;

use crate::Result;
use contents::Contents;
use runs::{Run, Source};

pub(crate) type Page = [u8; FRAME_SIZE];
pub(crate) const ZEROS: Page = [0; FRAME_SIZE];

const FRAME: u64 = FRAME_SIZE as u64;

pub(crate) struct Image {
    file: Contents,
    /// In ascending order, without overlap.
    frames: Vec<Frames>,
    /// The pieces of frames that are not whole in one run, in ascending order, without overlap.
    pieces: Vec<Run>,
    /// Whether a missing page may be a page of zeros.
    pub(crate) hides_zeros: bool,
}

/// Consecutive frames, at least one, and where their bytes are.
struct Frames {
    pfns: Range<u64>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the file, from this offset on.
    File(u64),
    Zeros,
    Pieces,
}

/// The form in which a dump has some frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Pages,
    Zeros,
    /// Pieces of pages, perhaps not all of them.
    Pieces,
}

/// A frame of which bytes may be missing.
pub(crate) struct Frame {
    page: Page,
    /// The bytes that are not missing: ranges in ascending order that do not touch each other.
    present: Vec<Range<usize>>,
}

/// The way to find out the format of a dump.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Making {
    /// By how it begins. An error suggests this option, which reads it as raw.
    Detected(&'static str),
    /// It is raw, however it begins.
    Raw,
}

impl Making {
    /// `option` is the one that reads a dump as raw.
    pub(crate) fn new(is_raw: bool, option: &'static str) -> Making {
        if is_raw { Making::Raw } else { Making::Detected(option) }
    }
}

impl Image {
    pub(crate) fn open(path: &Path, making: Making) -> Result<Image> {
        Image::read(path, making).map_err(|e| format!("cannot use {} as a dump: {e}", path.display()).into())
    }

    fn read(path: &Path, making: Making) -> Result<Image> {
        let file = open_file(path)?;
        if file.metadata()?.len() == 0 {
            return Err("it is empty".into());
        }
        let Making::Detected(option) = making else {
            let file = Contents::new(&file)?;
            let runs = raw::runs(&file).map_err(|e| format!("it is {e}"))?;
            return Image::new(runs, file, true);
        };
        match Look::of(&file)? {
            Look::Zstd => {
                let file = zst::decompress(&file)?;
                let detected = Image::detect(&file, &format!("decompress it first (zstd -d) and give {option}"));
                detected.map_err(|e| format!("once decompressed, {e}").into())
            }
            _ => Image::detect(&file, &format!("give {option}")),
        }
    }

    /// `for_raw` says what to do with a file that is raw, but does not look like it.
    fn detect(file: &File, for_raw: &str) -> Result<Image> {
        let look = Look::of(file)?;
        let file = Contents::new(file)?;
        match look {
            Look::Elf => Image::new(elf::runs(&file)?, file, false),
            Look::Lime => Image::new(lime::runs(&file)?, file, false),
            Look::Zstd => Err("it is still compressed with zstd: decompress it first (zstd -d)".into()),
            Look::Foreign(foreign) => Err(format!("{foreign}; if it is raw RAM all the same, {for_raw}").into()),
            Look::Raw => {
                let runs = raw::runs(&file).map_err(|e| format!("it is of no known kind, and {e}"))?;
                Image::new(runs, file, true)
            }
        }
    }

    fn new(claims: Vec<Run>, file: Contents, hides_zeros: bool) -> Result<Image> {
        let runs = runs::in_order(claims, &file)?;
        let (frames, pieces) = by_frame(&runs);
        Ok(Image { file, frames, pieces, hides_zeros })
    }

    /// Returns the frames that the dump has, in ascending order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Range<u64>, Part)> {
        self.frames.iter().map(|frames| {
            let part = match frames.place {
                Place::File(_) => Part::Pages,
                Place::Zeros => Part::Zeros,
                Place::Pieces => Part::Pieces,
            };
            (frames.pfns.clone(), part)
        })
    }

    /// Returns the page of a frame, if the dump has it and not in pieces.
    pub(crate) fn page(&self, pfn: u64) -> Option<&Page> {
        let after = self.frames.partition_point(|frames| frames.pfns.end <= pfn);
        let frames = self.frames.get(after).filter(|frames| frames.pfns.contains(&pfn))?;
        match frames.place {
            Place::File(offset) => self.file.get(offset + (pfn - frames.pfns.start) * FRAME, FRAME)?.first_chunk(),
            Place::Zeros => Some(&ZEROS),
            Place::Pieces => None,
        }
    }

    /// Begins to read frames that will be needed soon.
    pub(crate) fn prefetch(&self, pfns: Range<u64>) {
        let first = self.frames.partition_point(|frames| frames.pfns.end <= pfns.start);
        for frames in self.frames[first..].iter().take_while(|frames| frames.pfns.start < pfns.end) {
            if let Place::File(offset) = frames.place {
                let bytes = [frames.pfns.start.max(pfns.start), frames.pfns.end.min(pfns.end)]
                    .map(|pfn| offset + (pfn - frames.pfns.start) * FRAME);
                self.file.prefetch(bytes[0]..bytes[1]);
            }
        }
    }

    /// Returns what the dump has of a frame.
    pub(crate) fn frame(&self, pfn: u64) -> Frame {
        if let Some(page) = self.page(pfn) {
            return Frame::whole(page);
        }
        let mut frame = Frame::nothing();
        let addresses = pfn * FRAME..(pfn + 1) * FRAME;
        let first = self.pieces.partition_point(|piece| piece.addresses.end <= addresses.start);
        let pieces = self.pieces[first..].iter().take_while(|piece| piece.addresses.start < addresses.end);
        for piece in pieces {
            let [start, end] = [piece.addresses.start, piece.addresses.end]
                .map(|address| usize::try_from(address - addresses.start).unwrap_or(FRAME_SIZE));
            if let Source::File(offset) = piece.source {
                let bytes = self.file.get(offset, piece.addresses.end - piece.addresses.start);
                frame.page[start..end].copy_from_slice(bytes.unwrap_or(&ZEROS[start..end]));
            }
            frame.add(start..end);
        }
        frame
    }

    /// Returns whether the dump has all bytes of this page at a frame. A page of zeros may be missing if the dump hides
    /// zeros.
    pub(crate) fn has(&self, pfn: u64, page: &Page) -> bool {
        match self.page(pfn) {
            Some(own) => own == page,
            None => self.frame(pfn).is(page) || self.hides_zeros && *page == ZEROS,
        }
    }
}

impl Frame {
    pub(crate) fn nothing() -> Frame {
        Frame { page: ZEROS, present: Vec::new() }
    }

    pub(crate) fn whole(page: &Page) -> Frame {
        Frame { page: *page, present: once(0..FRAME_SIZE).collect() }
    }

    /// Marks bytes as present. They must come after all that are present already.
    fn add(&mut self, bytes: Range<usize>) {
        match self.present.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.present.push(bytes),
        }
    }

    fn is(&self, page: &Page) -> bool {
        self.present.first() == Some(&(0..FRAME_SIZE)) && self.page == *page
    }

    /// Returns where present bytes begin and end.
    pub(crate) fn borders(&self) -> impl Iterator<Item = usize> {
        self.present.iter().flat_map(|range| [range.start, range.end])
    }

    /// Returns bytes of the page that have no border between them; `None` if they are missing.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let present = self.present.get(self.present.partition_point(|present| present.end <= range.start))?;
        (present.start <= range.start).then(|| &self.page[range])
    }
}

/// Returns the frames of some runs, and the pieces of those that are not whole in one run.
fn by_frame(runs: &[Run]) -> (Vec<Frames>, Vec<Run>) {
    let (mut frames, mut pieces): (Vec<Frames>, Vec<Run>) = (Vec::new(), Vec::new());
    let mut add_piece = |frames: &mut Vec<Frames>, piece: Run| {
        let pfn = piece.addresses.start / FRAME;
        if frames.last().is_none_or(|last| last.pfns.end <= pfn) {
            frames.push(Frames { pfns: pfn..pfn + 1, place: Place::Pieces });
        }
        pieces.push(piece);
    };
    for run in runs {
        let Range { start, end } = run.addresses;
        let first_whole = start.next_multiple_of(FRAME).min(end);
        let end_of_whole = (end - end % FRAME).max(first_whole);
        if start < first_whole {
            add_piece(&mut frames, run.part(start..first_whole));
        }
        if first_whole < end_of_whole {
            let place = match run.part(first_whole..end_of_whole).source {
                Source::File(offset) => Place::File(offset),
                Source::Zeros => Place::Zeros,
            };
            frames.push(Frames { pfns: first_whole / FRAME..end_of_whole / FRAME, place });
        }
        if end_of_whole < end {
            add_piece(&mut frames, run.part(end_of_whole..end));
        }
    }
    (frames, pieces)
}

/// The apparent kind of a file, judging by how it begins.
enum Look {
    Elf,
    Lime,
    Zstd,
    /// Something else: what it is, and what to do.
    Foreign(String),
    /// Raw, or of an unknown kind.
    Raw,
}

impl Look {
    fn of(file: &File) -> Result<Look> {
        let head = head(file)?;
        Ok(if head.starts_with(&elf::MAGIC) {
            Look::Elf
        } else if head.starts_with(&lime::MAGIC) {
            Look::Lime
        } else if zst::is_compressed(&head) {
            Look::Zstd
        } else {
            foreign::identify(&head).map_or(Look::Raw, Look::Foreign)
        })
    }
}

/// Opens a regular file for reading.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    // Checked first, because opening a pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err("not a regular file".into());
    }
    Ok(File::open(path)?)
}

/// Refuses a file that should be raw RAM but looks like something else.
pub(crate) fn check_raw(file: &File) -> Result<()> {
    let what = match Look::of(file)? {
        Look::Elf => "it is an elf file".to_owned(),
        Look::Lime => "it is a lime dump".to_owned(),
        Look::Zstd => "it is compressed with zstd: decompress it first (zstd -d)".to_owned(),
        Look::Foreign(foreign) => foreign,
        Look::Raw => return Ok(()),
    };
    let taken = "--mock takes raw RAM, such as `dump --format raw` writes";
    Err(format!("{what}; {taken}; if it is raw RAM all the same, give --mock-raw").into())
}

/// Returns the beginning of a file.
fn head(file: &File) -> Result<Vec<u8>> {
    let mut head = vec![0; foreign::HEAD];
    let mut len = 0;
    while len < head.len() {
        match file.read_at(&mut head[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    head.truncate(len);
    Ok(head)
}
