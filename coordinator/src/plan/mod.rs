//! The planner: a pure function from the replicated state and what this leader has seen lately to
//! what is to be done, and what is not, each with its reason.
//!
//! Invariants: `plan/` reads no clock, proposes nothing for a service that has a proposal under
//! way, and grants an epoch only when the lease table says that the one before it is surely over
//! or the holder fenced it. Nothing is moved by prediction onto a host that is itself at risk, in safe
//! mode or not ready. A lease end is never held back by the anti-flap rules, only by the storm delay.

mod apart;
mod document;
mod domain;
mod evidence;
mod failover;
mod handover;
mod risk;
mod score;
mod shadows;
mod steady;
mod suppose;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{CopyState, HostReport, ServiceReport};

use crate::lease::LeaseTable;
use crate::state::{Cause, Change, Hold, Phase, Service, State, Step};

pub use document::PlanDocument;
pub use handover::check_target;
pub use suppose::Supposed;

/// A report older than this says nothing about whether its host is alive.
pub const ALIVE: Duration = Duration::from_millis(1_500);
/// How long a failover waits for the shadows of the set to report after the lease end.
pub const COLLECT_MAX: Duration = Duration::from_millis(300);
/// Extra wait when the leases of more than the share of hosts end at once.
pub const STORM_DELAY: Duration = Duration::from_millis(2_000);
/// Share of hosts, in percent, that may be acted on at once (never less than one host).
pub const SHARE_MAX_PERCENT: usize = 34;
/// Ticks at or above the threshold before a service is moved by prediction.
pub const OVER_TICKS: u32 = 3;
/// Ticks below half the threshold before safe mode ends.
pub const CALM_TICKS: u32 = 30;
/// How long a holder may take to close its gate in a planned handover.
pub const FENCE_MAX: Duration = Duration::from_millis(3_000);
/// How long the final cut may take beyond the workload's stop timeout.
pub const CUT_MAX: Duration = Duration::from_millis(15_000);
/// How long after the fence the planned target is waited for when another shadow has the final cut.
pub const TARGET_MAX: Duration = Duration::from_millis(300);
/// How long an activation may take beyond the workload's start timeout.
pub const ACTIVATE_MAX: Duration = Duration::from_millis(10_000);
/// How long a holder that failed waits before it gets the next epoch itself, for want of another.
pub const SELF_RETRY: Duration = Duration::from_millis(5_000);
/// Longest pause before a service is tried again that started on none of its hosts. Whoever mends what kept it
/// from starting waits this long at most.
pub const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long all observers must see the same, and the holder claim the contrary, before it is not believed.
pub const AGREED_MIN: Duration = Duration::from_millis(3_000);
/// Questions in a row that must have ended so: an observer that stood still saw nothing meanwhile.
pub const AGREED_TIMES: u32 = 3;
/// What an observer saw longer ago than this says nothing.
pub const ASKED_MAX: Duration = Duration::from_millis(2_500);
/// Names of hosts in one sentence.
const NAMES_MAX: usize = 8;

/// What this leader has seen of one host.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub report: Option<HostReport>,
    /// When the report arrived.
    pub arrived: BootTime,
    /// Its link closed since: evidence, not proof, that it is dead.
    pub gone: bool,
    /// Services that it says it serves: in which epoch, and since when without a break.
    pub serving: BTreeMap<ServiceId, (Epoch, BootTime)>,
    /// Consecutive ticks with a risk at or above the threshold.
    pub over: u32,
    /// Consecutive ticks with a risk below half of it.
    pub calm: u32,
}

impl Seen {
    /// A report of the registered boot, newer than the one before.
    pub fn hear(&mut self, now: BootTime, report: HostReport) {
        let heard_on = !self.gone && now.since(self.arrived) <= ALIVE;
        let before = std::mem::take(&mut self.serving);
        for service in &report.services {
            let Some(epoch) = service.serving else { continue };
            let known = before.get(&service.service);
            let since = known
                .filter(|(claimed, _)| *claimed == epoch && heard_on)
                .map_or(now, |(_, since)| *since);
            self.serving.insert(service.service, (epoch, since));
        }
        self.report = Some(report);
        self.arrived = now;
        self.gone = false;
    }
}

/// Everything volatile that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub now: BootTime,
    pub wall_ms: u64,
    pub threshold: Option<BasisPoints>,
    pub seen: &'a BTreeMap<HostId, Seen>,
    pub leases: &'a LeaseTable,
    /// When this leader first saw each service's present step.
    pub since: &'a BTreeMap<ServiceId, BootTime>,
    /// Services with a proposal under way.
    pub busy: &'a BTreeSet<ServiceId>,
    /// How often in a row a service's holder said that it cannot serve, since it was served last.
    pub failed: &'a BTreeMap<ServiceId, u32>,
}

/// One thing to do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub act: Act,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful of them live for one turn")]
pub enum Act {
    /// Propose this change.
    Commit(Change),
    /// Answer no more renewals of this epoch, so that it ends.
    Condemn {
        service: ServiceId,
        epoch: Epoch,
        by_evidence: bool,
    },
    /// Nobody can take over: let the holder have its ended lease back if it returns.
    Strand { service: ServiceId, epoch: Epoch },
}

/// One thing that is not done, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub subject: Subject,
    /// Something speaks for doing it, and this against: people are told. None: nothing speaks for it.
    pub cause: Option<Cause>,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Cluster,
    Service(ServiceId),
    Host(HostId),
}

impl Held {
    /// What the event log remembers it by; none when it is no news.
    pub const fn hold(&self) -> Option<Hold> {
        let Some(cause) = self.cause else { return None };
        let service = match self.subject {
            Subject::Service(service) => Some(service),
            Subject::Cluster | Subject::Host(_) => None,
        };
        Some(Hold { service, cause })
    }
}

/// Everything that is to be done now, and everything that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most one per service.
    pub proposals: Vec<Proposal>,
    /// At least one for each service without a proposal.
    pub held: Vec<Held>,
}

impl Plan {
    fn hold(&mut self, subject: Subject, cause: impl Into<Option<Cause>>, why: String) {
        let cause = cause.into();
        self.held.push(Held { subject, cause, why });
    }
}

pub fn plan(state: &State, facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let view = View { state, facts };
    failover::tell_storm(&view, &mut plan);
    let mut acted_on = handover::acted_on(state);
    for (id, service) in &state.services {
        if facts.busy.contains(id) {
            let why = "what was decided about it last is not committed yet".to_owned();
            plan.hold(Subject::Service(*id), None, why);
            continue;
        }
        let held = plan.held.len();
        apart::tell_silent(&view, *id, service, &mut plan);
        let proposal = failover::first_grant(&view, *id, service)
            .or_else(|| handover::advance(&view, *id, service))
            .or_else(|| failover::after_lease_end(&view, *id, service, &mut plan))
            .or_else(|| failover::serving(&view, *id, service))
            .or_else(|| apart::told(&view, *id, service))
            .or_else(|| failover::condemn(&view, *id, service))
            .or_else(|| evidence::condemn(&view, *id, service, &mut plan))
            .or_else(|| handover::predicted(&view, *id, service, &mut acted_on, &mut plan))
            .or_else(|| shadows::unready(&view, *id, service))
            .or_else(|| shadows::ready(&view, *id, service))
            .or_else(|| domain::crowded(&view, *id, service, &mut plan))
            .or_else(|| shadows::missing(&view, *id, service, &mut plan));
        if proposal.is_none() && plan.held.len() == held {
            plan.hold(Subject::Service(*id), None, steady::why(&view, *id, service));
        }
        plan.proposals.extend(proposal);
    }
    risk::calmed(&view, &mut plan);
    plan
}

/// Whether the host was heard of lately.
pub fn is_alive(state: &State, facts: &Facts<'_>, host: HostId) -> bool {
    View { state, facts }.is_alive(host)
}

/// Epochs of services whose holder says that it cannot serve, and was not seen to serve before.
pub fn failing(state: &State, facts: &Facts<'_>) -> Vec<(ServiceId, Epoch)> {
    let view = View { state, facts };
    let unserved = |service: &Service| service.holder.is_some_and(|holder| !holder.served);
    let failing = |(id, service): (&ServiceId, &Service)| {
        (unserved(service) && view.failure(*id, service).is_some()).then_some((*id, service.epoch))
    };
    state.services.iter().filter_map(failing).collect()
}

/// The step a service is in, to tell how long it has been there.
pub fn step_of(service: &Service) -> (Epoch, u8) {
    let step = match &service.phase {
        Phase::Steady => 0,
        Phase::Failover => 1,
        Phase::Handover { step, .. } => match step {
            Step::Release => 2,
            // The cut may be extended by later acknowledgements: one step with one bound.
            Step::Fenced | Step::Cut(_) => 3,
            Step::Activate => 4,
        },
    };
    (service.epoch, step)
}

/// State and facts side by side.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub state: &'a State,
    pub facts: &'a Facts<'a>,
}

impl<'a> View<'a> {
    /// The last report of the host's registered boot.
    fn report(&self, host: HostId) -> Option<(&'a Seen, &'a HostReport)> {
        let seen = self.facts.seen.get(&host)?;
        let report = seen.report.as_ref()?;
        (self.state.hosts.get(&host)?.boot == report.boot).then_some((seen, report))
    }

    /// What the host last said about the service.
    fn service_report(&self, host: HostId, service: ServiceId) -> Option<&'a ServiceReport> {
        let (_, report) = self.report(host)?;
        report.services.iter().find(|report| report.service == service)
    }

    /// Why the holder does not serve the present epoch, in its own words.
    fn failure(&self, id: ServiceId, service: &Service) -> Option<&'a str> {
        let report = self.service_report(service.holder?.host, id)?;
        let fresh = report.epoch == service.epoch && report.revision >= service.revision;
        let failure = report.failure.as_deref();
        failure.filter(|_| fresh && report.serving.is_none())
    }

    /// Whether the host's last report is recent and its link was not seen to close since.
    fn is_alive(&self, host: HostId) -> bool {
        self.report(host)
            .is_some_and(|(seen, _)| !seen.gone && self.facts.now.since(seen.arrived) <= ALIVE)
    }

    /// Whether the host is alive and reported after `instant`.
    fn reported_since(&self, host: HostId, instant: BootTime) -> bool {
        self.is_alive(host) && self.report(host).is_some_and(|(seen, _)| seen.arrived >= instant)
    }

    fn is_ready(&self, host: HostId, service: ServiceId) -> bool {
        self.service_report(host, service)
            .is_some_and(|report| report.copy == CopyState::Ready && report.generation.is_some())
    }

    /// Whether what the host has sealed is a part of the history that the service's clients saw: of this
    /// epoch, or no newer than what its holder began from. A newer one of an epoch before was passed over
    /// when the holder was chosen, so that its writes are not those that the holder went on from.
    fn continues(&self, host: HostId, id: ServiceId, service: &Service) -> bool {
        let sealed = self.service_report(host, id).and_then(|report| report.generation);
        let from = service.holder.and_then(|holder| holder.from);
        sealed.is_some_and(|sealed| {
            sealed.epoch == service.epoch
                || from.is_some_and(|from| sealed.epoch == from.epoch && sealed.n <= from.n)
        })
    }

    fn is_at_risk(&self, host: HostId) -> bool {
        let Some(threshold) = self.facts.threshold else {
            return false;
        };
        let over = self.facts.seen.get(&host).is_some_and(|seen| seen.over > 0);
        let risk = self.state.hosts.get(&host).and_then(|host| host.risk);
        over || risk.is_some_and(|risk| risk >= threshold)
    }

    fn in_safe_mode(&self, host: HostId) -> bool {
        self.state.hosts.get(&host).is_none_or(|host| host.safe_mode)
    }

    fn name(&self, host: HostId) -> String {
        self.state.host_name(host)
    }

    /// The names with commas; more than [`NAMES_MAX`] are counted.
    fn names(&self, hosts: impl IntoIterator<Item = HostId>) -> String {
        let hosts: Vec<_> = hosts.into_iter().collect();
        let mut names: Vec<_> = hosts
            .iter()
            .take(NAMES_MAX)
            .map(|host| self.name(*host))
            .collect();
        if hosts.len() > NAMES_MAX {
            names.push(format!("{} more", hosts.len() - NAMES_MAX));
        }
        names.join(", ")
    }

    fn boot(&self, host: HostId) -> Option<u128> {
        Some(self.state.hosts.get(&host)?.boot)
    }

    /// How long this leader has seen the service in its present step.
    fn in_step_for(&self, service: ServiceId) -> Duration {
        self.facts
            .since
            .get(&service)
            .map_or(Duration::ZERO, |since| self.facts.now.since(*since))
    }
}
