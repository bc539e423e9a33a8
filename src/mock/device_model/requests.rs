//! The simulated hypervisor's side of an access: which server it goes to, and how a processor waits for the answers.

use std::sync::MutexGuard;

use super::access::{Access, Values, in_frame, ones, step};
use super::vcpu::{MockVcpu, Outcome, VcpuStopped};
use crate::abi;
use crate::mock::domain::MockDomain;
use crate::mock::state::{Domain, Frame, State};
use crate::types::{Domid, FRAME_SIZE};

/// The byte of `struct ioreq` that holds the state and flags.
const FLAGS: u32 = 30;
const STATE_MASK: u8 = 0xF;

/// A request that a processor waits for.
struct Asked {
    page: usize,
    port: u32,
    /// Its state when Xen last looked.
    state: u32,
}

/// A step of an instruction, which may have waited: the state again, and what came of it.
type Step<'a, T> = (MutexGuard<'a, State>, Outcome<T>);

impl MockDomain {
    /// Asks all device models to invalidate what they have mapped, and waits for their answers, as Xen does when a
    /// guest gives memory back. If the guest is paused, or no server is enabled, its next instruction does that.
    pub(in crate::mock) fn invalidate_device_models(&self) {
        let (is_due, life) = self.with(|_, domain| {
            let model = &mut domain.device_model;
            model.must_invalidate = true;
            let is_due = domain.pauses == 0 && model.servers.values().any(|server| server.is_enabled);
            (is_due, model.life.clone())
        });
        if is_due {
            // A guest that crashes or is destroyed meanwhile needs no answer.
            let _ = MockVcpu { domain: self.clone(), life, number: 0 }.instruction(|_, state| (state, Ok(())));
        }
    }
}

impl MockVcpu {
    /// Executes an instruction, or what Xen has cut one into. Returns the value that it reads.
    pub(super) fn access(&self, access: Access) -> Outcome<u64> {
        self.instruction(|vcpu, mut state| {
            if let Some(value) = vcpu.access_ram(&mut state, &access) {
                return (state, Ok(value));
            }
            let access = state.device_model(vcpu.domid()).translate(access);
            vcpu.ask(state, &access)
        })
    }

    /// Waits until the processor may execute an instruction, and keeps others from it meanwhile.
    pub(super) fn instruction<T>(
        &self,
        act: impl for<'a> FnOnce(&'a MockVcpu, MutexGuard<'a, State>) -> Step<'a, T>,
    ) -> Outcome<T> {
        let host = &self.domain.host;
        assert!(host.is_in_creator(), "only the process that created the mock runs its guests");
        let mut state = host.lock();
        loop {
            let domain = running(&mut state, self)?;
            if domain.pauses == 0 && domain.device_model.busy.insert(self.number) {
                break;
            }
            state = host.wait(state);
        }
        let (state, invalidated) = self.invalidate(state);
        let (mut state, outcome) = match invalidated {
            Ok(()) => act(self, state),
            Err(stopped) => (state, Err(stopped)),
        };
        if let Ok(domain) = running(&mut state, self) {
            domain.device_model.busy.remove(&self.number);
        }
        host.changed.notify_all();
        outcome
    }

    /// Sends an access to the server that has it, and waits. Where there is none, reads are ones.
    pub(super) fn ask<'a>(&'a self, mut state: MutexGuard<'a, State>, access: &Access) -> Step<'a, u64> {
        let (first, last) = access.extent();
        let servers = &state.device_model(self.domid()).servers;
        let serving = servers.iter().rev().find(|(_, server)| server.serves(access.type_, first, last));
        let Some((&id, _)) = serving else {
            self.answer_with_ones(&mut state, access);
            return (state, Ok(ones(access.size)));
        };
        match self.post(&mut state, id, access) {
            Ok(asked) => {
                let (state, value) = self.wait_for_answers(state, vec![asked]);
                (state, value.map(|value| value & ones(access.size)))
            }
            Err(reason) => {
                let stopped = self.crash(&mut state, reason);
                (state, Err(stopped))
            }
        }
    }

    /// Asks all enabled servers to invalidate, if the guest has given memory back, and waits for their answers.
    fn invalidate<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Step<'a, ()> {
        let model = state.device_model(self.domid());
        if !std::mem::take(&mut model.must_invalidate) {
            return (state, Ok(()));
        }
        let enabled = model.servers.iter().rev().filter(|(_, server)| server.is_enabled);
        let ids: Vec<u16> = enabled.map(|(&id, _)| id).collect();
        let access = Access::write(abi::IOREQ_TYPE_INVALIDATE, 0, 4, u64::MAX);
        let no_values = Some(Values { count: 0, backwards: false, in_ram: false });
        let access = Access { data: u64::MAX, rep: no_values, ..access };
        let mut asked = Vec::new();
        for id in ids {
            match self.post(&mut state, id, &access) {
                Ok(request) => asked.push(request),
                // Xen logs it, and the guest goes on.
                Err(reason) => log::warn!("server {id} of domain {} is not asked: {reason}", self.domid()),
            }
        }
        let (state, answered) = self.wait_for_answers(state, asked);
        (state, answered.map(|_| ()))
    }

    /// Puts a request into a server's page, and tells its process. The error is what is wrong with the page.
    fn post(&self, state: &mut State, id: u16, access: &Access) -> Result<Asked, String> {
        let (host, vcpu) = (&self.domain.host, self.number);
        let server = state.device_model(self.domid()).servers.get(&id);
        let (page, port) = server.map_or((None, 0), |server| (server.page, server.ports[vcpu as usize]));
        let Some(page) = page else {
            let reason = format!("server {id} was enabled, but its page of requests was never mapped");
            self.crash(state, reason.clone());
            panic!("{reason}: Xen does not check that, and writes to address 0");
        };
        let [flags] = host.read_slot::<1>(page, vcpu, FLAGS);
        let found = u32::from_ne_bytes(host.read_slot(page, vcpu, abi::IOREQ_VP_EPORT));
        if u32::from(flags & STATE_MASK) != abi::STATE_IOREQ_NONE {
            return Err(format!("device model set bad IO state {}", flags & STATE_MASK));
        }
        if found != port {
            return Err(format!("device model set bad event channel {found}, not {port}"));
        }
        let one = Values { count: 1, backwards: false, in_ram: false };
        let Values { count, backwards, in_ram } = access.rep.unwrap_or(one);
        for (field, bytes) in [
            (abi::IOREQ_ADDR, &access.address.to_ne_bytes()[..]),
            (abi::IOREQ_DATA, &access.data.to_ne_bytes()),
            (abi::IOREQ_COUNT, &count.to_ne_bytes()),
            (abi::IOREQ_SIZE, &u32::try_from(access.size).unwrap_or(0).to_ne_bytes()),
            (abi::IOREQ_TYPE, &access.type_.to_le_bytes()[..1]),
        ] {
            host.write_slot(page, vcpu, field, bytes);
        }
        let flags = u8::from(in_ram) << 4 | u8::from(access.is_read) << 5 | u8::from(backwards) << 6;
        // Last, since a device model may look at any time.
        host.write_slot(page, vcpu, FLAGS, &[flags | 1]);
        state.device_model(self.domid()).notified.remove(&port);
        state.send_to_dom0(self.domid().get(), port);
        Ok(Asked { page, port, state: abi::STATE_IOREQ_READY })
    }

    /// Waits until all requests are answered, and returns the value that the last one reads.
    fn wait_for_answers<'a>(&'a self, mut state: MutexGuard<'a, State>, mut asked: Vec<Asked>) -> Step<'a, u64> {
        let mut value = u64::MAX;
        while !asked.is_empty() {
            state = self.domain.host.wait(state);
            match running(&mut state, self) {
                Err(stopped) => return (state, Err(stopped)),
                // A processor that is paused does not look.
                Ok(domain) if domain.pauses != 0 => continue,
                Ok(_) => {}
            }
            let mut left = Vec::new();
            for mut request in asked {
                match self.look(&mut state, &mut request) {
                    Ok(Some(read)) => value = read,
                    Ok(None) => left.push(request),
                    Err(reason) => {
                        let stopped = self.crash(&mut state, reason);
                        return (state, Err(stopped));
                    }
                }
            }
            asked = left;
        }
        (state, Ok(value))
    }

    /// Looks whether a request is answered, if its process has notified Xen, and returns the value that it reads. The
    /// error is what the device model has done wrong.
    fn look(&self, state: &mut State, asked: &mut Asked) -> Result<Option<u64>, String> {
        let (host, vcpu) = (&self.domain.host, self.number);
        let model = state.device_model(self.domid());
        if !model.notified.remove(&asked.port) {
            return Ok(None);
        }
        if !model.ports.contains_key(&asked.port) {
            // The server was destroyed after it had answered, and the answer with it.
            return Ok(Some(0));
        }
        let [flags] = host.read_slot::<1>(asked.page, vcpu, FLAGS);
        match u32::from(flags & STATE_MASK) {
            abi::STATE_IORESP_READY => {
                let value = u64::from_ne_bytes(host.read_slot(asked.page, vcpu, abi::IOREQ_DATA));
                host.write_slot(asked.page, vcpu, FLAGS, &[flags & !STATE_MASK]);
                Ok(Some(value))
            }
            // The device model has given the request up.
            abi::STATE_IOREQ_NONE => Ok(Some(u64::MAX)),
            now @ (abi::STATE_IOREQ_READY | abi::STATE_IOREQ_INPROCESS) if now >= asked.state => {
                asked.state = now;
                Ok(None)
            }
            now @ abi::STATE_IOREQ_READY => Err(format!("weird ioreq state transition {} to {now}", asked.state)),
            now => Err(format!("weird ioreq state {now}")),
        }
    }

    fn crash(&self, state: &mut State, reason: String) -> VcpuStopped {
        if let Ok(domain) = running(state, self) {
            domain.crashed = true;
            domain.device_model.crash = Some(reason.clone());
        }
        self.domain.host.changed.notify_all();
        VcpuStopped::Crashed(reason)
    }

    /// Accesses the guest's RAM, if it has any there: no device model sees that. Returns the value that is read.
    fn access_ram(&self, state: &mut State, access: &Access) -> Option<u64> {
        if access.type_ != abi::IOREQ_TYPE_COPY {
            return None;
        }
        let at = self.ram_at(state, access.address, !access.is_read)?;
        assert!(access.rep.is_none(), "{:#x} is the guest's RAM: no device model sees an access to it", access.address);
        let mut bytes = access.data.to_le_bytes();
        let bytes = &mut bytes[..access.size];
        let ram = &self.domain.host.ram;
        let done = if access.is_read { ram.read(at, bytes) } else { ram.write(at, bytes) };
        done.unwrap_or_else(|e| panic!("the mock cannot access its memory: {e}"));
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// Where no server answers, what an instruction reads into RAM is ones.
    fn answer_with_ones(&self, state: &mut State, access: &Access) {
        let Some(values) = access.rep.filter(|_| access.is_read) else { return };
        for value in 0..values.count {
            let first = step(access.data, value, access.size, values.backwards);
            self.move_bytes(state, first, &mut [0xFF; 8][..access.size], false);
        }
    }

    /// Reads the guest's RAM, or writes it. Where it has none, nothing happens.
    pub(super) fn move_ram(&self, address: u64, bytes: &mut [u8], is_read: bool) {
        let mut state = self.domain.host.lock();
        if running(&mut state, self).is_ok() {
            self.move_bytes(&mut state, address, bytes, is_read);
        }
    }

    fn move_bytes(&self, state: &mut State, first: u64, bytes: &mut [u8], is_read: bool) {
        let ram = &self.domain.host.ram;
        for (offset, byte) in (0..).zip(bytes) {
            let Some(at) = self.ram_at(state, first.wrapping_add(offset), !is_read) else { continue };
            let byte = std::slice::from_mut(byte);
            let moved = if is_read { ram.read(at, byte) } else { ram.write(at, byte) };
            moved.unwrap_or_else(|e| panic!("the mock cannot access its memory: {e}"));
        }
    }

    /// Returns where a guest-physical address is in the host's memory; `None` if the guest has no RAM there.
    fn ram_at(&self, state: &mut State, address: u64, writes: bool) -> Option<usize> {
        let (domid, gfn) = (self.domid().get(), address / FRAME_SIZE as u64);
        self.domain.host.touch(state, domid, gfn, writes);
        match state.domains.get(&domid)?.frames.get(&gfn)? {
            Frame::Ram(page) => Some(page * FRAME_SIZE + in_frame(address)),
            _ => None,
        }
    }

    pub(super) fn domid(&self) -> Domid {
        self.domain.domid
    }
}

/// Returns the domain of a processor, if it can run.
fn running<'s>(state: &'s mut State, vcpu: &MockVcpu) -> Outcome<&'s mut Domain> {
    state.running(vcpu.domid(), &vcpu.life)
}

impl State {
    /// Returns what a domain that is alive has for its device models.
    pub(super) fn device_model(&mut self, domid: Domid) -> &mut super::DeviceModelState {
        &mut crate::mock::domain::domain_in(self, domid).device_model
    }

    /// Returns a domain whose processors can run. Its number may belong to another domain by now.
    pub(super) fn running(&mut self, domid: Domid, life: &super::Life) -> Outcome<&mut Domain> {
        let domain = self.domains.get_mut(&domid.get());
        match domain.filter(|domain| !domain.dying && domain.device_model.life == *life) {
            None => Err(VcpuStopped::Destroyed),
            Some(domain) => match (&domain.device_model.crash, domain.crashed) {
                (Some(reason), _) => Err(VcpuStopped::Crashed(reason.clone())),
                (None, true) => Err(VcpuStopped::Crashed("it ran out of memory".to_owned())),
                (None, false) => Ok(domain),
            },
        }
    }
}
