//! A guest with a hole in its RAM.

#![expect(unreachable_pub, reason = "shared by the other modules")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use vm_memory::GuestAddress;
use xenmap::{Gfn, GuestKind};

use crate::common::{FRAME, Guest, Host};

/// The frame that is ballooned out.
pub const HOLE: u64 = 5;

pub fn gfn(number: u64) -> Gfn {
    Gfn::new(number).unwrap()
}

pub fn at(frame: u64, offset: usize) -> GuestAddress {
    GuestAddress(frame * FRAME as u64 + offset as u64)
}

/// Creates a guest of 16 frames, of which one is ballooned out.
pub fn with_a_hole(host: &Host) -> Guest {
    let guest = host.create(GuestKind::Hvm, 16);
    guest.number_frames();
    guest.balloon_out(gfn(HOLE));
    guest
}
