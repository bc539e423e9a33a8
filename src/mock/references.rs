//! Counts references by the kernel's own tables.

#![expect(unsafe_code, reason = "asks the kernel whether two processes share their memory")]

use std::collections::BTreeMap;
use std::fs;

use super::config::Dom0;
use super::machine::Host;
use super::memory::MemoryFile;
use super::state::{Pte, State, Vma};
use crate::types::{FRAME_SIZE, Protection};

/// How often each page of the RAM file is mapped.
#[derive(Debug)]
pub(super) struct References {
    mapped: Vec<u32>,
    writable: Vec<u32>,
}

/// A mapping of one of the host's files in the kernel's list.
#[derive(Clone, Copy, Debug)]
struct Segment<'a> {
    start: usize,
    end: usize,
    offset: usize,
    /// For example `rw-s`.
    permissions: &'a str,
    file: &'a MemoryFile,
}

impl References {
    /// Returns how often a page is mapped.
    pub(super) fn of(&self, page: usize) -> usize {
        self.mapped.get(page).copied().unwrap_or(0) as usize
    }

    /// Returns how often a page is mapped for writing.
    pub(super) fn writable(&self, page: usize) -> usize {
        self.writable.get(page).copied().unwrap_or(0) as usize
    }

    /// Counts the mappings of this process and its children, and updates the state of this process.
    ///
    /// # Panics
    ///
    /// If a mapping is not as it was made.
    pub(super) fn count(host: &Host, state: &mut State) -> References {
        let mut references = References { mapped: vec![0; state.pages.len()], writable: vec![0; state.pages.len()] };
        let maps = fs::read_to_string("/proc/self/maps");
        let maps = maps.unwrap_or_else(|e| panic!("cannot count references: /proc/self/maps: {e}"));
        let segments: Vec<Segment<'_>> = parse(host, &maps).collect();
        reconcile(host, state, &segments);
        references.add(host, &segments);
        let us = std::process::id();
        for process in descendants(us) {
            // Asked first: a child that shares our memory may get its own at any time, but not the reverse.
            let shares = shares_memory(us, process);
            let maps = read_maps(process);
            let mut theirs: Vec<Segment<'_>> = parse(host, &maps).collect();
            match shares {
                Some(true) => continue,
                Some(false) => {}
                // A mapping at the same place counts as ours: a child with its own memory has not inherited it.
                None => theirs.retain(|segment| !segments.iter().any(|ours| ours.is_same(segment))),
            }
            references.add(host, &theirs);
        }
        references
    }

    fn add(&mut self, host: &Host, segments: &[Segment<'_>]) {
        for segment in segments.iter().filter(|segment| segment.file.inode == host.ram.inode) {
            let first = segment.offset / FRAME_SIZE;
            let pages = first..first + (segment.end - segment.start) / FRAME_SIZE;
            for page in pages {
                self.mapped[page] += 1;
                self.writable[page] += u32::from(segment.permissions.as_bytes()[1] == b'w');
            }
        }
    }
}

/// Compares the state with the kernel's tables. Removes mappings that are gone, and panics if one is not as it was
/// made.
fn reconcile(host: &Host, state: &mut State, segments: &[Segment<'_>]) {
    for &(start, len) in &state.taken_ranges {
        let there = overlapping(segments, start, start + len).iter();
        let left: usize = there.map(|segment| segment.end.min(start + len) - segment.start.max(start)).sum();
        assert_eq!(left, len, "addresses at {start:#x} were unmapped after another thread had mapped them");
    }
    let mut known: BTreeMap<usize, usize> = state.leaks.iter().map(|&(addr, len)| (addr, addr + len)).collect();
    let vmas = std::mem::take(&mut state.vmas);
    for (start, vma) in vmas {
        let end = start + vma.ptes.len() * FRAME_SIZE;
        let inside = overlapping(segments, start, end);
        if inside.is_empty() {
            host.account_unmap(state, &vma);
            continue;
        }
        compare(host, start, &vma, inside);
        known.insert(start, end);
        state.vmas.insert(start, vma);
    }
    for segment in segments.iter().filter(|segment| segment.file.inode == host.ram.inode) {
        let mut at = segment.start;
        while at < segment.end {
            let holder = known.range(..=at).next_back().filter(|&(_, &end)| at < end);
            let Some((_, &end)) = holder else {
                panic!(
                    "foreign frames are mapped at {at:#x}, where none were before: a mapping was moved (mremap), \
                     which loses its frames on Xen"
                );
            };
            at = end;
        }
    }
}

/// Returns the segments that overlap a range. `segments` is sorted.
fn overlapping<'a, 's>(segments: &'s [Segment<'a>], start: usize, end: usize) -> &'s [Segment<'a>] {
    let first = segments.partition_point(|segment| segment.end <= start);
    let count = segments[first..].partition_point(|segment| segment.start < end);
    &segments[first..first + count]
}

/// Checks that each page of a mapping is as it was made.
fn compare(host: &Host, start: usize, vma: &Vma, segments: &[Segment<'_>]) {
    for (first, last, pte) in vma.runs() {
        let (mut at, end) = (start + first * FRAME_SIZE, start + last * FRAME_SIZE);
        let access = match vma.protection {
            Protection::ReadOnly => "r-",
            Protection::ReadWrite => "rw",
        };
        let (file, offset, shared) = match pte {
            Pte::None => (&host.empty, None, 's'),
            Pte::Page(page) => (&host.ram, Some(page * FRAME_SIZE), 's'),
            Pte::Junk => (&host.junk, None, 'p'),
            Pte::Fatal(page) => (&host.fatal, Some(page * FRAME_SIZE), 's'),
        };
        while at < end {
            let next = segments.get(segments.partition_point(|segment| segment.end <= at));
            let Some(segment) = next.filter(|segment| segment.start <= at) else {
                panic!(
                    "a part of the mapping at {start:#x} was unmapped ({at:#x}): on Xen, the kernel refuses that, or \
                     frees frames twice"
                );
            };
            let found = segment.offset + (at - segment.start);
            if segment.file.inode != file.inode
                || offset.is_some_and(|offset| found != offset + (at - start - first * FRAME_SIZE))
            {
                panic!(
                    "the mapping at {start:#x} has other memory at {at:#x}: it was moved (mremap) or partly replaced"
                );
            }
            let permissions = segment.permissions;
            assert!(
                permissions.starts_with(access) && permissions.ends_with(shared),
                "the mapping at {start:#x} is {permissions} and was made {access}-{shared}: mprotect of foreign \
                 frames is undefined on Xen"
            );
            at = segment.end.min(end);
        }
    }
}

/// Reads the kernel's list of a child's mappings. It is empty if the child is gone, or now runs a program that we may
/// not inspect (which no longer maps anything of ours).
fn read_maps(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_else(|e| {
        log::debug!("the mappings of child {process} are not counted: {e}");
        String::new()
    })
}

/// Parses the lines for the host's files: `start-end permissions offset major:minor inode name`.
fn parse<'a>(host: &'a Host, maps: &'a str) -> impl Iterator<Item = Segment<'a>> {
    maps.lines().filter(|line| line.contains("/memfd:xenmap-")).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let offset = hex(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = nix::sys::stat::makedev(hex(major)? as u64, hex(minor)? as u64);
        let inode = fields.next()?.parse().ok()?;
        let files = [&host.ram, &host.empty, &host.junk, &host.fatal];
        let file = files.into_iter().find(|f| (f.device, f.inode) == (device, inode))?;
        Some(Segment { start: hex(start)?, end: hex(end)?, offset, permissions, file })
    })
}

fn hex(digits: &str) -> Option<usize> {
    usize::from_str_radix(digits, 16).ok()
}

/// Returns the children of a process, their children, and so on.
fn descendants(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The name in parentheses may hold anything; after it come the state and the parent.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = children.remove(&of).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(process).unwrap_or_default());
        next += 1;
    }
    found
}

/// Returns whether a child runs in this process's memory, as between vfork and exec: then its mappings are ours. `None`
/// if the kernel does not tell (no `CONFIG_KCMP`, or not permitted).
fn shares_memory(process: u32, child: u32) -> Option<bool> {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: takes only numbers. It returns 0 if the memory is the same, and 1 or 2 if not.
    match unsafe { libc::syscall(libc::SYS_kcmp, process, child, KCMP_VM, 0, 0) } {
        0 => Some(true),
        1.. => Some(false),
        _ => None,
    }
}

impl Segment<'_> {
    fn is_same(&self, other: &Segment<'_>) -> bool {
        (self.start, self.end, self.offset) == (other.start, other.end, other.offset)
    }
}

impl Host {
    /// Counts all references. Frees unreferenced pages that their owner has given up, and dying domains without pages.
    pub(super) fn reclaim(&self, state: &mut State) -> References {
        let references = References::count(self, state);
        // A child does not see all references, so it frees nothing.
        if !self.is_in_creator() {
            return references;
        }
        let mut freed = false;
        for (number, page) in state.pages.iter_mut().enumerate() {
            if page.owner.is_some() && !page.allocated && references.of(number) == 0 {
                page.owner = None;
                freed = true;
                if let Err(e) = self.ram.scrub(number) {
                    panic!("the mock cannot scrub a free frame: {e}");
                }
            }
        }
        if freed {
            self.update_machine_to_phys(state);
        }
        let owners: std::collections::BTreeSet<u16> = state.pages.iter().filter_map(|page| page.owner).collect();
        state.domains.retain(|domid, domain| !domain.dying || owners.contains(domid));
        references
    }

    /// Adds what unmapping a mapping costs on Xen.
    pub(super) fn account_unmap(&self, state: &mut State, vma: &Vma) {
        if !vma.populated {
            return;
        }
        match self.config.dom0 {
            Dom0::Pv => state.hypercalls.unmap_pv(vma.mapped()),
            Dom0::Pvh | Dom0::Arm => state.hypercalls.translate(vma.ptes.len()),
        }
    }
}
