//! Copying by separate processes.
//!
//! In a PV dom0, the end of a process gives back the references of its mappings at a half to a quarter of the cost of
//! munmap: the kernel unpins the page tables first, and Xen drops the references of all entries at once. Each process
//! also has its own lock on its mappings. So with `--copy-by workers` the tool runs itself again (`xenmap worker
//! --domain N`) for each share. A simulated guest is created again in each worker, from the same file. Starting a process
//! has a cost too: in measurements, one process that leaves its mappings to its own end was faster.
//!
//! The worker reads a [`Job`] from its standard input and writes [`Report`]s to its standard output, a line of JSON
//! each. It reports errors on stderr, as the tool does.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use xenmap::{Domid, HostKind};

use super::copy::{Tally, copy_part};
use super::interrupt;
use super::layout::Part;
use super::sink::SparseFile;
use crate::Result;
use crate::args::Source;
use crate::ram::Ram;

/// Bytes that are read of a worker's stderr.
const MAX_COMPLAINT: u64 = 4096;

/// A worker's task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The path at which a worker can open the file.
    pub(crate) file: PathBuf,
    /// The name of the file in messages.
    pub(crate) name: String,
    pub(crate) parts: Vec<Part>,
    /// Whether to look for the kernel's note.
    pub(crate) find_notes: bool,
}

/// A line of a worker's output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It has copied more frames.
    Copied(Tally),
    /// It has copied all frames.
    Done,
}

/// Makes `xenmap worker` end when its parent does. Call this first.
pub(crate) fn begin() -> Result<()> {
    interrupt::end_with_parent()?;
    // Fails if the parent is gone already.
    send(&mut io::stdout().lock(), &Report::Copied(Tally::default()))
}

/// Does the job of `xenmap worker`. Returns only on failure.
pub(crate) fn work(ram: &Ram) -> Result<()> {
    let job: Job = serde_json::from_reader(io::stdin().lock()).map_err(|e| format!("not a worker's job: {e}"))?;
    let file = OpenOptions::new().write(true).open(&job.file);
    let file = file.map_err(|e| format!("cannot write {}: {e}", job.name))?;
    let mut sink = SparseFile { file, name: job.name };
    let mut out = io::stdout().lock();
    let keeps = ram.guest().is_some_and(|guest| guest.memory().host_kind() == HostKind::Pv);
    let mut kept = Vec::new();
    for part in &job.parts {
        copy_part(ram, part, job.find_notes, &mut sink, |tally, window| {
            // In a PV dom0 the end of the process unmaps at less cost. In others it does not, and a mapping may take
            // memory of this domain.
            if keeps {
                kept.push(window);
            }
            send(&mut out, &Report::Copied(tally))
        })?;
    }
    send(&mut out, &Report::Done)?;
    // This drops nothing, above all not the mappings.
    std::process::exit(0)
}

fn send(out: &mut impl Write, report: &Report) -> Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    // Fails if the parent is gone, and then the worker ends.
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// Runs a worker for a job, and calls `copied` as it makes progress.
pub(crate) fn employ(source: &Source, domid: Option<Domid>, job: &Job, copied: impl FnMut(&Tally)) -> Result<Tally> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("worker");
    if let Some(file) = &source.mock {
        // In one, since the name may begin with a dash.
        let mut mock = OsString::from("--mock=");
        mock.push(file);
        command.arg(mock);
        if source.mock_raw {
            command.arg("--mock-raw");
        }
        if let Some(kind) = source.mock_kind.to_possible_value() {
            command.args(["--mock-kind", kind.get_name()]);
        }
    } else {
        // By its number: another domain may get its name meanwhile.
        let domid = domid.ok_or("workers copy guests only, not dumps")?;
        command.args(["--domain", &domid.to_string()]);
    }
    employ_as(command, job, copied)
}

/// Does the same with any program as the worker.
pub(crate) fn employ_as(mut command: Command, job: &Job, copied: impl FnMut(&Tally)) -> Result<Tally> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut worker = Worker(command.spawn().map_err(|e| format!("cannot start a worker: {e}"))?);
    let (input, reports, complaints) = (worker.0.stdin.take(), worker.0.stdout.take(), worker.0.stderr.take());
    // A worker that is dead already does not read, and its exit status says more than this error.
    if let Some(input) = input {
        let _ = serde_json::to_writer(BufWriter::new(input), job);
    }
    let frames = job.parts.iter().map(Part::frames).sum();
    let tally = reports.map_or(Ok(None), |reports| receive(BufReader::new(reports), frames, copied));
    let mut complaint = Vec::new();
    if let Some(complaints) = complaints {
        complaints.take(MAX_COMPLAINT).read_to_end(&mut complaint)?;
    }
    let complaint = String::from_utf8_lossy(&complaint);
    let status = worker.0.wait()?;
    match tally? {
        Some(tally) if status.success() => Ok(tally),
        _ if complaint.is_empty() => Err(format!("a worker failed: {status}").into()),
        _ => Err(format!("a worker failed: {}", complaint.trim_start_matches("xenmap: ").trim_end()).into()),
    }
}

/// Returns what a worker has copied of `frames` frames; `None` if it did not finish.
fn receive(reports: impl BufRead, frames: u64, mut copied: impl FnMut(&Tally)) -> Result<Option<Tally>> {
    let mut all = Tally::default();
    for report in reports.lines() {
        let report = serde_json::from_str(&report?).map_err(|e| format!("a worker's report cannot be read: {e}"))?;
        match report {
            Report::Copied(tally) => {
                if !tally.is_at_most(frames - all.frames()) {
                    return Err("a worker has reported more frames than it was given".into());
                }
                copied(&tally);
                all.add(tally);
            }
            Report::Done => return Ok(Some(all)),
        }
    }
    Ok(None)
}

/// A process that is killed on drop.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Usually it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
