//! Buffered requests: the simulated hypervisor's side of a server's ring, for which no processor waits.

#![expect(unsafe_code, reason = "changes the ring's pointers atomically, since a device model does so too")]

use std::sync::atomic::{AtomicU64, Ordering};

use super::access::{Access, piece};
use super::vcpu::{MockVcpu, Outcome};
use crate::abi;
use crate::mock::machine::Host;
use crate::mock::memory::unmap;
use crate::mock::state::State;
use crate::types::{FRAME_SIZE, GuestKind, Protection};

/// The slots of a ring, and the bytes of each (`buf_ioreq_t`).
const SLOTS: u32 = abi::IOREQ_BUFFER_SLOT_NUM;
const SLOT: u32 = 8;
/// The last address for which a slot has room.
const LAST_ADDRESS: u64 = 0xF_FFFF;

impl MockVcpu {
    /// Writes to an address as [`write`](MockVcpu::write) does, but goes on at once: Xen puts the write into the ring of
    /// a server with a buffer. It does so with writes to the frame buffer of a VGA card, at 0xA0000 to 0xBFFFF.
    ///
    /// If the server has no buffer, the ring is full, or the address is over 0xFFFFF, Xen sends the write as usual, and
    /// the processor waits. `size` is 1, 2, 4 or 8 bytes.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Target};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
    /// let server = IoreqServer::create_with_buffer(cache, EventChannels::open(&memory)?)?;
    /// server.add_range(IoRange::memory(0xA_0000, 0xB_FFFF))?;
    ///
    /// domain.vcpu(0).write_buffered(0xB_8000, 2, 0x0741)?; // no thread of its own: it does not wait
    /// let Event::Request(request) = server.next(Some(Duration::ZERO))? else { panic!("no request") };
    /// assert_eq!((request.target(), request.vcpu()), (Target::Memory(0xB_8000), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// If no instruction accesses so many bytes, the access crosses the end of a page, or the guest is not HVM: others
    /// have no VGA card.
    pub fn write_buffered(&self, address: u64, size: usize, value: u64) -> Outcome<()> {
        super::vcpu::check_size(size, 8);
        assert_eq!(piece(address, size, 0).1, size, "the access crosses the end of a page");
        self.check_buffers();
        let access = Access::write(abi::IOREQ_TYPE_COPY, address, size, value);
        self.instruction(|vcpu, mut state| {
            let (first, last) = access.extent();
            let servers = &state.device_model(vcpu.domid()).servers;
            let serving = servers.iter().rev().find(|(_, server)| server.serves(access.type_, first, last));
            let id = serving.map(|(&id, _)| id);
            if id.is_some_and(|id| vcpu.buffer(&mut state, id, &access)) {
                return (state, Ok(()));
            }
            let (state, written) = vcpu.ask(state, &access);
            (state, written.map(|_| ()))
        })
    }

    /// Moves the guest's real-time clock by some seconds, as a guest does that sets it. Xen tells all enabled servers
    /// with a buffer, and does not wait for them.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use xenmap::device_model::{Event, EventChannels, IoreqServer};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
    /// let server = IoreqServer::create_with_buffer(cache, EventChannels::open(&memory)?)?;
    ///
    /// domain.vcpu(0).move_clock(-3600)?;
    /// assert!(matches!(server.next(Some(Duration::ZERO))?, Event::TimeOffset(-3600)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason why the processor has stopped for good.
    ///
    /// # Panics
    ///
    /// If the guest is not HVM: for others Xen has no real-time clock.
    pub fn move_clock(&self, seconds: i64) -> Outcome<()> {
        self.check_buffers();
        let access = Access::write(abi::IOREQ_TYPE_TIMEOFFSET, 0, 8, seconds.cast_unsigned());
        self.instruction(|vcpu, mut state| {
            let servers = &state.device_model(vcpu.domid()).servers;
            let enabled = servers.iter().rev().filter(|(_, server)| server.is_enabled);
            let ids: Vec<u16> = enabled.map(|(&id, _)| id).collect();
            for id in ids.into_iter().filter(|_| seconds != 0) {
                // Xen only logs that a ring is full.
                vcpu.buffer(&mut state, id, &access);
            }
            (state, Ok(()))
        })
    }

    /// Panics if the guest is not HVM.
    fn check_buffers(&self) {
        let kind = self.domain.host.lock().domains.get(&self.domid().get()).map(|domain| domain.kind);
        if let Some(kind) = kind.filter(|&kind| kind != GuestKind::Hvm) {
            panic!("Xen buffers nothing for a {kind:?} guest, which has neither a VGA card nor a real-time clock");
        }
    }

    /// Puts a request into the ring of a server, and tells its process. Returns false if that is not possible.
    fn buffer(&self, state: &mut State, id: u16, access: &Access) -> bool {
        let Some(server) = state.device_model(self.domid()).servers.get(&id) else { return false };
        let (port, is_atomic) = (server.buffer_port, server.handling == abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC);
        let Some(page) = server.buffer.filter(|_| access.address <= LAST_ADDRESS) else { return false };
        let was_put = self.domain.host.put_into_ring(page, is_atomic, access);
        if was_put {
            state.send_to_dom0(self.domid().get(), port);
        }
        was_put
    }
}

impl Host {
    /// Puts a request into a ring, unless it is full.
    fn put_into_ring(&self, page: usize, is_atomic: bool, access: &Access) -> bool {
        // Nothing counts references meanwhile: the state is locked.
        let mapped = self.ram.map(page * FRAME_SIZE, FRAME_SIZE, Protection::ReadWrite);
        let mapped = mapped.unwrap_or_else(|e| panic!("the mock cannot map its memory: {e}"));
        // SAFETY: the page has just been mapped, is aligned, and stays until the end of this function. Whoever else has
        // mapped it changes the pointers atomically too.
        let pointers = unsafe { AtomicU64::from_ptr(mapped.as_ptr().cast()) };
        let [read, written] = halves(pointers.load(Ordering::Acquire));
        let slots = if access.size == 8 { 2 } else { 1 };
        let has_room = written.wrapping_sub(read) < SLOTS - (slots - 1);
        if has_room {
            // Type (8 bits), padding (1), direction (1), size (2) and address (20), then 32 bits of data.
            let size = access.size.trailing_zeros();
            let address = u32::try_from(access.address).unwrap_or(0);
            let head = access.type_ | u32::from(access.is_read) << 9 | size << 10 | address << 12;
            for slot in 0..slots {
                let [low, high] = halves(access.data);
                let data = if slot == 0 { low } else { high };
                let at = abi::BUFFERED_SLOTS + written.wrapping_add(slot) % SLOTS * SLOT;
                let bytes = (u64::from(data) << 32 | u64::from(head)).to_le_bytes();
                let put = self.ram.write(page * FRAME_SIZE + at as usize, &bytes);
                put.unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
            }
            // The device model sees the slots before the pointer.
            pointers.fetch_add(u64::from(slots) << 32, Ordering::AcqRel);
            if is_atomic {
                take_off_laps(pointers);
            }
        }
        // SAFETY: mapped above, and `pointers` is not used any more.
        let unmapped = unsafe { unmap(mapped, FRAME_SIZE) };
        unmapped.unwrap_or_else(|e| panic!("the mock cannot unmap its memory: {e}"));
        has_room
    }
}

/// Takes what the ring has gone round off both pointers, so that they do not overflow. A device model that does not move
/// its pointer atomically loses its place here, as on Xen.
fn take_off_laps(pointers: &AtomicU64) {
    for _ in 0..SLOTS {
        let before = pointers.load(Ordering::Acquire);
        let [read, written] = halves(before);
        let laps = read / SLOTS * SLOTS;
        if laps == 0 {
            return;
        }
        let after = u64::from(written.wrapping_sub(laps)) << 32 | u64::from(read - laps);
        // If the device model was faster, try again.
        let _ = pointers.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Returns the low and the high half of a number: of the pointers, that to read and that to write.
#[expect(clippy::cast_possible_truncation, reason = "splits a word")]
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}
