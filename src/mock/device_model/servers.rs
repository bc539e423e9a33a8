//! The simulated hypervisor's ioreq servers: their ranges and pages.

use crate::abi;
use crate::mock::machine::Host;
use crate::mock::state::{Domain, State};
use crate::types::FRAME_SIZE;

/// The most servers of a domain, and the most ranges of a type of a server.
const MAX_SERVERS: u16 = 8;
const MAX_RANGES: usize = 256;
/// The frames of a server as a resource.
pub(in crate::mock) const SERVER_FRAMES: usize = 2;
/// The slots of a page of requests.
pub(in crate::mock) const MAX_VCPUS: u32 = 128;

#[derive(Debug)]
pub(in crate::mock) struct Server {
    pub(super) is_enabled: bool,
    /// How buffered requests are handled: `HVM_IOREQSRV_BUFIOREQ_*`.
    pub(super) handling: u32,
    pub(super) ranges: [Ranges; 3],
    /// The pages of requests, allocated when one of them is first mapped.
    pub(super) page: Option<usize>,
    pub(super) buffer: Option<usize>,
    /// The domain's port for each vcpu, and for the buffer.
    pub(super) ports: Vec<u32>,
    pub(super) buffer_port: u32,
}

/// Ranges of a type: ports, memory or PCI functions. They are in ascending order and include both ends; adjacent ones
/// are one.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn contains(&self, first: u64, last: u64) -> bool {
        self.0.iter().any(|&(start, end)| start <= first && last <= end)
    }

    /// Adds a range, as Xen does: a range that continues another one needs no room of its own, but one that another one
    /// continues does for a moment.
    pub(super) fn add(&mut self, first: u64, last: u64) -> Result<(), i32> {
        if self.0.iter().any(|&(start, end)| start <= last && first <= end) {
            return Err(libc::EEXIST);
        }
        let mut at = self.0.partition_point(|&(start, _)| start < first);
        if at > 0 && self.0[at - 1].1.checked_add(1) == Some(first) {
            at -= 1;
            self.0[at].1 = last;
        } else if self.0.len() == MAX_RANGES {
            return Err(libc::ENOMEM);
        } else {
            self.0.insert(at, (first, last));
        }
        if let Some(&(next, end)) = self.0.get(at + 1)
            && last.checked_add(1) == Some(next)
        {
            self.0[at].1 = end;
            self.0.remove(at + 1);
        }
        Ok(())
    }

    /// Removes what is wholly inside a range; its other parts stay.
    pub(super) fn remove(&mut self, first: u64, last: u64) -> Result<(), i32> {
        let found = self.0.iter().position(|&(start, end)| start <= first && last <= end).ok_or(libc::ENOENT)?;
        let (start, end) = self.0[found];
        let parts = [(start, first.wrapping_sub(1)), (last.wrapping_add(1), end)];
        let kept = [start < first, last < end];
        if kept == [true; 2] && self.0.len() == MAX_RANGES {
            return Err(libc::ENOMEM);
        }
        let kept = parts.into_iter().zip(kept).filter_map(|(part, is_kept)| is_kept.then_some(part));
        self.0.splice(found..=found, kept);
        Ok(())
    }
}

impl Server {
    /// Returns whether one range contains all of an access.
    pub(super) fn serves(&self, type_: u32, first: u64, last: u64) -> bool {
        let ranges = self.ranges.get(type_ as usize);
        self.is_enabled && ranges.is_some_and(|ranges| ranges.contains(first, last))
    }

    pub(super) fn has_buffer(&self) -> bool {
        self.handling != abi::HVM_IOREQSRV_BUFIOREQ_OFF
    }

    /// Returns the ranges of a type, for a range with these ends.
    pub(super) fn ranges(&mut self, type_: u32, (first, last): (u64, u64)) -> Result<&mut Ranges, i32> {
        self.ranges.get_mut(type_ as usize).filter(|_| first <= last).ok_or(libc::EINVAL)
    }
}

impl Domain {
    pub(in crate::mock) fn vcpu_count(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX).max(1)
    }

    pub(super) fn server(&mut self, id: u16) -> Result<&mut Server, i32> {
        self.device_model.servers.get_mut(&id).ok_or(libc::ENOENT)
    }

    /// Creates a server with the lowest free number.
    pub(super) fn create_server(&mut self, handling: u8) -> Result<u16, i32> {
        let handling = u32::from(handling);
        if handling > abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC || self.dying {
            return Err(libc::EINVAL);
        }
        let vcpus = self.vcpu_count();
        let model = &mut self.device_model;
        let free = (0..MAX_SERVERS).find(|id| !model.servers.contains_key(id)).ok_or(libc::ENOSPC)?;
        let mut port = || {
            model.last_port += 1;
            model.ports.insert(model.last_port, None);
            model.last_port
        };
        let ports = (0..vcpus).map(|_| port()).collect();
        let buffer_port = if handling == abi::HVM_IOREQSRV_BUFIOREQ_OFF { 0 } else { port() };
        let ranges = <[Ranges; 3]>::default();
        let server = Server { is_enabled: false, handling, ranges, page: None, buffer: None, ports, buffer_port };
        model.servers.insert(free, server);
        Ok(free)
    }
}

impl State {
    /// Destroys a server. Its channels are closed, and mappings alone keep its pages.
    pub(super) fn destroy_server(&mut self, domid: u16, id: u16) -> Result<(), i32> {
        let domain = self.domains.get_mut(&domid).ok_or(libc::ESRCH)?;
        let server = domain.device_model.servers.remove(&id).ok_or(libc::ENOENT)?;
        for page in server.page.into_iter().chain(server.buffer) {
            self.pages[page].allocated = false;
        }
        for port in server.ports.into_iter().chain(Some(server.buffer_port)) {
            self.close_port(domid, port);
        }
        Ok(())
    }

    /// Destroys all servers of a domain.
    pub(in crate::mock) fn destroy_servers(&mut self, domid: u16) {
        let servers = self.domains.get(&domid).map(|domain| domain.device_model.servers.keys().copied().collect());
        let ids: Vec<u16> = servers.unwrap_or_default();
        for id in ids {
            // There is one with this number.
            let _ = self.destroy_server(domid, id);
        }
    }
}

impl Host {
    /// Returns pages of a server, for a mapping of the server as a resource: 0 is the buffer, 1 the requests.
    pub(in crate::mock) fn server_pages(
        &self,
        state: &mut State,
        domid: u16,
        id: u32,
        frames: std::ops::Range<usize>,
    ) -> Result<Vec<usize>, i32> {
        let id = u16::try_from(id).map_err(|_| libc::EINVAL)?;
        let server = state.domains.get_mut(&domid).ok_or(libc::ESRCH)?.server(id)?;
        let (has_page, has_buffer) = (server.page.is_some(), server.has_buffer());
        if !has_page {
            // Both, whichever is asked for.
            let page = Some(self.zeroed_page(state, domid));
            let buffer = has_buffer.then(|| self.zeroed_page(state, domid));
            let server = state.domains.get_mut(&domid).ok_or(libc::ESRCH)?.server(id)?;
            (server.page, server.buffer) = (page, buffer);
        }
        let server = state.domains.get_mut(&domid).ok_or(libc::ESRCH)?.server(id)?;
        let pages = [server.buffer, server.page];
        // One after the other: a buffer that does not exist is noticed before a frame that no server has.
        frames.map(|frame| pages.get(frame).ok_or(libc::EINVAL)?.ok_or(libc::ENOENT)).collect()
    }

    fn zeroed_page(&self, state: &mut State, domid: u16) -> usize {
        let page = self.lend(state, domid);
        let zeroed = self.ram.write(page * FRAME_SIZE, &[0; FRAME_SIZE]);
        zeroed.unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
        page
    }

    /// Enables or disables a server. Xen writes the ports to the page only when it enables it, and only if the page
    /// exists.
    pub(super) fn enable_server(&self, server: &mut Server, is_enabled: bool) {
        if is_enabled
            && !server.is_enabled
            && let Some(page) = server.page
        {
            for (vcpu, port) in (0..).zip(&server.ports) {
                self.write_slot(page, vcpu, abi::IOREQ_VP_EPORT, &port.to_ne_bytes());
            }
        }
        server.is_enabled = is_enabled;
    }

    pub(super) fn write_slot(&self, page: usize, vcpu: u32, field: u32, bytes: &[u8]) {
        let at = page * FRAME_SIZE + (vcpu * abi::IOREQ_BYTES + field) as usize;
        self.ram.write(at, bytes).unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
    }

    pub(super) fn read_slot<const N: usize>(&self, page: usize, vcpu: u32, field: u32) -> [u8; N] {
        let mut bytes = [0; N];
        let at = page * FRAME_SIZE + (vcpu * abi::IOREQ_BYTES + field) as usize;
        self.ram.read(at, &mut bytes).unwrap_or_else(|e| panic!("the mock cannot read its memory: {e}"));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_RANGES, Ranges};

    #[test]
    fn adjacent_ranges_are_one_and_only_what_needs_room_is_refused_at_the_limit() {
        let mut ranges = Ranges::default();
        for n in 1..=MAX_RANGES as u64 {
            assert_eq!(ranges.add(10 * n, 10 * n + 4), Ok(()));
        }
        assert_eq!(ranges.add(5000, 5000), Err(libc::ENOMEM));
        assert_eq!(ranges.remove(11, 11), Err(libc::ENOMEM), "it would become two");
        assert_eq!(ranges.add(19, 19), Err(libc::ENOMEM), "Xen joins it to the next range only after it has added it");
        assert_eq!(ranges.add(15, 19), Ok(()), "it continues the first range");
        assert!(ranges.contains(10, 24));
        assert_eq!(ranges.0.len(), MAX_RANGES - 1);
        assert_eq!(ranges.add(0, 9), Ok(()));
        assert_eq!(ranges.0[0], (0, 24));
    }

    #[test]
    fn rest_of_a_range_stays() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(0, u64::MAX), Ok(()));
        assert_eq!(ranges.remove(0, 0), Ok(()));
        assert_eq!(ranges.remove(u64::MAX, u64::MAX), Ok(()));
        assert_eq!(ranges.remove(7, 8), Ok(()));
        assert_eq!(ranges.0, [(1, 6), (9, u64::MAX - 1)]);
        assert_eq!(ranges.remove(6, 9), Err(libc::ENOENT));
        assert_eq!(ranges.add(7, 8), Ok(()));
        assert_eq!(ranges.0, [(1, u64::MAX - 1)]);
    }
}
