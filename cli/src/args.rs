//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

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
    /// Shows bytes of the guest's RAM, as `hexdump -vC` does
    Read {
        /// The address of the first byte, such as 4096 or 0x1000
        #[arg(value_parser = number)]
        address: u64,
        /// How many bytes, such as 64 or 0x40
        #[arg(value_parser = number)]
        len: u64,
        #[command(flatten)]
        space: SpaceArgs,
        /// The bytes themselves, for a pipe or a file
        #[arg(long)]
        binary: bool,
    },
    /// Changes bytes of the guest's RAM (not of a simulated guest's: they would be lost)
    Write {
        /// The address of the first byte, such as 4096 or 0x1000
        #[arg(value_parser = number)]
        address: u64,
        #[command(flatten)]
        bytes: BytesArgs,
        #[command(flatten)]
        space: SpaceArgs,
        /// Without asking, though the guest runs
        #[arg(long)]
        yes: bool,
    },
    /// Looks for bytes in all of the guest's RAM, and prints the address of each match
    Search {
        #[command(flatten)]
        bytes: BytesArgs,
        #[command(flatten)]
        search: SearchArgs,
        /// Stop after so many matches
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max: Option<u64>,
        /// As JSON, an object a line
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
        /// Print a JSON object
        #[arg(long)]
        json: bool,
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

/// In which address space an address is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SpaceArgs {
    /// The address is a virtual one, of what a vcpu runs
    #[arg(long)]
    pub(crate) r#virtual: bool,
    /// Which vcpu
    #[arg(long, value_name = "N", default_value_t = 0, requires = "virtual")]
    pub(crate) vcpu: u32,
    /// The page-table base to use instead of the vcpu's (its CR3, on Arm TTBR0; of a PV guest a machine address); its
    /// tables are made as the vcpu's are, or on x86 have four levels if that cannot be learned
    #[arg(long, visible_alias = "ttbr0", value_name = "ADDRESS", requires = "virtual", value_parser = number)]
    pub(crate) cr3: Option<u64>,
}

/// Bytes, in one of these forms.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct BytesArgs {
    /// As text
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// As hexadecimal digits, such as "de ad be ef"; in a search, ? stands for any digit
    #[arg(long, value_name = "DIGITS")]
    pub(crate) hex: Option<String>,
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
    /// Print the summary as a JSON object; on stderr if the dump goes to standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
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
