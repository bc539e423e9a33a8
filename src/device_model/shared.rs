//! What a server shares with the requests that it has received.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event_channels::{EventChannel, EventChannels};
use super::inbox::Inbox;
use super::registration::Registration;
use super::request::{Reply, Request};
use super::server::Event;
use crate::abi;
use crate::cache::MapCache;
use crate::error::Result;
use crate::handle::ResourceMapping;

/// How often a server asks Xen whether the guest is still there, since nothing announces its end.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A server, as its owner and its unanswered requests use it. When the last of them is dropped, it is destroyed.
pub(super) struct Shared {
    pub(super) cache: Arc<MapCache>,
    pub(super) events: EventChannels,
    pub(super) inbox: Inbox<ResourceMapping>,
    /// One for each vcpu, then that of the buffer, if there is one.
    pub(super) channels: Vec<EventChannel>,
    pub(super) presence: Mutex<Presence>,
    /// Dropped last: the server is destroyed when the rest is unmapped and unbound.
    pub(super) registration: Registration,
}

/// Only which server it is. The rest includes up to 129 event channels.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (domid, id) = (self.registration.domid(), self.registration.id());
        f.debug_struct("Shared").field("domid", &domid).field("id", &id).finish_non_exhaustive()
    }
}

/// What is known about whether the guest and the server are there.
#[derive(Debug)]
pub(super) struct Presence {
    is_gone: bool,
    /// When Xen was asked.
    asked: Instant,
}

impl Presence {
    /// The guest and the server are there now.
    pub(super) fn new() -> Presence {
        Presence { is_gone: false, asked: Instant::now() }
    }
}

/// What a look at the requests has found.
pub(super) enum Found {
    Event(Event),
    /// A request that the server has answered itself. There may be more.
    Answered,
    Nothing,
}

impl Shared {
    /// Takes the next request, and answers it if a device need not see it.
    pub(super) fn look(self: &Arc<Shared>) -> Result<Found> {
        let Some((raw, vcpu)) = self.inbox.take()? else { return Ok(Found::Nothing) };
        let (answer, found) = match u32::from(raw.type_) {
            abi::IOREQ_TYPE_INVALIDATE => {
                // Before the answer, after which the guest goes on without the frames that it gave back.
                self.cache.invalidate_all();
                (None, Found::Answered)
            }
            abi::IOREQ_TYPE_TIMEOFFSET => (None, Found::Event(Event::TimeOffset(raw.data.cast_signed()))),
            _ => {
                let reply = vcpu.map(|vcpu| Reply { server: Arc::clone(self), vcpu });
                if let Some(request) = Request::new(raw, &self.cache, reply) {
                    return Ok(Found::Event(Event::Request(request)));
                }
                log::warn!("domain {} made a request that no device can serve: {raw:?}", self.registration.domid());
                (raw.is_read.then_some(u64::MAX), Found::Answered)
            }
        };
        if let Some(vcpu) = vcpu {
            self.answer(vcpu, answer);
        }
        Ok(found)
    }

    /// Answers a vcpu's request, with the value that it reads, if any.
    pub(super) fn answer(&self, vcpu: u32, value: Option<u64>) {
        let Some(channel) = self.channels.get(vcpu as usize) else { return };
        if let Err(e) = self.inbox.answer(vcpu, value).and_then(|()| channel.notify()) {
            log::warn!("cannot answer vcpu {vcpu} of domain {}: {e}", self.registration.domid());
        }
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the guest or the server was gone when Xen was last asked.
    pub(super) fn was_gone(&self) -> bool {
        self.presence().is_gone
    }

    /// Returns whether the guest or the server is gone. Asks Xen once a second at most.
    pub(super) fn is_gone(&self) -> Result<bool> {
        let mut presence = self.presence();
        if !presence.is_gone && presence.asked.elapsed() >= CHECK_INTERVAL {
            presence.asked = Instant::now();
            presence.is_gone = self.registration.is_gone()?;
        }
        Ok(presence.is_gone)
    }

    /// Waits until Xen has seen all answers. Returns false if it does not, because the guest is paused, or because there
    /// was no channel to send an answer.
    fn is_settled(&self) -> bool {
        let deadline = Instant::now() + CHECK_INTERVAL;
        while matches!(self.inbox.is_awaited(), Ok(true)) && matches!(self.registration.is_gone(), Ok(false)) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// If a server is destroyed before Xen has seen an answer, the guest reads zeros instead. If a request is still
/// unanswered, its vcpu hangs for good.
impl Drop for Shared {
    fn drop(&mut self) {
        if !self.registration.is_kept() && !self.is_settled() {
            self.registration.keep(true);
            let (id, domid) = (self.registration.id(), self.registration.domid());
            log::warn!(
                "ioreq server {id} of domain {domid} stays, disabled: a vcpu waits for an answer or has yet to see one"
            );
        }
    }
}
