//! The event loop that owns the replica and its log.
//!
//! Invariants: the `select` only picks; state changes in `Core::handle`, synchronously and under
//! this one owner. Outputs leave through
//! `Core::deliver` alone. Every request is answered, with `Busy`
//! when there is no room for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use raft::eraftpb::Message;
use tokio::sync::{mpsc, oneshot};
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Certificate, Principal};
use understudy_common::units::BootTime;
use understudy_common::wire::{Operate, Refusal, Request, Response};

use crate::api;
use crate::certificates::Certificates;
use crate::clock::{boot_now, wall_ms};
use crate::forecast::{ForecastStatus, Tick};
use crate::issuer::{self, Issuer, RequestedKey};
use crate::net::Outbox;
use crate::replica::{Output, Replica, RequestId, TRANSFER_MAX};
use crate::run::RunError;
use crate::storage::{Disk, DiskEvent};

/// Events that wait for the loop. Requests beyond are answered `Busy`, raft messages dropped.
pub const EVENTS_MAX: usize = 4_096;
/// Requests taken in and not answered yet.
const PENDING_MAX: usize = 16_384;
/// Events taken in before the log is written: they share one wait for the disk.
const BATCH_MAX: usize = 256;

/// What reaches the loop from outside.
#[derive(Debug)]
pub enum Event {
    Request {
        from: Principal,
        request: Request,
        reply: oneshot::Sender<Response>,
    },
    Message {
        from: CoordinatorId,
        /// Where its link comes from: coordinators dial from where they listen.
        addr: SocketAddr,
        message: Message,
    },
    /// A snapshot came in, on its own stream.
    Snapshot {
        from: CoordinatorId,
        message: Message,
    },
    /// What became of a snapshot.
    SnapshotSent {
        to: CoordinatorId,
        arrived: bool,
    },
    HostGone(HostId),
    /// Somebody showed it, or this coordinator has it from now on; it was verified.
    Certificate(Certificate),
    /// The principal that made its link with this certificate asks for the next one.
    Renewal {
        certificate: Certificate,
        reply: oneshot::Sender<Response>,
    },
    /// What the model says in this tick, whose work began then.
    Scores {
        tick: Tick,
        began: BootTime,
    },
}

struct Pending {
    reply: oneshot::Sender<Response>,
    document: Document,
    /// What a newcomer's certificate is for.
    key: Option<RequestedKey>,
}

/// What the shell adds to the replica's document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Document {
    /// Nothing.
    Plain,
    Status,
    Certificates,
}

impl Document {
    const fn of(request: &Request) -> Self {
        match request {
            Request::Operate(Operate::Status) => Self::Status,
            Request::Operate(Operate::Certificates) => Self::Certificates,
            _ => Self::Plain,
        }
    }
}

pub struct Core {
    replica: Replica,
    disk: Disk,
    forecast: ForecastStatus,
    outbox: Outbox,
    pending: BTreeMap<RequestId, Pending>,
    last_request: u64,
    /// The revision of the members that the network follows.
    followed: u64,
    /// The disk has no room.
    full: bool,
    /// The revision of the revocations that the network follows.
    refused: u64,
    /// None: this coordinator admits nobody.
    issuer: Option<Issuer>,
    certificates: Certificates,
}

impl Core {
    pub fn new(
        replica: Replica,
        disk: Disk,
        outbox: Outbox,
        forecast: ForecastStatus,
        issuer: Option<Issuer>,
    ) -> Self {
        Self {
            replica,
            disk,
            forecast,
            outbox,
            pending: BTreeMap::new(),
            last_request: 0,
            followed: 0,
            full: false,
            refused: 0,
            issuer,
            certificates: Certificates::default(),
        }
    }

    /// Runs until all senders of `events` are gone, or until `stop`: a leader then gives the
    /// leadership away first, in at most [`TRANSFER_MAX`].
    ///
    /// # Errors
    /// [`RunError`]: the process must stop.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let mut stop = pin!(stop);
        let mut stops_at: Option<BootTime> = None;
        loop {
            self.drain()?;
            let now = boot_now();
            if stops_at.is_some_and(|at| now >= at || !self.replica.is_leader()) {
                return Ok(());
            }
            let due = self
                .replica
                .poll_timeout()
                .map_or(crate::replica::TICK, |at| at.since(now));
            let picked = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => Some(event),
                    None => return Ok(()),
                },
                event = self.disk.event() => {
                    self.written(event)?;
                    None
                }
                () = tokio::time::sleep(due) => None,
                () = &mut stop, if stops_at.is_none() => {
                    let now = boot_now();
                    let wait = if self.replica.hand_on(now) { TRANSFER_MAX } else { Duration::ZERO };
                    stops_at = Some(now + wait);
                    None
                }
            };
            let mut left = BATCH_MAX;
            let mut next = picked;
            while let Some(event) = next {
                self.handle(boot_now(), event);
                left -= 1;
                next = if left == 0 { None } else { events.try_recv().ok() };
            }
            let now = boot_now();
            if self.replica.poll_timeout().is_some_and(|at| at <= now) {
                self.replica.handle_tick(now, wall_ms());
            }
        }
    }

    fn handle(&mut self, now: BootTime, event: Event) {
        match event {
            Event::Request { from, request, reply } => self.request(now, from, request, reply),
            Event::Message { from, addr, message } => {
                if self.replica.listens_to(from) {
                    // One that is not in the state yet may lead: it has to be answered.
                    self.outbox.meet(from, addr);
                }
                self.replica.handle_message(now, from, message);
            }
            Event::Snapshot { from, message } => self.replica.handle_message(now, from, message),
            Event::SnapshotSent { to, arrived: true } => self.replica.handle_snapshot_delivered(now, to),
            Event::SnapshotSent { to, arrived: false } => self.replica.handle_undelivered(now, to, true),
            Event::Certificate(certificate) => self.certificates.note(wall_ms(), &certificate),
            Event::Renewal { certificate, reply } => answer(reply, self.renew(now, &certificate)),
            Event::HostGone(host) => self.replica.handle_host_gone(now, host),
            Event::Scores { tick, began } => {
                self.forecast.follow(&tick);
                if let Ok(scores) = tick {
                    self.replica.handle_scores(now, wall_ms(), &scores);
                }
                self.forecast.ticked(boot_now().since(began));
            }
        }
    }

    fn request(
        &mut self,
        now: BootTime,
        from: Principal,
        request: Request,
        reply: oneshot::Sender<Response>,
    ) {
        let document = Document::of(&request);
        let status = from == Principal::Operator && document == Document::Status;
        if status && self.replica.leader().is_none() {
            // Nobody else knows better: this one tells what it sees.
            let document = self.replica.status(now).to_string();
            answer(reply, Response::Document(api::status(&document, &self.forecast)));
            return;
        }
        if self.pending.len() == PENDING_MAX {
            answer(reply, Response::Refused(Refusal::Busy("requests".to_owned())));
            return;
        }
        let key = match &request {
            // Another one is asked next where this one does not lead.
            Request::Join(join) if self.replica.is_leader() => {
                match issuer::key_of(self.issuer.as_ref(), join) {
                    Ok(key) => Some(key),
                    Err(refusal) => {
                        answer(reply, Response::Refused(refusal));
                        return;
                    }
                }
            }
            _ => None,
        };
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.pending.insert(id, Pending { reply, document, key });
        self.replica.handle_request(now, wall_ms(), from, id, request);
    }

    fn renew(&mut self, now: BootTime, certificate: &Certificate) -> Response {
        if self.issuer.is_some() && !self.certificates.may_sign(now, certificate.identity.principal) {
            return Response::Refused(Refusal::Busy("certificates to sign".to_owned()));
        }
        issuer::renew(self.issuer.as_ref(), self.replica.state(), certificate)
    }

    fn drain(&mut self) -> Result<(), RunError> {
        self.deliver();
        let coordinators = &self.replica.state().coordinators;
        if coordinators.revision != self.followed {
            self.followed = coordinators.revision;
            self.outbox.follow(coordinators);
            if !self.replica.is_member() {
                tracing::warn!("this coordinator was removed from the cluster: it can be stopped");
            }
        }
        let admission = &self.replica.state().admission;
        if admission.revision != self.refused {
            self.refused = admission.revision;
            self.outbox.refuse(&admission.revocations);
        }
        match self.replica.halted() {
            Some(why) => Err(RunError::Halted(why.to_string())),
            None => Ok(()),
        }
    }

    fn written(&mut self, event: Option<DiskEvent>) -> Result<(), RunError> {
        match event {
            Some(DiskEvent::Written) => {
                if std::mem::take(&mut self.full) {
                    tracing::warn!("there is room for the raft log again");
                    self.replica.handle_disk_full(boot_now(), false);
                }
                self.replica.handle_persisted(boot_now());
                Ok(())
            }
            Some(DiskEvent::Full(error)) => {
                tracing::error!(%error, "the disk is full");
                self.full = true;
                self.replica.handle_disk_full(boot_now(), true);
                Ok(())
            }
            Some(DiskEvent::Failed(error)) => Err(error.into()),
            None => Err(RunError::Halted(
                "the thread that writes the log is gone".to_owned(),
            )),
        }
    }

    /// The one place where outputs leave the replica. What depends on a write is among them only once
    /// the write is durable.
    fn deliver(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                Output::Send { to, message } => self.outbox.send(to, message),
                Output::Order { host, order } => self.outbox.order(host, order),
                Output::Reply { id, response } => self.reply(id, response),
            }
        }
        if let Some(persist) = self.replica.poll_persist() {
            self.disk.write(persist);
        }
    }

    fn reply(&mut self, id: RequestId, response: Response) {
        let Some(waiting) = self.pending.remove(&id) else {
            return;
        };
        let response = match response {
            Response::Document(document) => Response::Document(match waiting.document {
                Document::Plain => document,
                Document::Status => api::status(&document, &self.forecast),
                Document::Certificates => api::certificates(&document, &self.certificates),
            }),
            Response::Admitted(admitted) => {
                issuer::sign(self.issuer.as_ref(), waiting.key.as_ref(), admitted)
            }
            other => other,
        };
        answer(waiting.reply, response);
    }
}

/// Who asked may have left in the meantime.
fn answer(reply: oneshot::Sender<Response>, response: Response) {
    drop(reply.send(response));
}
