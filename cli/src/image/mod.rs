//! Reading dumps: of every format that this tool writes, and of similar ones.
//!
//! A dump may come from anywhere, so nothing that it says about itself is believed without a check. A dump must not
//! change while it is read: it is mapped, and truncating it causes a SIGBUS.

mod avml;
mod contents;
mod elf;
mod flattened;
pub(crate) mod foreign;
mod kdump;
mod lime;
mod machine;
mod raw;
mod runs;
mod unpacked;
mod zst;

use std::fs::File;
use std::iter::{from_fn, once};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xenmap::{FRAME_SIZE, Gfn};

use crate::Result;
use contents::Contents;
pub(crate) use machine::{Architecture, Machine};
use runs::{Run, Source};

pub(crate) type Page = [u8; FRAME_SIZE];
pub(crate) const ZEROS: Page = [0; FRAME_SIZE];

const FRAME: u64 = FRAME_SIZE as u64;

pub(crate) struct Image {
    /// The name of its format.
    pub(crate) format: &'static str,
    file: Contents,
    /// In ascending order, without overlap.
    runs: Vec<Run>,
    /// Whether a missing page may be a page of zeros.
    pub(crate) hides_zeros: bool,
    pub(crate) machine: Machine,
}

/// What a dump has at some addresses.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// Zeros that are not in the file.
    Zeros,
    Missing,
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

/// Whether the bytes of RAM are needed, which may have to be decompressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Needed,
    NotNeeded,
}

impl Making {
    /// `option` is the one that reads a dump as raw.
    pub(crate) fn new(is_raw: bool, option: &'static str) -> Making {
        if is_raw { Making::Raw } else { Making::Detected(option) }
    }
}

impl Image {
    pub(crate) fn open(path: &Path, making: Making) -> Result<Image> {
        Image::open_as(path, making, Pages::Needed)
    }

    /// Opens a dump whose bytes of RAM are not needed. They may be wrong.
    pub(crate) fn open_without_pages(path: &Path, making: Making) -> Result<Image> {
        Image::open_as(path, making, Pages::NotNeeded)
    }

    fn open_as(path: &Path, making: Making, pages: Pages) -> Result<Image> {
        let image = Image::read_file(path, making, pages);
        image.map_err(|e| format!("cannot use {} as a dump: {e}", path.display()).into())
    }

    fn read_file(path: &Path, making: Making, pages: Pages) -> Result<Image> {
        let file = open_file(path)?;
        if file.metadata()?.len() == 0 {
            return Err("it is empty".into());
        }
        let Making::Detected(option) = making else {
            let file = Contents::new(&file)?;
            let runs = raw::runs(&file).map_err(|e| format!("it is {e}"))?;
            return Image::raw(runs, file);
        };
        match Look::of(&file)? {
            Look::Zstd => {
                let file = zst::decompress(&file)?;
                let detected = Image::detect(&file, &format!("decompress it first (zstd -d) and give {option}"), pages);
                detected.map_err(|e| format!("once decompressed, {e}").into())
            }
            _ => Image::detect(&file, &format!("give {option}"), pages),
        }
    }

    /// `for_raw` says what to do with a file that is raw, but does not look like it.
    fn detect(file: &File, for_raw: &str, pages: Pages) -> Result<Image> {
        let look = Look::of(file)?;
        let file = Contents::new(file)?;
        match look {
            Look::Flattened => {
                let file = flattened::rearrange(&file)?;
                match Look::of(&file)? {
                    Look::Flattened => Err("it is flattened twice".into()),
                    _ => Image::detect(&file, for_raw, pages).map_err(|e| format!("once rearranged, {e}").into()),
                }
            }
            Look::Kdump if pages == Pages::NotNeeded => {
                let (runs, machine) = kdump::without_pages(&file)?;
                Image::new("kdump", runs, file, machine)
            }
            Look::Kdump => {
                let (unpacked, runs, machine) = kdump::unpack(&file)?;
                Image::new("kdump", runs, Contents::new(&unpacked)?, machine)
            }
            Look::Avml => {
                let (unpacked, runs) = avml::unpack(&file)?;
                Image::new("avml", runs, Contents::new(&unpacked)?, Machine::default())
            }
            Look::Elf => {
                let (format, runs, machine) = elf::read(&file)?;
                Image::new(format, runs, file, machine)
            }
            Look::Lime => Image::new("lime", lime::runs(&file)?, file, Machine::default()),
            Look::Zstd => Err("it is still compressed with zstd: decompress it first (zstd -d)".into()),
            Look::Foreign(foreign) => Err(format!("{foreign}; if it is raw RAM all the same, {for_raw}").into()),
            Look::Raw => {
                let runs = raw::runs(&file).map_err(|e| format!("it is of no known kind, and {e}"))?;
                Image::raw(runs, file)
            }
        }
    }

    fn new(format: &'static str, claims: Vec<Run>, file: Contents, machine: Machine) -> Result<Image> {
        let runs = runs::in_order(claims, &file)?;
        Ok(Image { format, file, runs, hides_zeros: false, machine })
    }

    fn raw(claims: Vec<Run>, file: Contents) -> Result<Image> {
        Ok(Image { hides_zeros: true, ..Image::new("raw", claims, file, Machine::default())? })
    }

    /// Returns the frames that the dump has, in ascending order.
    pub(crate) fn parts(&self) -> Vec<(Range<u64>, Part)> {
        by_frame(&self.runs)
    }

    /// Returns where the dump has RAM, in ascending order: addresses that do not touch each other.
    pub(crate) fn extents(&self) -> Vec<Range<u64>> {
        let mut extents: Vec<Range<u64>> = Vec::new();
        for Run { addresses, .. } in &self.runs {
            match extents.last_mut() {
                Some(last) if last.end == addresses.start => last.end = addresses.end,
                _ => extents.push(addresses.clone()),
            }
        }
        extents
    }

    /// Returns how many pages the dump has only a part of.
    pub(crate) fn partial_pages(&self) -> u64 {
        let borders = self.extents().into_iter().flat_map(|extent| [extent.start, extent.end]);
        let mut pages: Vec<u64> = borders.filter(|border| border % FRAME != 0).map(|border| border / FRAME).collect();
        pages.dedup();
        pages.len() as u64
    }

    /// Returns the address after the last one that the dump has or may have hidden as zeros.
    pub(crate) fn end(&self) -> u64 {
        let end_of_runs = self.runs.last().map_or(0, |run| run.addresses.end);
        let end_of_hidden = self.file.len().min((Gfn::MAX.get() + 1) * FRAME);
        if self.hides_zeros { end_of_runs.max(end_of_hidden) } else { end_of_runs }
    }

    /// Returns what the dump has at some addresses, in ascending order. Nothing is left out.
    pub(crate) fn contents(&self, addresses: Range<u64>) -> impl Iterator<Item = (Range<u64>, Content<'_>)> {
        let mut runs = self.runs_in(addresses.clone()).peekable();
        let mut rest = addresses;
        let end_of_hidden = if self.hides_zeros { self.end() } else { 0 };
        from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let content = if let Some(run) = runs.next_if(|run| run.addresses.start == rest.start) {
                (run.addresses.clone(), self.content(&run))
            } else {
                let end = runs.peek().map_or(rest.end, |run| run.addresses.start);
                if rest.start < end_of_hidden {
                    (rest.start..end.min(end_of_hidden), Content::Zeros)
                } else {
                    (rest.start..end, Content::Missing)
                }
            };
            rest.start = content.0.end;
            Some(content)
        })
    }

    /// Copies bytes from an address on. Fails with the first address that is missing.
    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> std::result::Result<(), u64> {
        let mut rest = to;
        // The last address is far above any frame's.
        for (addresses, content) in self.contents(address..address.saturating_add(rest.len() as u64)) {
            let len = usize::try_from(addresses.end - addresses.start).map_err(|_| addresses.start)?;
            let (part, more) = rest.split_at_mut(len);
            match content {
                Content::Bytes(bytes) => part.copy_from_slice(bytes),
                Content::Zeros => part.fill(0),
                Content::Missing => return Err(addresses.start),
            }
            rest = more;
        }
        if rest.is_empty() { Ok(()) } else { Err(u64::MAX) }
    }

    /// Returns whether it is the dump of a PV guest that has the guest's machine frames.
    pub(crate) fn has_machine_frames(&self) -> bool {
        self.machine.p2m.is_some()
    }

    /// Returns the machine frames of some frames of a PV guest.
    pub(crate) fn machine_frames(&self, pfns: Range<u64>) -> Option<Vec<Option<u64>>> {
        Some(self.machine.p2m.as_ref()?.machine_frames(pfns, &self.file))
    }

    /// Returns the address in the dump for one in page tables: for a PV guest, that is a machine address. Fails with
    /// the address if its frame is missing.
    pub(crate) fn address(&self, in_tables: u64) -> std::result::Result<u64, u64> {
        match &self.machine.p2m {
            Some(p2m) => machine::pseudo_physical(p2m, in_tables, &self.file).ok_or(in_tables),
            None => Ok(in_tables),
        }
    }

    /// Returns the runs at some addresses, cut to these.
    fn runs_in(&self, addresses: Range<u64>) -> impl Iterator<Item = Run> {
        let first = self.runs.partition_point(|run| run.addresses.end <= addresses.start);
        let meets = self.runs[first..].iter().take_while(move |run| run.addresses.start < addresses.end);
        meets.map(move |run| run.part(run.addresses.start.max(addresses.start)..run.addresses.end.min(addresses.end)))
    }

    fn content(&self, run: &Run) -> Content<'_> {
        match run.source {
            Source::File(offset) => {
                let bytes = self.file.get(offset, run.addresses.end - run.addresses.start);
                bytes.map_or(Content::Missing, Content::Bytes)
            }
            Source::Zeros => Content::Zeros,
        }
    }

    /// Returns the page of a frame, if the dump has it and not in pieces.
    pub(crate) fn page(&self, pfn: u64) -> Option<&Page> {
        let addresses = pfn * FRAME..(pfn + 1) * FRAME;
        let run = self.runs_in(addresses.clone()).next().filter(|run| run.addresses == addresses)?;
        match self.content(&run) {
            Content::Bytes(bytes) => bytes.first_chunk(),
            Content::Zeros => Some(&ZEROS),
            Content::Missing => None,
        }
    }

    /// Begins to read frames that will be needed soon.
    pub(crate) fn prefetch(&self, pfns: Range<u64>) {
        for run in self.runs_in(pfns.start * FRAME..pfns.end * FRAME) {
            if let Source::File(offset) = run.source {
                self.file.prefetch(offset..offset + (run.addresses.end - run.addresses.start));
            }
        }
    }

    /// Returns what the dump has of a frame.
    pub(crate) fn frame(&self, pfn: u64) -> Frame {
        let mut frame = Frame::nothing();
        let addresses = pfn * FRAME..(pfn + 1) * FRAME;
        for run in self.runs_in(addresses.clone()) {
            let [start, end] = [run.addresses.start, run.addresses.end]
                .map(|address| usize::try_from(address - addresses.start).unwrap_or(FRAME_SIZE));
            if let Content::Bytes(bytes) = self.content(&run) {
                frame.page[start..end].copy_from_slice(bytes);
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

/// Returns the frames of some runs, and how the runs have them.
fn by_frame(runs: &[Run]) -> Vec<(Range<u64>, Part)> {
    let mut frames: Vec<(Range<u64>, Part)> = Vec::new();
    let add_piece = |frames: &mut Vec<(Range<u64>, Part)>, start: u64| {
        let pfn = start / FRAME;
        if frames.last().is_none_or(|(last, _)| last.end <= pfn) {
            frames.push((pfn..pfn + 1, Part::Pieces));
        }
    };
    for run in runs {
        let Range { start, end } = run.addresses;
        let first_whole = start.next_multiple_of(FRAME).min(end);
        let end_of_whole = (end - end % FRAME).max(first_whole);
        if start < first_whole {
            add_piece(&mut frames, start);
        }
        if first_whole < end_of_whole {
            let part = match run.source {
                Source::File(_) => Part::Pages,
                Source::Zeros => Part::Zeros,
            };
            frames.push((first_whole / FRAME..end_of_whole / FRAME, part));
        }
        if end_of_whole < end {
            add_piece(&mut frames, end_of_whole);
        }
    }
    frames
}

/// The apparent kind of a file, judging by how it begins.
enum Look {
    Elf,
    Lime,
    Avml,
    Kdump,
    Flattened,
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
        } else if head.starts_with(&avml::MAGIC) {
            Look::Avml
        } else if head.starts_with(&kdump::MAGIC) {
            Look::Kdump
        } else if head.starts_with(&flattened::MAGIC) {
            Look::Flattened
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
        Look::Avml => "it is a compressed dump of avml".to_owned(),
        Look::Kdump => "it is a kdump-compressed dump".to_owned(),
        Look::Flattened => "it is a flattened dump of makedumpfile or QEMU".to_owned(),
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
