//! A device model for a guest of Xen, or of a simulated host: a disk (virtio-blk) on PCI that serves a file.
//!
//!     cargo run --release --example device_model --features vm-memory
//!     device_model --domain DOMID --image FILE [--read-only] [--beside-qemu] [--server FILE]
//!
//! Without `--domain`, it needs no Xen: a guest of a simulated host finds the disk by PCI, and its driver checks every
//! answer. With `--domain`, it serves a guest of the local Xen host (as root in dom0). Only the handle differs.
//!
//! # On Xen
//!
//! Create the guest paused (`xl create -p`), start this program, wait for its line "serving domain …", and unpause the
//! guest. The program ends when the guest is gone.
//!
//! A PVH guest has no QEMU. The program also serves a host bridge (00:00.0) and the port by which the guest selects
//! registers; the disk is 00:01.0. Without ACPI tables for it, Linux finds this bus only if its command line has
//! `pci=conf1,noacpi,noearly`. With `--beside-qemu`, for an HVM guest, the program serves only the disk, 00:06.0.
//!
//! There are no interrupt pins: the driver must use MSI-X, as Linux does, or poll, as `SeaBIOS` does.
//!
//! # Restart
//!
//! If the program is killed, its server stays in Xen, and the guest's processors wait for it. A program with
//! `--server FILE` that is started again with the same options adopts the server, and the guest goes on. The file names
//! the server and the image, and has what the guest has written to the configuration space, the MSI-X table and the
//! registers of the device. It is rewritten, or else removed, before the guest gets the answer. Positions in queues are
//! not in it: requests of a queue are answered in their order, so the number of answers in the guest's memory says where
//! to go on. A request that was under way is served a second time.
//!
//! While the state is in the file, the server also stays if the program ends with an error, or refuses the file because
//! it is damaged or of another guest, image or mode. If the server that the file names does not exist, or there is no
//! file, the program creates a server, for a disk that has been reset.
//!
//! # How it works
//!
//! Each access of the guest to the configuration space (`function`, `config_space`, `bus`) or to the function's memory
//! (`transport`, `msix`) arrives as a request, and the guest's processor waits for the answer. A notification only
//! wakes the thread of its queue (`device`), which takes requests from the guest's memory (`queue`) and executes them
//! (`disk`). Data goes between the file and the guest's memory without a copy in between (`image`).
//! So the file is used through the host's page cache: with `O_DIRECT`, which cannot pin a guest's memory (EFAULT), each
//! request would need a buffer.
//!
//! Only a reset and the end of bus mastering wait for the disk's requests under way. Until these are done, other accesses
//! to registers, and a guest that balloons, wait as well.
//!
//! The guest's queues and buffers may be in any RAM, including what it gets while the program runs.
//!
//! A guest may write anything into registers and queues. The device then answers with an error, or asks for a reset
//! (`DEVICE_NEEDS_RESET`), and goes on. The reason is a line on stderr, as is any warning of the library (`warnings`), of
//! which there are at most 10 per second.
//!
//! The simulated guest is migrated for part of the time: the program reports the frames that it writes. On Xen, nobody
//! tells this program of a migration. A toolstack that does calls what `simulated` calls.
//!
//! # Crates of rust-vmm
//!
//! - `virtio-queue` walks the queues, through `vm-memory`'s traits. It checks indices, sizes and alignment.
//! - `virtio-bindings` has the numbers of virtio. It has none of virtio-pci, so those are here.
//! - `virtio-blk` and `virtio-device` are not on crates.io, where they have been due since 2021.
//! - `virtio-queue-ser` saves queues, but needs older versions of `virtio-queue` and `vm-memory`, and `versionize`.
//! - `vm-device` 0.1, the only release (2021), finds the device of an address among many. Here, Xen does that.

#![expect(clippy::print_stdout, reason = "prints its results")]

// Those that are pub(crate) are for tests/example, which includes this file.
pub(crate) mod buffers;
mod bus;
mod config_space;
mod device;
mod disk;
pub(crate) mod driver;
mod function;
pub(crate) mod image;
pub(crate) mod model;
mod msix;
pub(crate) mod probe;
pub(crate) mod queue;
mod registers;
mod signals;
mod simulated;
mod state;
pub(crate) mod transport;
pub(crate) mod warnings;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Parser;
use xenmap::{Domid, ForeignMemory};

use image::Image;
use model::{Model, Options};
use warnings::Warnings;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Serves a file to a guest as a disk (virtio-blk on PCI)
///
/// Without --domain, it simulates a host and a guest whose driver checks every answer.
#[derive(Parser)]
struct Args {
    /// Serve the guest with this number on the local Xen host (as root in dom0)
    #[arg(long, requires = "image", value_name = "DOMID")]
    domain: Option<u16>,
    /// The disk: a file or a block device
    #[arg(long, requires = "domain", value_name = "FILE")]
    image: Option<PathBuf>,
    /// Let the guest only read the disk
    #[arg(long, requires = "domain")]
    read_only: bool,
    /// Offer this many queues to the guest
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Keep at most this many MiB of the guest's memory mapped, plus up to 48 per queue for requests under way (256 by
    /// default, and 20 for the simulated guest of 64)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..))]
    cache: Option<u16>,
    /// QEMU serves the guest's other devices, as it does for HVM guests
    #[arg(long, requires = "domain")]
    beside_qemu: bool,
    /// Write the state of the disk into this file, so that the program can be restarted; if it exists, go on from it
    #[arg(long, requires = "domain", value_name = "FILE")]
    server: Option<PathBuf>,
    /// Let the simulated guest make at least this many requests
    #[arg(long, default_value_t = 10_000, conflicts_with = "domain")]
    requests: usize,
}

fn main() -> ExitCode {
    Warnings::print();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device_model: {}", chain(&*error));
            ExitCode::from(2)
        }
    }
}

fn run(args: Args) -> Result<()> {
    let cache = args.cache.map(usize::from);
    let (Some(domid), Some(path)) = (args.domain, args.image) else {
        return simulated::run(args.requests, args.queues, cache.unwrap_or(20));
    };
    let domid = Domid::new(domid)?;
    let options = Options {
        image: Image::open(&path, args.read_only)?,
        name: path.display().to_string(),
        queues: args.queues,
        cache: cache.unwrap_or(256),
        is_beside_qemu: args.beside_qemu,
        server: args.server,
    };
    let model = Model::open(&ForeignMemory::open()?, domid, options)?;
    match model.run(|| ()) {
        Ok(()) => println!("domain {domid} is gone: {}", model.statistics()),
        Err(e) => {
            model.give_up();
            return Err(e);
        }
    }
    Ok(())
}

/// Formats an error and its causes. No error's text repeats that of its cause.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Locks a mutex, also if a thread has panicked while it had it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
