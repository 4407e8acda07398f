//! Requests of hosts and operators.

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::BootTime;
use understudy_common::wire::{
    Hello, HostReport, Reach, Refusal, Renew, Renewed, Request, Response, ServiceReport,
};

use super::{Fault, Replica, RequestId};
use crate::lease::Pending;
use crate::state::Change;

/// Who waits for an entry of this leader's term.
pub(super) struct Waiter {
    pub(super) term: u64,
    pub(super) id: RequestId,
    pub(super) answer: Answer,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Done,
    Document,
    Admitted { token: [u8; 32], request: [u8; 32] },
}

impl Replica {
    /// A request of `from`, as its certificate says. Its one reply carries `id`.
    pub fn handle_request(
        &mut self,
        now: BootTime,
        wall_ms: u64,
        from: Principal,
        id: RequestId,
        request: Request,
    ) {
        self.wall_ms = wall_ms;
        if let Err(refusal) = permitted(from, &request) {
            self.reply(id, Response::Refused(refusal));
            return;
        }
        let renews_blindly =
            self.settings.fault == Some(Fault::RenewWithoutReadIndex) && matches!(request, Request::Renew(_));
        if !self.is_settled() && !renews_blindly {
            let hint = self.leader().filter(|leader| *leader != self.settings.id);
            self.reply(id, Response::NotLeader(hint));
            return;
        }
        match request {
            Request::Hello(hello) => self.hello(id, hello),
            Request::Renew(renew) => self.renewal(now, id, renew),
            Request::Report(report) => self.report(now, id, report),
            Request::Operate(operate) => self.operate(now, id, operate),
            Request::Join(join) => self.join(now, id, join),
            Request::RenewCertificate | Request::ShowCertificate(_) => {
                let why = "certificates are the link's, not the replica's".to_owned();
                self.reply(id, Response::Refused(Refusal::Invalid(why)));
            }
            Request::Order(_) | Request::Coordinators(_) | Request::Promise(_) | Request::Revoked(_) => {
                let why = "this goes to hosts".to_owned();
                self.reply(id, Response::Refused(Refusal::Invalid(why)));
            }
        }
        self.start_round(now);
        self.drive(now);
    }

    fn hello(&mut self, id: RequestId, hello: Hello) {
        let known = self.state.hosts.get(&hello.host).is_some_and(|host| {
            host.boot == hello.boot
                && host.name == hello.name
                && host.addr == hello.addr
                && host.version == hello.version
                && host.inventory == hello.inventory
                && host.domain == hello.domain
        });
        if known {
            self.reply(id, Response::Done);
            return;
        }
        if let Err((label, rule)) = hello.domain.check() {
            let why = format!("domain.{label}: {rule}");
            self.reply(id, Response::Refused(Refusal::Invalid(why)));
            return;
        }
        let change = Change::RegisterHost {
            host: hello.host,
            name: hello.name,
            boot: hello.boot,
            addr: hello.addr,
            version: hello.version,
            inventory: hello.inventory,
            domain: hello.domain,
        };
        self.propose_for(id, Answer::Done, change, "");
    }

    /// Proposes on behalf of a request; the reply follows when the entry is applied.
    pub(super) fn propose_for(&mut self, id: RequestId, answer: Answer, change: Change, why: &str) {
        let service = change.service();
        let index = match self.propose(change, why) {
            Ok(index) => index,
            Err(refusal) => {
                self.reply(id, Response::Refused(refusal));
                return;
            }
        };
        self.wait_for(index, id, answer);
        if let (Some(service), Some(leading)) = (service, &mut self.leading) {
            leading.proposed.insert(service, index);
        }
    }

    /// The reply follows when the entry is applied.
    pub(super) fn wait_for(&mut self, index: u64, id: RequestId, answer: Answer) {
        let term = self.term();
        if let Some(leading) = &mut self.leading {
            leading.waiters.insert(index, Waiter { term, id, answer });
        }
    }

    fn renewal(&mut self, now: BootTime, id: RequestId, renew: Renew) {
        let pending = Pending {
            id,
            arrived: now,
            renew,
        };
        if self.settings.fault == Some(Fault::RenewWithoutReadIndex) {
            self.answer_renewal(now, pending);
        } else if let Err(pending) = self.rounds.push(pending) {
            self.reply(
                pending.id,
                Response::Refused(Refusal::Busy("renewals".to_owned())),
            );
        }
    }

    pub(super) fn start_round(&mut self, now: BootTime) {
        if self.is_settled()
            && let Some(number) = self.rounds.start(now)
        {
            self.node.read_index(number.to_le_bytes().to_vec());
        }
    }

    /// raft confirmed that this replica led when the round began: that round is answered.
    ///
    /// It is not waited until everything that was committed by then is applied here, which takes as
    /// long as the disk does: what ends a lease (a fence, a successor) is in the lease table from the
    /// moment that this leader reports or proposes it, and what was committed before this leader is
    /// applied, since it is settled.
    pub(super) fn confirmed(&mut self, now: BootTime, context: &[u8]) {
        let Ok(number) = <[u8; 8]>::try_from(context) else {
            return;
        };
        if !self.is_settled() {
            return;
        }
        for pending in self.rounds.finish(u64::from_le_bytes(number)) {
            self.answer_renewal(now, pending);
        }
    }

    fn answer_renewal(&mut self, now: BootTime, pending: Pending<RequestId>) {
        let Pending { id, arrived, renew } = pending;
        let leases: Vec<_> = renew
            .leases
            .into_iter()
            .filter(|(service, epoch)| {
                let held = self.state.services.get(service).is_some_and(|known| {
                    known.epoch == *epoch
                        && known
                            .holder
                            .is_some_and(|holder| holder.host == renew.host && !holder.dead)
                        && !known.holder_rebooted(&self.state)
                });
                held && self.leases.may_renew(now, *service, *epoch)
            })
            .collect();
        for (service, _) in &leases {
            self.leases.renew(*service, arrived);
        }
        let sequence = renew.sequence;
        self.reply(id, Response::Renewed(Renewed { sequence, leases }));
    }

    /// Renewals that waited for longer than a lease lasts extend nothing any more.
    pub(super) fn expire_renewals(&mut self, now: BootTime) {
        let lease = u64::try_from(self.settings.lease.lease.as_nanos()).unwrap_or(u64::MAX);
        let horizon = BootTime(now.0.saturating_sub(lease));
        for pending in self.rounds.expire(horizon) {
            self.reply(pending.id, Response::NotLeader(None));
        }
    }

    fn report(&mut self, now: BootTime, id: RequestId, report: HostReport) {
        let host = report.host;
        if self
            .state
            .hosts
            .get(&host)
            .is_none_or(|known| known.boot != report.boot)
        {
            let unknown = format!("boot of {host} that said hello and was not followed by another");
            self.reply(id, Response::Refused(Refusal::Unknown(unknown)));
            return;
        }
        self.reply(id, Response::Done);
        let Some(leading) = &mut self.leading else { return };
        let seen = leading.seen.entry(host).or_default();
        let before = seen.report.as_ref().filter(|known| known.boot == report.boot);
        if before.is_some_and(|known| known.sequence >= report.sequence) {
            return;
        }
        let news = seen.gone || before.is_none_or(|before| is_news(before, &report));
        for service in &report.services {
            let held = self.state.services.get(&service.service).is_some_and(|known| {
                known
                    .holder
                    .is_some_and(|holder| holder.host == host && holder.boot == report.boot)
            });
            if held {
                self.leases.fence(service.service, service.fenced);
            }
        }
        seen.hear(now, report);
        if news || self.awaits(host) {
            self.decide(now);
        }
    }

    /// Whether a decision may wait for word from this host: a lease ended that it can take over.
    fn awaits(&self, host: HostId) -> bool {
        self.state.services.iter().any(|(id, service)| {
            service.spec.hosts.contains(&host) && self.leases.ended_at(*id, service.epoch).is_some()
        })
    }
}

/// A host may speak only for itself, only operators operate, and a newcomer may only ask to join.
fn permitted(from: Principal, request: &Request) -> Result<(), Refusal> {
    let subject = match request {
        Request::Hello(hello) => Principal::Host(hello.host),
        Request::Renew(renew) => Principal::Host(renew.host),
        Request::Report(report) => Principal::Host(report.host),
        Request::Operate(_) => Principal::Operator,
        Request::Join(_) => Principal::Newcomer,
        Request::Order(_)
        | Request::Coordinators(_)
        | Request::Promise(_)
        | Request::Revoked(_)
        | Request::RenewCertificate
        | Request::ShowCertificate(_) => {
            return Ok(());
        }
    };
    if subject == from {
        return Ok(());
    }
    Err(Refusal::NotYours {
        speaker: from.to_string(),
        subject: subject.to_string(),
    })
}

/// Whether a report says something that a plan may depend on and the one before did not.
fn is_news(before: &HostReport, now: &HostReport) -> bool {
    type Key<'a> = (
        u64,
        Option<understudy_common::id::Epoch>,
        understudy_common::id::Epoch,
        Option<&'a understudy_common::wire::FinalCut>,
        understudy_common::wire::CopyState,
        usize,
        bool,
    );
    fn key(report: &ServiceReport) -> Key<'_> {
        (
            report.revision,
            report.serving,
            report.fenced,
            report.final_cut.as_ref(),
            report.copy,
            report.acked.len(),
            report.failure.is_some(),
        )
    }
    fn sights(report: &HostReport) -> impl Iterator<Item = (ServiceId, Epoch, Option<Reach>)> {
        let evidence = report.evidence.iter();
        evidence.map(|seen| (seen.service, seen.epoch, seen.address.map(|sight| sight.reach)))
    }
    before.services.len() != now.services.len()
        || !sights(before).eq(sights(now))
        || before
            .services
            .iter()
            .zip(&now.services)
            .any(|(before, now)| before.service != now.service || key(before) != key(now))
}
