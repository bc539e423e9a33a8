//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use xenmap::Domid;

/// Looks at a guest's RAM, on Xen or on a simulated host
// The last setting: without a command there is an error in one line, not the whole help.
#[derive(Debug, Parser)]
#[command(name = "guest_ram", arg_required_else_help = false)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Whose RAM it is: exactly one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// A file that becomes the RAM of a guest on a simulated host; its holes are holes in the guest
    #[arg(long, value_name = "FILE")]
    pub(crate) mock: Option<PathBuf>,
    /// The number of a guest of the Xen host that this runs on
    #[arg(long, value_name = "DOMID")]
    pub(crate) domain: Option<Domid>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is known of the guest and its host
    Info {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Shows bytes of the guest's RAM, as `hexdump -vC` does
    Read {
        /// The guest-physical address of the first byte (of a PV guest: its machine address), such as 4096 or 0x1000
        #[arg(value_parser = number)]
        gpa: u64,
        /// How many bytes, such as 64 or 0x40
        #[arg(value_parser = number)]
        len: u64,
    },
    /// Writes the guest's RAM to a sparse file, in which it lies as in the guest; what is no RAM is a hole
    Dump {
        /// The file, which must not exist
        out: PathBuf,
    },
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| format!("{e} (give a decimal number, or a hexadecimal one after 0x)"))
}
