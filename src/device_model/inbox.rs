//! The requests that wait for a server, and the order in which it takes them.

use std::sync::PoisonError;

use super::ring::Ring;
use super::slots::{IN_PROCESS, NONE, Page, READY, Raw, Slots};
use super::sync::{Mutex, MutexGuard};
use crate::error::Result;

/// The requests of a guest's vcpus. Any number of threads may take them; each request is taken once.
#[derive(Debug)]
pub(super) struct Inbox<P> {
    slots: Slots<P>,
    ring: Option<Ring>,
    vcpus: u32,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// The vcpu to look at first, so that each has its turn.
    next: u32,
    /// A bit for each vcpu whose request was taken by a process that has died.
    orphans: u128,
}

impl<P: Page> Inbox<P> {
    /// `vcpus` is at most [`SLOTS`](super::slots::SLOTS), and at least 1.
    pub(super) fn new(slots: Slots<P>, ring: Option<Ring>, vcpus: u32) -> Inbox<P> {
        Inbox { slots, ring, vcpus, turn: Mutex::default() }
    }

    /// Makes the requests that another process has taken available again. It must be gone.
    pub(super) fn adopt(&self) -> Result<()> {
        let mut turn = self.turn();
        for vcpu in 0..self.vcpus {
            turn.orphans |= u128::from(self.slots.state(vcpu)? == IN_PROCESS) << vcpu;
        }
        Ok(())
    }

    /// Takes the next request, and returns it with the vcpu that waits for its answer. If it was buffered, none does.
    pub(super) fn take(&self) -> Result<Option<(Raw, Option<u32>)>> {
        let mut turn = self.turn();
        let waiting = self.waiting(&turn)?;
        // After the slots, because what a vcpu has buffered before it waits must come first.
        if let Some(ring) = &self.ring
            && let Some(raw) = ring.take()?
        {
            return Ok(Some((raw, None)));
        }
        let Some(vcpu) = waiting else { return Ok(None) };
        turn.next = (vcpu + 1) % self.vcpus;
        turn.orphans &= !(1 << vcpu);
        Ok(Some((self.slots.take(vcpu)?, Some(vcpu))))
    }

    /// Returns the first vcpu whose request can be taken.
    fn waiting(&self, turn: &Turn) -> Result<Option<u32>> {
        for vcpu in (turn.next..self.vcpus).chain(0..turn.next) {
            let is_orphan = turn.orphans >> vcpu & 1 == 1;
            match self.slots.state(vcpu)? {
                READY => return Ok(Some(vcpu)),
                IN_PROCESS if is_orphan => return Ok(Some(vcpu)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Answers a vcpu's request that was taken, with the value that it reads, if any.
    pub(super) fn answer(&self, vcpu: u32, value: Option<u64>) -> Result<()> {
        self.slots.answer(vcpu, value)
    }

    /// Returns whether a vcpu waits for an answer, or has not seen it yet.
    pub(super) fn is_awaited(&self) -> Result<bool> {
        for vcpu in 0..self.vcpus {
            if self.slots.state(vcpu)? != NONE {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
