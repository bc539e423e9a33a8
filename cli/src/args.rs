//! The arguments of the command line. `usage` completes them: what depends on several arguments, and the help.

use std::path::{Path, PathBuf};

use clap::{ColorChoice, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

use crate::number::number;
use crate::symbols::{Address, address};

/// Inspect, search, compare and dump the RAM of Xen guests
///
/// xenmap runs in dom0 as root, and does not need libxc. With --mock it runs anywhere: a file becomes the RAM of a
/// simulated guest. With --dump it looks at a dump in place of a guest.
///
/// Addresses are the guest's physical addresses; for a PV guest, its pseudo-physical ones. Addresses and sizes are decimal,
/// hexadecimal (0x1000), or have a binary unit (64K, 1M, 2G, 1T).
#[derive(Debug, Parser)]
#[command(name = "xenmap", version, max_term_width = 100)]
pub(crate) struct Args {
    /// When to use colors
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", display_order = 100)]
    pub(crate) color: ColorChoice,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The arguments of the process that `dump --copy-by workers` starts. It is no [`Command`], so the help does not list it.
#[derive(Debug, Parser)]
#[command(name = "xenmap worker")]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) source: Source,
}

/// The guest, or the dump. `usage` checks which of these go together, since clap checks before it propagates global arguments.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Guest options")]
pub(crate) struct Source {
    /// Use this domain of the host, by its number or name
    ///
    /// For a domain whose name is a number, write name:17.
    #[arg(long, global = true, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Simulate a guest with this file as its RAM; Xen is not needed
    ///
    /// The file is raw RAM: the offset of a byte is its address, and holes in the file are holes in the RAM. The file is
    /// never changed.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) mock: Option<PathBuf>,
    /// Treat the --mock file as raw RAM even if it looks like another format
    ///
    /// Without this option, files that look like a dump in another format or like a compressed file are refused.
    #[arg(long, global = true)]
    pub(crate) mock_raw: bool,
    /// Set the kind of the simulated guest
    #[arg(long, global = true, value_name = "KIND", default_value = "pvh")]
    pub(crate) mock_kind: MockKind,
    /// Use this dump in place of a guest
    ///
    /// It is a dump in any format that `diff` reads. Do not write to it or truncate it meanwhile: that can end the command
    /// with SIGBUS.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// Treat the --dump file as raw RAM even if it looks like another format
    #[arg(long, global = true)]
    pub(crate) dump_raw: bool,
    /// Access the memory of a populate-on-demand guest even if that may crash the guest
    ///
    /// Until the balloon driver of such a guest has started, Xen may not have memory for all of its pages, and accessing
    /// a page without memory crashes the guest. Without this option, xenmap then refuses to access any.
    #[arg(long, global = true)]
    pub(crate) pod_populate: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum MockKind {
    Pv,
    Pvh,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the domains of the host
    ///
    /// The list includes dom0 and dying domains. A dash stands for a value that is not known.
    Domains {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show information about a guest and its host, or about a dump
    ///
    /// A dash stands for a value that is not known. The RAM of a dump is not searched for information.
    Info {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show where a guest's RAM is
    ///
    /// Each line is a range of addresses of one kind: ram, page table (of a PV guest; it can only be read), paged out, broken
    /// (it cannot be read), special (it is Xen's, such as the grant table), or ballooned out (of a PV guest, without RAM).
    /// A hole of a raw dump is RAM with zeros, or no RAM.
    ///
    /// With --virtual, it shows what page tables map: ranges of virtual addresses, the physical address that each leads to,
    /// the size of its pages, and the rights: r (read), w (write), x (execute), u (programs have these rights, too).
    Map {
        #[command(flatten)]
        search: SearchArgs,
        #[command(flatten)]
        space: SpaceArgs,
        /// Print a JSON object; with --virtual, one for each range
        #[arg(long)]
        json: bool,
    },
    /// Show bytes of a guest's memory, as `hexdump -vC` does
    ///
    /// A range that cannot be read takes one line: its first address, two dashes, its size and the reason. If no byte at
    /// all can be read, that is an error.
    Read {
        /// Address of the first byte: 4096, 0x1000, 4K ...; with --symbols also a symbol, or symbol+0x10
        #[arg(value_parser = address)]
        address: Address,
        /// Number of bytes: 64, 0x40, 1M ...
        #[arg(value_parser = number)]
        len: u64,
        #[command(flatten)]
        space: SpaceArgs,
        #[command(flatten)]
        symbols: SymbolArgs,
        /// Write the bytes themselves, to a file or a pipe
        ///
        /// If any of them cannot be read, nothing is written, and that is an error.
        #[arg(long)]
        binary: bool,
        /// Print a JSON object
        ///
        /// Its parts are the ranges that could be read, each with its bytes as hexadecimal digits ("hex"), and those that
        /// could not, each with the reason ("error").
        #[arg(long, conflicts_with = "binary")]
        json: bool,
    },
    /// Translate addresses to physical addresses, and to the frames that Xen knows them by
    ///
    /// For a PV guest, the frame is a machine frame (mfn); for other guests, it is one of the guest's own (gfn). An error
    /// is printed for each address without a translation. Whether there is RAM at an address is not checked.
    Translate {
        /// Addresses: 4096, 0x1000, 4K ...; with --symbols also symbols, or symbol+0x10
        #[arg(value_parser = address, required = true, value_name = "ADDRESS")]
        addresses: Vec<Address>,
        #[command(flatten)]
        space: SpaceArgs,
        #[command(flatten)]
        symbols: SymbolArgs,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Change bytes of a guest's memory
    ///
    /// Asks before it writes to a guest that is not paused. A simulated guest cannot be changed: it ends with the command,
    /// so the change would be lost.
    Write {
        /// Address of the first byte: 4096, 0x1000, 4K ...; with --symbols also a symbol, or symbol+0x10
        #[arg(value_parser = address)]
        address: Address,
        #[command(flatten)]
        bytes: BytesArgs,
        #[command(flatten)]
        space: SpaceArgs,
        #[command(flatten)]
        symbols: SymbolArgs,
        /// Write without asking, even if the guest is running
        #[arg(long)]
        yes: bool,
    },
    /// Search a guest's RAM for bytes, and print the address of each match
    ///
    /// All patterns are searched for at the same time. If there are several, each match names its pattern. Matches can
    /// overlap, and can cross page borders.
    Search {
        #[command(flatten)]
        patterns: PatternArgs,
        #[command(flatten)]
        search: SearchArgs,
        /// Show each match with N bytes before and after it, as `read` does
        #[arg(long, value_name = "N", value_parser = number)]
        context: Option<u64>,
        /// Stop after this many matches, of all patterns together
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max: Option<u64>,
        /// Print a JSON object for each match, one per line
        #[arg(long)]
        json: bool,
    },
    /// Write a guest's RAM to a file or to standard output
    ///
    /// A guest that is running needs --pause or --live. The file appears when the dump is complete, and only its owner can
    /// read it. Pages that cannot be read are listed on stderr; in a raw or LiME dump they are zeros.
    Dump(DumpArgs),
    /// Compare two dumps, or a dump and a guest, page by page
    ///
    /// If one side has only a part of a page, the bytes that both have are compared, and the others are listed as only in
    /// OLD or only in NEW. The summary counts such a page once: as different if compared bytes differ, otherwise as only in
    /// OLD or only in NEW.
    ///
    /// Do not write to a dump or truncate it while it is being compared: that can end the command with SIGBUS.
    Diff {
        /// A dump: raw, ELF core, LiME, kdump, of AVML, or of `xl dump-core`; zstd-compressed or not
        ///
        /// A compressed dump is first unpacked to an unnamed file in the directory TMPDIR, by default /var/tmp.
        old: PathBuf,
        /// Another dump; without it, OLD is compared with the guest
        new: Option<PathBuf>,
        /// Treat a dump as raw even if it looks like another format
        #[arg(long, value_name = "WHICH")]
        raw: Option<RawDumps>,
        #[command(flatten)]
        search: SearchArgs,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Draw where a guest's RAM is, as a PNG image
    ///
    /// The image has a legend of its colors, and the addresses of its rows at the left.
    Picture {
        /// Image file to create; it must not exist
        out: PathBuf,
        #[command(flatten)]
        search: SearchArgs,
        /// Mark the pages that differ from this dump, in any format that `diff` reads
        ///
        /// Do not write to the dump or truncate it meanwhile: that can end the command with SIGBUS.
        #[arg(long, value_name = "DUMP")]
        since: Option<PathBuf>,
        /// Treat the dump as raw even if it looks like another format
        #[arg(long, requires = "since")]
        raw: bool,
    },
    /// Mount a directory whose files are dumps of a guest's RAM at the moment when they are read
    ///
    /// Read-only, and for the user who mounts it. The files are ram, ram.elf, ram.lime (as `dump --format` raw, elf and
    /// lime writes them), map.json and info.json. Where the RAM is, and the notes in ram.elf, are found out once, before
    /// mounting; mount again after the guest has got more memory or has booted another kernel. Pages that cannot be read
    /// are zeros.
    ///
    /// The command ends when it is interrupted, when the directory is unmounted, or when the guest is gone.
    Mount {
        /// Empty directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        search: SearchArgs,
    },
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
}

/// Which of two dumps are raw, whatever they look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RawDumps {
    Old,
    New,
    Both,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SearchArgs {
    /// Try every frame number; slow, but finds all memory that Xen lends to the guest
    ///
    /// By default, the search for RAM ends when it has found as many pages as the guest owns. The memory that Xen lends to
    /// the guest, such as its grant table, is then only found where it lies among RAM.
    #[arg(long)]
    pub(crate) thorough: bool,
    /// Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) search_limit: Option<u64>,
}

/// The address space of an address.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct SpaceArgs {
    /// Treat the address as virtual, and translate it with a vcpu's page tables
    #[arg(long)]
    pub(crate) r#virtual: bool,
    /// Use the page tables of this vcpu
    #[arg(long, value_name = "N", default_value_t = 0, requires = "virtual")]
    pub(crate) vcpu: u32,
    /// Use this page-table base instead of the vcpu's (CR3; on Arm TTBR0)
    ///
    /// For a PV guest it is a machine address. The format of the tables is the vcpu's; if that cannot be read, x86 tables are
    /// assumed to have four levels. A dump may lack the registers of vcpus; the default is then the tables of the Linux
    /// kernel whose note (VMCOREINFO) is in the dump.
    #[arg(long, visible_alias = "ttbr0", value_name = "ADDRESS", requires = "virtual", value_parser = number)]
    pub(crate) cr3: Option<u64>,
}

/// What names an address, besides numbers.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SymbolArgs {
    /// Take symbols of a Linux kernel as addresses, by this file: System.map, /proc/kallsyms, or an ISF of volatility3
    ///
    /// The kernel may have been moved since (KASLR). How far is known from its VMCOREINFO note, which is searched for in the
    /// RAM unless the dump has it.
    #[arg(long, value_name = "FILE", requires = "virtual")]
    pub(crate) symbols: Option<PathBuf>,
}

/// Bytes to write, given in one of these forms.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct BytesArgs {
    /// The bytes as text
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// The bytes as hexadecimal digits, such as "de ad be ef"
    #[arg(long, value_name = "DIGITS")]
    pub(crate) hex: Option<String>,
    /// The bytes as text in UTF-16 (little-endian), as Windows has it
    #[arg(long, value_name = "TEXT")]
    pub(crate) utf16: Option<String>,
}

/// Bytes to search for, in any of these forms.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct PatternArgs {
    /// Search for this text; can be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// Search for these bytes, such as "de ad ?? ef", where ? stands for any hexadecimal digit; can be repeated
    #[arg(long, value_name = "DIGITS")]
    pub(crate) hex: Vec<String>,
    /// Search for this text in UTF-16 (little-endian), as Windows has it; can be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) utf16: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// File to create, which must not exist; - for standard output
    pub(crate) out: PathBuf,
    /// Choose the file format
    #[arg(long, default_value = "raw")]
    pub(crate) format: Format,
    /// Compress the dump
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<Compression>,
    /// Let the guest run: its pages are copied at different moments
    #[arg(long, conflicts_with = "pause")]
    pub(crate) live: bool,
    /// Pause the guest until the dump is written
    #[arg(long)]
    pub(crate) pause: bool,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Choose how to copy to an uncompressed file [default: single]
    #[arg(long, value_name = "METHOD")]
    pub(crate) copy_by: Option<CopyBy>,
    /// Print the summary as a JSON object; on stderr if the dump goes to standard output
    #[arg(long)]
    pub(crate) json: bool,
}

impl DumpArgs {
    pub(crate) fn is_to_stdout(&self) -> bool {
        self.out == Path::new("-")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Sparse file with each page at the offset that is its address; missing pages look like zeros
    Raw,
    /// ELF core, for gdb, drgn and volatility3
    Elf,
    /// LiME, for volatility3
    Lime,
    /// The format of `xl dump-core`
    Xen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyBy {
    /// In one thread
    Single,
    /// In several threads
    Threads,
    /// In several processes
    Workers,
}
