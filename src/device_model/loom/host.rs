//! The simulated host: a page that loom watches, and a device for event channels.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ::loom::cell::UnsafeCell;
use ::loom::sync::atomic::{AtomicU8, Ordering};
use ::loom::sync::{Condvar, Mutex};

use crate::abi;
use crate::backend::EventDevice;
use crate::device_model::slots::{ANSWERED, IN_PROCESS, Page, READY, STATE};
use crate::error::Result;
use crate::types::Domid;

const SLOT: usize = abi::IOREQ_BYTES as usize;

/// The page of requests.
#[derive(Debug)]
pub(super) struct Memory(Vec<Slot>);

#[derive(Debug)]
struct Slot {
    state: AtomicU8,
    /// Loom reports accesses to it that are not ordered.
    access: UnsafeCell<()>,
    /// The contents. (Not a lock of loom's, which would order the accesses.)
    bytes: std::sync::Mutex<[u8; SLOT]>,
}

impl Slot {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.access.with_mut(|_| self.bytes.lock().unwrap()[at..][..bytes.len()].copy_from_slice(bytes));
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.access.with(|_| std::array::from_fn(|i| self.bytes.lock().unwrap()[at + i]))
    }
}

impl Memory {
    pub(super) fn new(vcpus: u32) -> Memory {
        let slot = |_| Slot { state: AtomicU8::new(0), access: UnsafeCell::new(()), bytes: Default::default() };
        Memory((0..vcpus).map(slot).collect())
    }

    fn slot(&self, vcpu: u32) -> &Slot {
        &self.0[vcpu as usize]
    }

    /// Puts a request into a vcpu's slot.
    pub(super) fn put(&self, vcpu: u32, address: u64) {
        self.slot(vcpu).write(abi::IOREQ_ADDR as usize, &address.to_ne_bytes());
        self.slot(vcpu).write(abi::IOREQ_DATA as usize, &[0; 8]);
    }

    /// Returns what a vcpu's request reads.
    pub(super) fn data(&self, vcpu: u32) -> u64 {
        u64::from_ne_bytes(self.slot(vcpu).read(abi::IOREQ_DATA as usize))
    }

    pub(super) fn set_state(&self, vcpu: u32, state: u8) {
        self.slot(vcpu).state.store(state, Ordering::Release);
    }

    pub(super) fn is_answered(&self, vcpu: u32) -> bool {
        let state = self.slot(vcpu).state.load(Ordering::Acquire);
        assert!([READY, IN_PROCESS, ANSWERED].contains(&state), "{state}");
        state == ANSWERED
    }
}

/// The server's mapping of the page.
#[derive(Debug)]
pub(super) struct SharedPage(pub(super) Arc<Memory>);

impl Page for SharedPage {
    fn load(&self, at: usize) -> Result<u8> {
        assert_eq!(at % SLOT, STATE);
        Ok(self.0.0[at / SLOT].state.load(Ordering::Acquire))
    }

    fn store(&self, at: usize, byte: u8, order: Ordering) -> Result<()> {
        assert_eq!(at % SLOT, STATE);
        self.0.0[at / SLOT].state.store(byte, order);
        Ok(())
    }

    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        Ok(self.0.0[at / SLOT].read(at % SLOT))
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.0.0[at / SLOT].write(at % SLOT, bytes);
        Ok(())
    }
}

/// The device for event channels, and what Xen does with them. The local port of a channel is that of the vcpu.
#[derive(Debug, Default)]
pub(super) struct Device {
    state: Mutex<State>,
    readable: Condvar,
    notified: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The ports whose events have not been read.
    ring: VecDeque<u32>,
    /// The ports that were read or put into the ring, and not unmasked; with whether an event is pending.
    masked: BTreeMap<u32, bool>,
    /// The vcpus that were notified.
    notified: BTreeSet<u32>,
    /// Whether the next read finds that the ring has overflowed.
    overflows: bool,
    is_closed: bool,
}

impl State {
    fn send(&mut self, port: u32) {
        match self.masked.get_mut(&port) {
            Some(is_pending) => *is_pending = true,
            None => {
                self.masked.insert(port, false);
                self.ring.push_back(port);
            }
        }
    }
}

impl Device {
    /// Sends an event to the server.
    pub(super) fn send(&self, port: u32) {
        self.state.lock().unwrap().send(port);
        self.readable.notify_all();
    }

    /// Waits until events can be read. Returns false if there will be none.
    pub(super) fn poll(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while state.ring.is_empty() && !state.is_closed {
            state = self.readable.wait(state).unwrap();
        }
        !state.ring.is_empty()
    }

    /// Waits until a vcpu is notified.
    pub(super) fn wait_for_notification(&self, vcpu: u32) {
        let mut state = self.state.lock().unwrap();
        while !state.notified.remove(&vcpu) {
            state = self.notified.wait(state).unwrap();
        }
    }

    /// Sends no more events.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().is_closed = true;
        self.readable.notify_all();
    }

    /// Makes the next read that would return an event fail.
    pub(super) fn overflow_once(&self) {
        self.state.lock().unwrap().overflows = true;
    }
}

impl EventDevice for Arc<Device> {
    fn bind_interdomain(&self, _: Domid, remote_port: u32) -> io::Result<u32> {
        Ok(remote_port)
    }

    fn bind_unbound(&self, _: Domid) -> io::Result<u32> {
        unreachable!()
    }

    fn unbind(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn notify(&self, port: u32) -> io::Result<()> {
        self.state.lock().unwrap().notified.insert(port);
        self.notified.notify_all();
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.state.lock().unwrap().ring.clear();
        Ok(())
    }

    fn restrict(&self, _: Domid) -> io::Result<()> {
        unreachable!()
    }

    fn read(&self) -> io::Result<u32> {
        let mut state = self.state.lock().unwrap();
        if !state.ring.is_empty() && std::mem::take(&mut state.overflows) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        state.ring.pop_front().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn unmask(&self, port: u32) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.masked.remove(&port) == Some(true) {
            state.send(port);
            self.readable.notify_all();
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        unreachable!("nothing polls it")
    }
}
