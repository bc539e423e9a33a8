//! Device models that break the rules, and what Xen does then.

use std::time::Instant;

use xenmap::device_model::{EventChannel, EventChannels};
use xenmap::mock::{Dom0, MockDomain, MockHost, VcpuStopped};

use super::{AT_ONCE, PORT, Register, guest, map_page, read_port, server};
use crate::common::bytes::Bytes;
use crate::common::mock;
use crate::raw::{
    ANSWERED, IN_PROCESS, MAP_RANGE, NONE, Page, READY, SERVER_STATE, TOO_LONG, create_server, dm_op, range_fields,
    state_fields,
};
use crate::requests::{SOON, next_request};

/// A device model that writes what it likes into the page of requests.
struct Broken {
    page: Page,
    events: EventChannels,
    channel: EventChannel,
}

impl Broken {
    fn serve(host: &MockHost, domain: &MockDomain) -> Broken {
        let page = map_page(host, domain, server(host, domain).detach());
        let events = EventChannels::open(&host.open().unwrap()).unwrap();
        let channel = events.bind(domain.domid(), page.port(0)).unwrap();
        assert_eq!(events.wait(AT_ONCE).unwrap(), Some(channel.port()));
        Broken { page, events, channel }
    }

    /// Waits for a request of vcpu 0.
    fn wait(&self) {
        assert_eq!(self.events.wait(SOON).unwrap(), Some(self.channel.port()));
        assert_eq!(self.page.state(0), READY);
    }

    fn answer(&self, state: u8) {
        self.page.set_state(0, state);
        self.channel.notify().unwrap();
    }
}

fn crashed(reason: &str) -> Result<u64, VcpuStopped> {
    Err(VcpuStopped::Crashed(reason.to_owned()))
}

#[test]
fn state_that_does_not_exist_crashes_the_guest_and_all_its_vcpus_stop() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let other = read_port(&domain, 1);
    let reading = read_port(&domain, 0);
    broken.wait();
    assert!(!domain.has_crashed());

    broken.answer(7);

    assert_eq!(reading.join().unwrap(), crashed("weird ioreq state 7"));
    assert_eq!(other.join().unwrap(), crashed("weird ioreq state 7"));
    assert!(domain.has_crashed());
    assert_eq!(domain.crash_reason().unwrap(), "weird ioreq state 7");
    assert_eq!(domain.wait_for_msi(), None);
}

#[test]
fn state_that_goes_back_crashes_the_guest() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let reading = read_port(&domain, 0);
    broken.wait();
    // Xen does not say when it looks, so until it has seen both.
    let deadline = Instant::now() + TOO_LONG;
    while !reading.is_finished() {
        assert!(Instant::now() < deadline, "the guest has not crashed");
        broken.answer(IN_PROCESS);
        broken.answer(READY);
    }
    assert_eq!(reading.join().unwrap(), crashed("weird ioreq state transition 2 to 1"));
}

#[test]
fn answer_before_a_request_crashes_the_guest() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    Broken::serve(&host, &domain).answer(ANSWERED);
    assert_eq!(domain.vcpu(0).port_in(PORT, 4), crashed("device model set bad IO state 3"));
}

#[test]
fn port_that_was_overwritten_crashes_the_guest() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let port = broken.page.port(0);
    broken.page.set_port(0, 9999);
    let reason = format!("device model set bad event channel 9999, not {port}");
    assert_eq!(domain.vcpu(0).port_in(PORT, 4), crashed(&reason));
}

#[test]
fn request_that_is_given_up_reads_as_ones() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let reading = read_port(&domain, 0);
    broken.wait();
    broken.answer(NONE);
    assert_eq!(reading.join().unwrap(), Ok(0xFFFF_FFFF));
}

#[test]
fn answer_without_an_event_is_not_seen() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let reading = read_port(&domain, 0);
    broken.wait();
    broken.page.set_state(0, ANSWERED);
    // The other vcpu makes Xen look at everything that was notified.
    domain.vcpu(1).port_in(0x80, 1).unwrap();
    assert_eq!(broken.page.state(0), ANSWERED);
    broken.channel.notify().unwrap();
    assert_eq!(reading.join().unwrap(), Ok(0));
}

#[test]
fn balloon_goes_on_without_a_server_whose_page_is_broken() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    broken.page.set_port(0, 9999);
    domain.balloon_out(domain.frames()[3]);
    assert!(!domain.has_crashed());
}

#[test]
fn channel_of_a_destroyed_guest_does_not_reach_the_next_one_with_its_number() {
    let host = mock(Dom0::Pv);
    let old = guest(&host);
    let Broken { page, events, channel } = Broken::serve(&host, &old);
    old.destroy();
    drop(page);
    let new = guest(&host);
    assert_eq!(new.domid(), old.domid());
    let server = server(&host, &new);
    let reading = read_port(&new, 0);
    let request = next_request(&server);
    channel.notify().unwrap();
    drop((channel, events));
    request.serve(&mut Register::default());
    assert_eq!(reading.join().unwrap(), Ok(0));
    let reading = read_port(&new, 0);
    next_request(&server).serve(&mut Register::default());
    assert_eq!(reading.join().unwrap(), Ok(0));
}

#[test]
fn paused_guest_starts_no_instruction_and_looks_at_no_answer() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let broken = Broken::serve(&host, &domain);
    let reading = read_port(&domain, 0);
    broken.wait();
    domain.pause();
    broken.answer(ANSWERED);
    let other = read_port(&domain, 1);
    // Whatever wakes its processors, they do not look.
    domain.pause();
    domain.unpause();
    assert_eq!(broken.page.state(0), ANSWERED);
    assert_eq!(broken.page.state(1), NONE);
    domain.unpause();
    assert_eq!(reading.join().unwrap(), Ok(0));
    domain.destroy();
    assert_eq!(other.join().unwrap(), Err(VcpuStopped::Destroyed));
}

#[test]
#[should_panic(expected = "its page of requests was never mapped: Xen does not check that")]
fn access_to_a_server_without_a_page_panics() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let (memory, domid) = (host.open().unwrap(), domain.domid());
    let id = create_server(&memory, domid).unwrap();
    dm_op(&memory, domid, MAP_RANGE, &range_fields(id, 0, PORT.into(), PORT.into())).unwrap();
    dm_op(&memory, domid, SERVER_STATE, &state_fields(id, 1)).unwrap();
    let _ = domain.vcpu(0).port_in(PORT, 1);
}

#[test]
#[should_panic(expected = "an ISA interrupt was set for a Pvh guest")]
fn isa_interrupt_of_a_pvh_guest_panics() {
    const SET_ISA_IRQ_LEVEL: u32 = 9;
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let _ = dm_op(&host.open().unwrap(), domain.domid(), SET_ISA_IRQ_LEVEL, &Bytes::default().u8(7).u8(1));
}
