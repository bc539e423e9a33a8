//! `dump`: the RAM of a guest, or of another dump, as a file or a stream.

pub(crate) mod copy;
mod elf;
mod format;
pub(crate) mod interrupt;
pub(crate) mod layout;
pub(crate) mod output;
mod parallel;
pub(crate) mod report;
pub(crate) mod sink;
pub(crate) mod worker;
mod xen;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, LineWriter, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use xenmap::{DomainState, FrameKind, HostKind};

use crate::Result;
use crate::args::{Compression, CopyBy, DumpArgs, Format, Source};
use crate::chain::chain;
use crate::map::{self, Found};
use crate::number::count;
use crate::printable::write_json;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::window::Window;
use copy::{Lost, Tally, copy_part};
use interrupt::Interrupts;
use layout::{FRAME, Layout, Part};
use output::Output;
use report::Written;
use sink::{Sink, SparseFile, Stream};
use worker::Job;

/// Writes the dump and a summary, and returns whether the dump has all of the RAM.
///
/// `source` is what `ram` was opened by. `out` is standard output, for the summary.
pub(crate) fn dump(ram: &Ram, args: &DumpArgs, source: &Source, out: &mut impl Write) -> Result<bool> {
    let start = Instant::now();
    check_paused(ram, args, source)?;
    let to_stdout = args.is_to_stdout();
    if to_stdout && io::stdout().is_terminal() {
        return Err("refusing to write a dump to a terminal: give a file, or redirect standard output".into());
    }
    let interrupts = Interrupts::block()?;
    let output = if to_stdout { None } else { Some(Output::create(&args.out)?) };
    let dump = Dump { ram, args, source, output: output.as_ref() };

    let mut paused = match ram.guest() {
        Some(guest) if args.pause => Some(guest.pause()?),
        _ => None,
    };
    let undo = || {
        drop(paused.take());
        if let Some(output) = &output {
            output.discard();
        }
    };
    let (found, written) = interrupts.run(|| dump.write_all().map_err(|e| chain(&*e)), undo)??;
    drop(paused);
    if let Some(output) = output {
        output.finish()?;
    }
    let complete = found.is_complete() && written.tally.lost.is_empty();
    if args.json {
        let summary = report::json(ram, args, &found, written, start.elapsed());
        if to_stdout { write_json(LineWriter::new(io::stderr()), &summary)? } else { write_json(out, &summary)? }
    } else {
        written.warnings.iter().for_each(|warning| crate::say(warning));
        crate::say(&report::summary(&written, start.elapsed()));
        report::lost(&written.tally).for_each(|line| crate::say(&line));
    }
    Ok(complete)
}

/// Checks that the guest is paused, or that an option says what to do.
fn check_paused(ram: &Ram, args: &DumpArgs, source: &Source) -> Result<()> {
    let Ram::Guest(guest) = ram else { return Ok(()) };
    if args.live || args.pause || source.mock.is_some() {
        return Ok(());
    }
    let domid = guest.domid();
    match guest.memory().domain_info(domid)?.state {
        Some(DomainState::Running) => Err(format!(
            "domain {domid} is running: give --pause to pause it until the dump is written, or --live to copy it while \
             it runs, each frame at a different moment"
        )),
        None => Err(format!("cannot tell whether domain {domid} is running: pause it, and give --live")),
        Some(_) => Ok(()),
    }?;
    Ok(())
}

/// Frames that this process leaves mapped in a PV dom0 until it ends (see `worker`): 1 GiB, whose page tables take 2
/// MiB.
const LEFT_TO_EXIT: u64 = 1 << 18;

/// A dump that is being written.
pub(crate) struct Dump<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) args: &'a DumpArgs,
    pub(crate) source: &'a Source,
    /// `None`: standard output.
    pub(crate) output: Option<&'a Output>,
}

impl Dump<'_> {
    fn write_all(&self) -> Result<(Found, Written)> {
        // With --json the summary says all this.
        let find = if self.args.json { map::find } else { map::scan };
        let found = find(self.ram, self.args.search)?;
        let missing = found.missing;
        if missing > 0 && !self.args.json {
            crate::say(&format!("the domain owns {missing} more frames, which are not in its memory map"));
        }
        let written = self.write(&found)?;
        Ok((found, written))
    }

    /// Writes the frames that were found.
    pub(crate) fn write(&self, found: &Found) -> Result<Written> {
        self.write_frames(&found.ranges(), broken(found))
    }

    /// Writes these frames; `lost` are other frames, which cannot be read.
    fn write_frames(&self, ranges: &[Range<u64>], lost: Tally) -> Result<Written> {
        let is_stream = self.output.is_none() || self.args.compress.is_some();
        let layout = Layout::new(self.args.format, self.ram, ranges, is_stream)?;
        let mut sink = self.sink()?;
        sink.begin(layout.len).map_err(|e| self.too_long(&layout, &e))?;
        sink.bytes(0, &layout.head)?;
        let mut tally = self.copy(&layout, &mut *sink)?;
        if tally.frames() != layout.frames() {
            return Err("not every frame was accounted for: this is a bug".into());
        }
        tally.add(lost);
        let doubt = layout.write_late(self.ram, &tally, &mut *sink)?;
        let warnings = doubt.into_iter().chain(self.padded_pages()).collect();
        let bytes = sink.end(layout.len)?;
        if let Some(output) = self.output {
            output.sync()?;
        }
        Ok(Written { tally, bytes, warnings })
    }

    /// Returns a warning if the dump that is read has only a part of some pages.
    fn padded_pages(&self) -> Option<String> {
        let Ram::Dump(image) = self.ram else { return None };
        let pages = image.partial_pages();
        (pages > 0).then(|| {
            format!(
                "of {} only a part is in the dump that was read: zeros were written for the rest",
                count(pages, "page")
            )
        })
    }

    /// Returns the error for a dump whose length a file system or a limit does not allow.
    fn too_long(&self, layout: &Layout, error: &io::Error) -> String {
        let (name, len) = (self.name(), layout.len);
        let advice = match layout.format {
            Format::Raw if layout.frames() < len / FRAME => {
                "--format elf, lime or xen leaves out the addresses without RAM; else write it to another file system, or \
                 raise the limit (ulimit -f)"
            }
            _ => "write it to another file system, or raise the limit (ulimit -f)",
        };
        format!("cannot write {name}: it would have {len} bytes: {error}; {advice}")
    }

    fn sink(&self) -> Result<Box<dyn Sink>> {
        let name = self.name();
        let file = match self.output {
            Some(output) => output.file()?,
            None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        };
        Ok(match (self.args.compress, self.output) {
            (Some(Compression::Zstd), _) => Box::new(Stream::zstd(file, name)?),
            (None, Some(_)) => Box::new(SparseFile { file, name }),
            (None, None) => Box::new(Stream::plain(file, name)),
        })
    }

    fn name(&self) -> String {
        match self.output {
            Some(_) => self.args.out.display().to_string(),
            None => "standard output".to_owned(),
        }
    }

    fn copy(&self, layout: &Layout, sink: &mut dyn Sink) -> Result<Tally> {
        let progress = Progress::new("copying", layout.frames())?;
        let done = AtomicU64::new(0);
        let copied = |tally: &Tally| {
            let frames = tally.frames();
            progress.set(done.fetch_add(frames, Ordering::Relaxed) + frames);
        };
        let several = self.output.filter(|_| self.args.compress.is_none());
        let way = match (self.args.copy_by, several) {
            (Some(CopyBy::Threads | CopyBy::Workers), None) => {
                return Err("a stream is written by one process: give --copy-by single, or leave it out".into());
            }
            (Some(way), _) => way,
            // The fastest in both kinds of dom0 (docs/performance.md; `tests/xen/run pv --lane speed`).
            (None, _) => CopyBy::Single,
        };
        let Some(output) = several.filter(|_| way != CopyBy::Single) else {
            return self.copy_alone(layout, sink, copied);
        };
        for part in &layout.parts {
            layout.write_header(part, sink)?;
        }
        let copy_share = |parts: Vec<Part>| {
            let find_notes = layout.has_notes();
            let (file, name) = (output.path_to_open(), self.name());
            if way == CopyBy::Workers {
                let domid = self.ram.domid();
                return worker::employ(self.source, domid, &Job { file, name, parts, find_notes }, copied);
            }
            let file = OpenOptions::new().write(true).open(&file)?;
            copy_all(self.ram, &parts, find_notes, &mut SparseFile { file, name }, copied, drop)
        };
        Ok(parallel::copy_shares(layout, |parts| copy_share(parts).map_err(|e| chain(&*e)))?)
    }

    fn copy_alone(&self, layout: &Layout, sink: &mut dyn Sink, copied: impl Fn(&Tally)) -> Result<Tally> {
        let mut all = Tally::default();
        let is_in_pv_dom0 = self.ram.guest().is_some_and(|guest| guest.memory().host_kind() == HostKind::Pv);
        let ends_soon = self.source.mock.is_none() && is_in_pv_dom0;
        let mut left = if ends_soon { LEFT_TO_EXIT } else { 0 };
        let mut done_with = |window: Window<'_>| {
            if let Some(rest) = left.checked_sub(window.pfns.end - window.pfns.start) {
                left = rest;
                #[expect(clippy::mem_forget, reason = "the end of the process unmaps it at less cost than munmap")]
                std::mem::forget(window);
            }
        };
        for part in &layout.parts {
            layout.write_header(part, sink)?;
            all.add(copy_all(self.ram, std::slice::from_ref(part), layout.has_notes(), sink, &copied, &mut done_with)?);
        }
        Ok(all)
    }
}

/// Returns the tally of the frames that have turned out to be broken, which are not copied.
pub(crate) fn broken(found: &Found) -> Tally {
    let lost = found.of_kind(FrameKind::Broken).map(|pfns| Lost { pfns, errno: libc::EHWPOISON });
    Tally { lost: lost.collect(), ..Tally::default() }
}

fn copy_all<'a>(
    ram: &'a Ram,
    parts: &[Part],
    find_notes: bool,
    sink: &mut dyn Sink,
    copied: impl Fn(&Tally),
    mut done_with: impl FnMut(Window<'a>),
) -> Result<Tally> {
    let mut all = Tally::default();
    for part in parts {
        copy_part(ram, part, find_notes, sink, |tally, window| {
            copied(&tally);
            all.add(tally);
            done_with(window);
            Ok(())
        })?;
    }
    Ok(all)
}
