//! Tests that play the part of a process that dies, or of Xen, on the simulated host.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::registration::{BUFFER, REQUESTS, Registration};
use super::slots::{Page, READY, Raw, STATE};
use super::*;
use crate::abi;
use crate::backend::EventDevice;
use crate::cache::MapCache;
use crate::guest::Guest;
use crate::handle::ResourceMapping;
use crate::mapping::Access;
use crate::mock::{Fault, MockDomain, MockHost};
use crate::types::{Domid, Gfn, GuestKind, Protection};

const PORT: u16 = 0x500;

struct Constant(u64);

impl Registers for Constant {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        self.0
    }

    fn write(&mut self, _: Target, _: usize, _: u64) {}
}

fn parts(host: &MockHost, domain: &MockDomain) -> (Arc<MapCache>, EventChannels) {
    let memory = host.open().unwrap();
    let cache = MapCache::new(Guest::open(&memory, domain.domid()).unwrap());
    (Arc::new(cache), EventChannels::open(&memory).unwrap())
}

/// Creates a guest, and a server with a port.
fn create() -> (MockHost, MockDomain, IoreqServer) {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 1024);
    let (cache, events) = parts(&host, &domain);
    let server = IoreqServer::create(cache, events).unwrap();
    server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
    (host, domain, server)
}

/// Reads the port on the guest's vcpu, in another thread.
fn read(domain: &MockDomain) -> thread::JoinHandle<u64> {
    let vcpu = domain.vcpu(0);
    thread::spawn(move || vcpu.port_in(PORT, 4).unwrap())
}

/// Waits for a request, and takes it as a process does that dies then: without a `Request`, which would answer.
fn take(server: &IoreqServer) -> Raw {
    loop {
        if let Some((raw, _)) = inbox(server).take().unwrap() {
            return raw;
        }
        server.shared.events.wait(None).unwrap();
    }
}

fn inbox(server: &IoreqServer) -> &Inbox<ResourceMapping> {
    &server.shared.inbox
}

#[test]
fn request_that_a_dead_process_has_taken_arrives_again() {
    let (host, domain, server) = create();
    let vcpu = read(&domain);
    take(&server);
    let id = server.detach();

    let (cache, events) = parts(&host, &domain);
    let server = IoreqServer::adopt(cache, events, id).unwrap();
    let Event::Request(request) = server.next(Some(Duration::ZERO)).unwrap() else { panic!("no request") };
    assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)), "it arrives once");
    request.serve(&mut Constant(7));
    assert_eq!(vcpu.join().unwrap(), 7);
}

#[test]
fn answer_that_a_dead_process_has_not_announced_is_announced() {
    let (host, domain, server) = create();
    let vcpu = read(&domain);
    take(&server);
    inbox(&server).answer(0, Some(7)).unwrap();
    let id = server.detach();

    let (cache, events) = parts(&host, &domain);
    let server = IoreqServer::adopt(cache, events, id).unwrap();
    assert_eq!(vcpu.join().unwrap(), 7);
    assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)), "it is not answered again");
}

#[test]
fn server_that_cannot_be_adopted_stays() {
    let (host, domain, server) = create();
    let (cache, events) = parts(&host, &domain);
    let error = IoreqServer::adopt(cache, events, server.id()).unwrap_err();
    assert!(error.to_string().contains("bound already"), "{error}");
    let vcpu = read(&domain);
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    request.serve(&mut Constant(7));
    assert_eq!(vcpu.join().unwrap(), 7);
}

#[test]
fn server_that_cannot_be_created_stays_while_a_vcpu_waits_for_it() {
    let host = MockHost::new();
    let [domain, other] = [16; 2].map(|frames| host.create_domain(GuestKind::Pvh, frames));
    let (cache, events) = parts(&host, &domain);
    let memory = cache.guest().memory().clone();
    let registration = Registration::create(memory, domain.domid(), false).unwrap();
    let (id, page) = (registration.id(), registration.map(REQUESTS).unwrap());
    registration.enable(true).unwrap();
    let guest = domain.clone();
    let vcpu = thread::spawn(move || guest.balloon_out(Gfn::new(1).unwrap()));
    while page.load(STATE).unwrap() != READY {
        thread::yield_now();
    }

    events.restrict(other.domid()).unwrap();
    let error = IoreqServer::start(cache, events, registration, None).unwrap_err();

    assert_eq!(error.errno(), libc::EACCES);
    let (cache, events) = parts(&host, &domain);
    let adopted = IoreqServer::adopt(cache, events, id).unwrap();
    assert!(matches!(adopted.next(Some(Duration::ZERO)), Ok(Event::TimedOut)));
    vcpu.join().unwrap();
}

#[test]
fn frames_that_a_guest_gave_back_before_there_was_a_server_are_unmapped() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 1024);
    let (cache, events) = parts(&host, &domain);
    cache.get(Protection::ReadOnly, 0x1000, 1).unwrap();
    domain.balloon_out(Gfn::new(1).unwrap());
    let server = IoreqServer::create(Arc::clone(&cache), events).unwrap();
    assert!(cache.get(Protection::ReadOnly, 0x1000, 1).is_err());
    drop(server);
}

/// Makes a request of vcpu 0 that no vcpu looks at again, as if the guest were paused.
fn make_unseen_request(server: &IoreqServer) {
    let page = server.shared.registration.map(REQUESTS).unwrap();
    page.write(abi::IOREQ_ADDR as usize, &u64::from(PORT).to_ne_bytes()).unwrap();
    page.write(abi::IOREQ_COUNT as usize, &1_u32.to_ne_bytes()).unwrap();
    page.write(abi::IOREQ_SIZE as usize, &4_u32.to_ne_bytes()).unwrap();
    page.store(STATE, READY, Ordering::Release).unwrap();
}

#[test]
fn server_stays_until_a_paused_guest_has_seen_its_answer() {
    let (host, domain, server) = create();
    make_unseen_request(&server);
    let id = server.id();
    drop(server);
    let (cache, events) = parts(&host, &domain);
    let adopted = IoreqServer::adopt(cache, events, id).unwrap();
    assert!(inbox(&adopted).is_awaited().unwrap());
}

#[test]
fn server_of_a_dead_guest_does_not_wait_until_an_answer_is_seen() {
    let (_host, domain, server) = create();
    make_unseen_request(&server);
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    request.serve(&mut Constant(7));
    domain.destroy();
    let start = Instant::now();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn request_is_dropped_when_its_device_panics() {
    struct Panics;

    impl Registers for Panics {
        fn read(&mut self, _: Target, _: usize) -> u64 {
            std::panic::resume_unwind(Box::new("a defect"))
        }

        fn write(&mut self, _: Target, _: usize, _: u64) {}
    }

    let (_host, domain, server) = create();
    let vcpu = read(&domain);
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    thread::spawn(move || request.serve(&mut Panics)).join().unwrap_err();
    assert_eq!(vcpu.join().unwrap(), 0xFFFF_FFFF);
}

/// Xen makes one request of `rep stos`, and gives the value itself instead of an address in RAM.
#[test]
fn value_is_written_to_each_address_of_a_fill() {
    #[derive(Default)]
    struct Written(Vec<(Target, usize, u64)>);

    impl Registers for Written {
        fn read(&mut self, _: Target, _: usize) -> u64 {
            0
        }

        fn write(&mut self, at: Target, size: usize, value: u64) {
            self.0.push((at, size, value));
        }
    }

    let (_host, domain, server) = create();
    let page = server.shared.registration.map(REQUESTS).unwrap();
    let fields = [(abi::IOREQ_TYPE, abi::IOREQ_TYPE_COPY), (abi::IOREQ_COUNT, 3), (abi::IOREQ_SIZE, 2)];
    for (field, value) in fields {
        let size = if field == abi::IOREQ_TYPE { 1 } else { 4 };
        page.write(field as usize, &value.to_le_bytes()[..size]).unwrap();
    }
    page.write(abi::IOREQ_ADDR as usize, &0xE000_0010_u64.to_le_bytes()).unwrap();
    page.write(abi::IOREQ_DATA as usize, &7_u64.to_le_bytes()).unwrap();
    page.store(STATE, READY, Ordering::Release).unwrap();
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    let mut device = Written::default();
    request.serve(&mut device);
    assert_eq!(device.0, [0xE000_0010, 0xE000_0012, 0xE000_0014].map(|address| (Target::Memory(address), 2, 7)));
    domain.destroy();
}

#[test]
fn debug_text_of_a_request_and_its_server_is_short() {
    let (_host, domain, server) = create();
    make_unseen_request(&server);
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    for text in [format!("{request:?}"), format!("{server:?}")] {
        assert!(text.len() < 500, "{text}");
    }
    domain.destroy();
}

#[test]
fn lost_events_lose_no_request() {
    let (host, domain, server) = create();
    host.inject(Fault::LostEvents);
    let vcpu = read(&domain);
    let Event::Request(request) = server.next(None).unwrap() else { panic!("no request") };
    request.serve(&mut Constant(7));
    assert_eq!(vcpu.join().unwrap(), 7);
}

/// Puts a request into a server's ring, as Xen does: 4 bytes to an address, or 8 if there is a higher half.
fn buffer(ring: &ResourceMapping, address: u32, low: u32, high: Option<u32>) {
    let size_code = if high.is_some() { 3 } else { 2 };
    let written = u32::from_ne_bytes(ring.read(4).unwrap());
    let slots = [Some(low), high];
    for (pointer, data) in (written..).zip(slots.into_iter().flatten()) {
        let at = (abi::BUFFERED_SLOTS + pointer % abi::IOREQ_BUFFER_SLOT_NUM * 8) as usize;
        let first = abi::IOREQ_TYPE_COPY | size_code << 10 | address << 12;
        ring.write(at, &first.to_ne_bytes()).unwrap();
        ring.write(at + 4, &data.to_ne_bytes()).unwrap();
    }
    let count = u32::try_from(slots.iter().flatten().count()).unwrap();
    ring.view().store(4, written + count, Ordering::Release).unwrap();
}

/// Creates a server with a buffer, and returns it with its ring, whose last slot is the next one.
fn create_with_buffer(host: &MockHost, domain: &MockDomain) -> (IoreqServer, ResourceMapping) {
    let (cache, events) = parts(host, domain);
    let server = IoreqServer::create_with_buffer(cache, events).unwrap();
    server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
    let ring = server.shared.registration.map(BUFFER).unwrap();
    let last = abi::IOREQ_BUFFER_SLOT_NUM - 1;
    ring.view().store(0, u64::from(last) << 32 | u64::from(last), Ordering::Release).unwrap();
    (server, ring)
}

#[test]
fn buffered_request_of_8_bytes_can_span_the_end_of_the_ring() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 4);
    let (server, ring) = create_with_buffer(&host, &domain);
    buffer(&ring, 0xA0008, 0x4433_2211, Some(0x8877_6655));
    buffer(&ring, 0xA0010, 7, None);
    for (address, data, size) in [(0xA0008, 0x8877_6655_4433_2211, 8), (0xA0010, 7, 4)] {
        let (raw, vcpu) = inbox(&server).take().unwrap().unwrap();
        assert_eq!((raw.address, raw.data, raw.size, raw.is_read, vcpu), (address, data, size, false, None));
    }
    assert_eq!(inbox(&server).take().unwrap(), None);
    assert_eq!(ring.view().load::<u32>(0, Ordering::Acquire).unwrap(), abi::IOREQ_BUFFER_SLOT_NUM + 2);
}

#[test]
fn what_a_vcpu_has_buffered_comes_before_its_request() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 4);
    let (server, ring) = create_with_buffer(&host, &domain);
    make_unseen_request(&server);
    buffer(&ring, 0xA0000, 7, None);
    let waits = [(); 2].map(|()| inbox(&server).take().unwrap().unwrap().1);
    assert_eq!(waits, [None, Some(0)]);
    inbox(&server).answer(0, None).unwrap();
    domain.destroy();
}

/// Writes a byte to each of these frames, and returns the server.
fn write(domain: &MockDomain, server: &IoreqServer, pfns: impl Iterator<Item = u64>) {
    domain.log_dirty();
    let cache = server.cache();
    cache.track_dirty(true);
    for pfn in pfns {
        cache.get(Protection::ReadWrite, pfn * 0x1000, 1).unwrap().write(0, 1_u8).unwrap();
    }
}

#[test]
fn frames_that_xen_refuses_are_reported_later() {
    let (host, domain, server) = create();
    // Every other one, so that there are more ranges than Xen takes at a time.
    write(&domain, &server, (0..1024).step_by(2));
    host.inject_after(1, Fault::DmOp(libc::ENOMEM));
    assert_eq!(server.report_dirty().unwrap_err().errno(), libc::ENOMEM);
    assert_eq!(domain.take_dirty().len(), 256, "the first ones");

    server.cache().get(Protection::ReadWrite, 0x1000, 1).unwrap().write(0, 1_u8).unwrap();
    assert_eq!(server.report_dirty().unwrap(), 257);
    let reported = domain.take_dirty();
    assert_eq!((reported.first(), reported.len()), (Some(&Gfn::new(1).unwrap()), 257));
    assert_eq!(reported.last(), Some(&Gfn::new(1022).unwrap()));
    assert_eq!(server.report_dirty().unwrap(), 0);
}

/// Event channels of a guest that makes the same request again as soon as it is answered.
#[derive(Debug)]
struct Restless {
    page: OnceLock<ResourceMapping>,
    type_: u32,
    /// How many requests it will make.
    left: AtomicU32,
    readable: PipeReader,
}

impl Restless {
    fn make_request(&self) {
        let page = self.page.get().unwrap();
        page.write(abi::IOREQ_TYPE as usize, &self.type_.to_le_bytes()[..1]).unwrap();
        page.store(STATE, READY, Ordering::Release).unwrap();
    }

    fn is_done(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl EventDevice for Arc<Restless> {
    fn bind_interdomain(&self, _: Domid, remote_port: u32) -> io::Result<u32> {
        Ok(remote_port)
    }

    fn bind_unbound(&self, _: Domid) -> io::Result<u32> {
        unreachable!()
    }

    fn unbind(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn notify(&self, _: u32) -> io::Result<()> {
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.make_request();
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        unreachable!()
    }

    fn restrict(&self, _: Domid) -> io::Result<()> {
        unreachable!()
    }

    fn read(&self) -> io::Result<u32> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn unmask(&self, _: u32) -> io::Result<()> {
        unreachable!()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// Calls `serve` with a server for each kind of request that the server answers itself. The guest does not stop to make
/// them until it has made very many.
fn with_restless_guests(serve: impl Fn(&MockHost, IoreqServer, &Restless)) {
    const NO_DEVICE_UNDERSTANDS: u32 = 99;
    for type_ in [abi::IOREQ_TYPE_INVALIDATE, NO_DEVICE_UNDERSTANDS] {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Pvh, 4);
        let (readable, _) = io::pipe().unwrap();
        let guest = Arc::new(Restless { page: OnceLock::new(), type_, left: AtomicU32::new(1_000_000), readable });
        let events = EventChannels::with_device(Box::new(Arc::clone(&guest)));
        let server = IoreqServer::create(parts(&host, &domain).0, events).unwrap();
        guest.page.set(server.shared.registration.map(REQUESTS).unwrap()).unwrap();
        guest.make_request();
        serve(&host, server, &guest);
    }
}

#[test]
fn guest_that_makes_requests_without_end_does_not_keep_next_from_timing_out() {
    with_restless_guests(|_, server, guest| {
        for timeout in [0, 0, 10] {
            assert!(matches!(server.next(Some(Duration::from_millis(timeout))), Ok(Event::TimedOut)));
            assert!(!guest.is_done(), "{timeout} ms took as long as the guest made requests");
        }
    });
}

#[test]
fn guest_that_makes_requests_without_end_does_not_keep_a_server_that_cannot_be_disabled() {
    with_restless_guests(|host, server, guest| {
        host.inject(Fault::DmOp(libc::ENOMEM));
        drop(server);
        assert!(!guest.is_done());
    });
}
