//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes: 0; 1 if search finds nothing or diff a difference; 2 if it could not be done; 3 if a dump lacks frames that
should be there (stderr lists them; in a raw or LiME dump they are zeros), or if the search for RAM was stopped by
--search-limit; 128 and the signal if a dump was interrupted";

/// Looks at a guest's RAM, on Xen or on a simulated host
// The last setting: without a command there is an error in one line, not the whole help.
#[derive(Debug, Parser)]
#[command(name = "xenmap", version, arg_required_else_help = false, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Whose RAM it is: one of these, for all commands but `domains`, `diff` of two files and `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// A file that becomes the RAM of a guest on a simulated host: raw, each frame at its address; its holes are holes in
    /// the guest, and it is not changed
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    pub(crate) mock: Option<PathBuf>,
    /// FILE is raw RAM, though it begins as something else does (an ELF core, a compressed file ...)
    #[arg(long, requires = "mock")]
    pub(crate) mock_raw: bool,
    /// What kind of guest to simulate
    #[arg(long, value_name = "KIND", default_value = "pvh", requires = "mock")]
    pub(crate) mock_kind: MockKind,
    /// The number or the name of a guest of the Xen host that this runs on; name:17 if its name is a number
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Touch the memory of a populate-on-demand guest even if Xen may crash the guest when its memory runs out
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
    /// Lists the domains of the host
    Domains {
        /// As a JSON array, an object for each
        #[arg(long)]
        json: bool,
    },
    /// Shows what is known of the guest and its host
    Info {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Shows where the guest's RAM is, and what kind
    Map {
        #[command(flatten)]
        search: SearchArgs,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Shows bytes of the guest's memory, as `hexdump -vC` does
    ///
    /// A range that cannot be read, such as one without RAM, takes one line, with two dashes after its first address.
    /// The exit code is then 3. If no byte can be read, the command fails.
    Read {
        /// The address of the first byte, such as 4096 or 0x1000
        #[arg(value_parser = number)]
        address: u64,
        /// The number of bytes, such as 64 or 0x40
        #[arg(value_parser = number)]
        len: u64,
        #[command(flatten)]
        space: SpaceArgs,
        /// Write the bytes themselves, for a pipe or a file; fails before it writes anything if one cannot be read
        #[arg(long)]
        binary: bool,
        /// Print one JSON object, whose "parts" are the ranges that could be read ("hex") or not ("error")
        #[arg(long, conflicts_with = "binary")]
        json: bool,
    },
    /// Shows what an address leads to: the physical address, and the frame as Xen numbers it
    ///
    /// An error is printed for each address without translation, and the exit code is then 2. Whether there is RAM at a
    /// physical address is not checked.
    Translate {
        /// The addresses, such as 4096 or 0x1000
        #[arg(value_parser = number, required = true, value_name = "ADDRESS")]
        addresses: Vec<u64>,
        #[command(flatten)]
        space: SpaceArgs,
        /// Print a JSON array with an object for each address
        #[arg(long)]
        json: bool,
    },
    /// Changes bytes of the guest's memory; refuses to change a simulated guest's, which would be lost
    Write {
        /// The address of the first byte, such as 4096 or 0x1000
        #[arg(value_parser = number)]
        address: u64,
        #[command(flatten)]
        bytes: BytesArgs,
        #[command(flatten)]
        space: SpaceArgs,
        /// Do not ask, even if the guest is running
        #[arg(long)]
        yes: bool,
    },
    /// Searches all of the guest's RAM for bytes, and prints the physical address of each match
    ///
    /// Give as many patterns as you like: they are searched for at the same time, and each match names its pattern.
    Search {
        #[command(flatten)]
        patterns: PatternArgs,
        #[command(flatten)]
        search: SearchArgs,
        /// Show the bytes of each match, and N bytes before and after it, as `read` does
        #[arg(long, value_name = "N", value_parser = number)]
        context: Option<u64>,
        /// Stop after N matches, of all patterns together
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max: Option<u64>,
        /// Print a JSON object for each match, one a line
        #[arg(long)]
        json: bool,
    },
    /// Writes the guest's RAM to a file, or to standard output
    Dump(DumpArgs),
    /// Compares two dumps, or a dump and the guest, page by page; exit code 1 if they differ
    ///
    /// Of a page that one of them has only in part, the bytes that both have are compared, and those that only one has
    /// are shown as such. In the last line it counts once: as different if bytes differ, else as only in OLD or only in
    /// NEW if bytes are.
    ///
    /// Make sure that nothing writes to a dump or truncates it meanwhile: that may end the tool with SIGBUS.
    Diff {
        /// A dump: raw, an ELF core, a lime file, or what `xl dump-core` writes; also compressed with zstd (it is
        /// decompressed into a nameless file in the folder TMPDIR, or in /var/tmp if that is not set)
        old: PathBuf,
        /// Another; without it, the guest that --domain or --mock names
        new: Option<PathBuf>,
        /// Which dump is raw, though it begins as something else does
        #[arg(long, value_name = "WHICH")]
        raw: Option<RawDumps>,
        #[command(flatten)]
        search: SearchArgs,
    },
    /// Draws where the guest's RAM is, as a PNG
    Picture {
        /// The file, which must not exist
        out: PathBuf,
        #[command(flatten)]
        search: SearchArgs,
        /// A dump, as `diff` takes it: pages that have changed since are shown. Make sure that nothing writes to it or
        /// truncates it meanwhile: that may end the tool with SIGBUS
        #[arg(long, value_name = "DUMP")]
        since: Option<PathBuf>,
        /// The dump is raw, though it begins as something else does
        #[arg(long, requires = "since")]
        raw: bool,
    },
    /// Prints a script that completes this tool's arguments in a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Copies a share of a dump (`dump` starts this itself)
    #[command(hide = true)]
    Worker,
}

/// Which of two dumps are raw, whatever they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RawDumps {
    Old,
    New,
    Both,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SearchArgs {
    /// Try every frame number, also where Xen says that there is no RAM: slow, but finds what Xen lends to the guest
    #[arg(long)]
    pub(crate) thorough: bool,
    /// Stop looking for RAM after so many seconds in which none was found; 0 for no limit [default: 60, with
    /// --thorough 0]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) search_limit: Option<u64>,
}

/// The address space of an address.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SpaceArgs {
    /// Take the address as a virtual one, and use the page tables of a vcpu
    #[arg(long)]
    pub(crate) r#virtual: bool,
    /// The number of the vcpu
    #[arg(long, value_name = "N", default_value_t = 0, requires = "virtual")]
    pub(crate) vcpu: u32,
    /// The page-table base to use instead of the vcpu's: a CR3, or on Arm a TTBR0; for a PV guest a machine address.
    /// The paging mode is the vcpu's or, on x86 if that is not known, the one with four levels
    #[arg(long, visible_alias = "ttbr0", value_name = "ADDRESS", requires = "virtual", value_parser = number)]
    pub(crate) cr3: Option<u64>,
}

/// Bytes to write, in one of these forms.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct BytesArgs {
    /// Text, as UTF-8
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// Hexadecimal digits, such as "de ad be ef"
    #[arg(long, value_name = "DIGITS")]
    pub(crate) hex: Option<String>,
    /// Text, as UTF-16 (little-endian), which Windows uses
    #[arg(long, value_name = "TEXT")]
    pub(crate) utf16: Option<String>,
}

/// Bytes to search for, in any of these forms.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct PatternArgs {
    /// Text, as UTF-8; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// Hexadecimal digits, such as "de ad ?? ef", where ? stands for any digit; may be given several times
    #[arg(long, value_name = "DIGITS")]
    pub(crate) hex: Vec<String>,
    /// Text, as UTF-16 (little-endian), which Windows uses; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) utf16: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// The file, which must not exist; - for standard output
    pub(crate) out: PathBuf,
    /// How the file is made
    #[arg(long, default_value = "raw")]
    pub(crate) format: Format,
    /// Compress it
    #[arg(long, value_name = "METHOD")]
    pub(crate) compress: Option<Compression>,
    /// The guest goes on running: the frames are of different moments
    #[arg(long, conflicts_with = "pause")]
    pub(crate) live: bool,
    /// The guest stands still until the dump is written, and then runs again
    #[arg(long)]
    pub(crate) pause: bool,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// How to copy to an uncompressed file; by this process alone unless said otherwise, which was the fastest where it
    /// was measured
    #[arg(long, value_name = "WAY")]
    pub(crate) copy_by: Option<CopyBy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Each frame at its address, sparse; what is no RAM cannot be told from zeros
    Raw,
    /// An ELF core, which gdb, drgn and volatility3 read
    Elf,
    /// What the kernel module lime.ko writes, which volatility3 reads
    Lime,
    /// What xl dump-core writes, without the registers of vcpus
    Xen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyBy {
    /// By this process alone
    Single,
    /// By threads of this process
    Threads,
    /// By short-lived processes
    Workers,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("{e} (give a decimal number, or a hexadecimal one after 0x)"))
}
