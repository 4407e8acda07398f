//! First grants, lease ends and holders that do not serve.

use std::collections::BTreeSet;
use std::time::Duration;

use understudy_common::id::{GenerationId, HostId, ServiceId};
use understudy_common::units::BootTime;

use super::handover::cut_pending;
use super::score::Takeover;
use super::{
    ACTIVATE_MAX, Act, COLLECT_MAX, FENCE_MAX, Plan, Proposal, RETRY_MAX, SELF_RETRY, STORM_DELAY, Subject,
    View, evidence, handover,
};
use crate::state::{Cause, Change, GrantReason, Phase, Service, Step};

/// The first host that is alive becomes the first primary.
pub(super) fn first_grant(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    if service.holder.is_some() {
        return None;
    }
    let host = *service
        .spec
        .hosts
        .iter()
        .find(|host| view.is_alive(**host) && !view.in_safe_mode(**host))?;
    let why = format!(
        "{} is the first of its hosts that is alive",
        view.state.host_name(host)
    );
    grant(view, id, service, host, None, GrantReason::First, why)
}

/// The next holder of a service whose lease surely ended.
pub(super) fn after_lease_end(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    plan: &mut Plan,
) -> Option<Proposal> {
    let holder = service.holder?;
    let ended = view.facts.leases.ended_at(id, service.epoch)?;
    let subject = Subject::Service(id);
    if cut_pending(view, id, service) {
        let why = format!("{} still makes the final cut", view.name(holder.host));
        plan.hold(subject, None, why);
        return None;
    }
    let waited = view.facts.now.since(ended);
    if waited < STORM_DELAY && is_storm(view, ended) {
        let why = "its lease ended together with those of more hosts than fail at once".to_owned();
        plan.hold(subject, None, why);
        return None;
    }
    if let Some((failed, pause)) = pause(view, id, service).filter(|(_, pause)| waited < *pause) {
        let why = format!(
            "it did not start in the last {failed} epochs, on {}: it is tried again {} s after the last of them",
            view.names(service.spec.hosts.iter().copied()),
            pause.as_secs()
        );
        plan.hold(subject, Cause::NoTarget, why);
        return None;
    }
    let candidates: BTreeSet<HostId> = if service.ever_served {
        service.shadows.clone()
    } else {
        let others = service.spec.hosts.iter().filter(|host| **host != holder.host);
        others.copied().filter(|host| !view.in_safe_mode(*host)).collect()
    };
    let heard = candidates
        .iter()
        .filter(|host| view.reported_since(**host, ended));
    let all_heard = heard.clone().count() == candidates.len() && !candidates.is_empty();
    if !all_heard && waited < COLLECT_MAX {
        let why = format!(
            "the lease of {} ended, and {} are asked what they have",
            view.name(holder.host),
            view.names(candidates)
        );
        plan.hold(subject, None, why);
        return None;
    }
    let best = heard
        .filter(|host| {
            !service.ever_served || (view.is_ready(**host, id) && view.continues(**host, id, service))
        })
        .max_by_key(|host| Takeover::of(view, id, service, **host));
    if let Some(host) = best {
        let from = service.ever_served.then(|| sealed(view, *host, id)).flatten();
        let why = format!(
            "the lease of {} ended and {} has the newest sealed generation{}",
            view.state.host_name(holder.host),
            view.state.host_name(*host),
            evidence::told(view, id, service)
        );
        return grant(view, id, service, *host, from, GrantReason::LeaseEnded, why);
    }
    let why = format!(
        "the lease of {} ended, but nobody can take over: {}",
        view.name(holder.host),
        handover::unfit_each(view, id, service)
    );
    plan.hold(subject, Cause::NoTarget, why);
    back_to_itself(view, id, service, ended)
}

/// A service that was tried twice on each of its hosts does not start for want of another try: how often it
/// failed, and how long the next one waits.
fn pause(view: &View<'_>, id: ServiceId, service: &Service) -> Option<(u32, Duration)> {
    let failed = *view.facts.failed.get(&id)?;
    let tries = u32::try_from(service.spec.hosts.len()).unwrap_or(u32::MAX);
    let beyond = failed.checked_sub(tries.saturating_mul(2))?;
    let pause = SELF_RETRY.saturating_mul(2_u32.saturating_pow(beyond));
    Some((failed, pause.min(RETRY_MAX)))
}

/// Nobody else can take over: the last holder gets its lease back, or the next epoch when it can no
/// longer hold this one.
fn back_to_itself(view: &View<'_>, id: ServiceId, service: &Service, ended: BootTime) -> Option<Proposal> {
    let holder = service.holder?;
    let condemned = view.facts.leases.is_condemned(id, service.epoch);
    let lost = holder.dead
        || condemned
        || service.is_fenced()
        || service.holder_rebooted(view.state)
        || fenced(view, id, service);
    if !lost {
        let why = format!("no shadow of {} can take over", service.spec.name);
        let act = Act::Strand {
            service: id,
            epoch: service.epoch,
        };
        return Some(Proposal { act, why });
    }
    let patience = if condemned { SELF_RETRY } else { COLLECT_MAX };
    if !view.reported_since(holder.host, ended) || view.facts.now.since(ended) < patience {
        return None;
    }
    let why = format!(
        "no shadow can take over and {} was the last holder",
        view.state.host_name(holder.host)
    );
    let from = service
        .ever_served
        .then(|| sealed(view, holder.host, id))
        .flatten();
    grant(view, id, service, holder.host, from, GrantReason::LeaseEnded, why)
}

/// The holder says that it serves.
pub(super) fn serving(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let holder = service.holder.filter(|holder| !holder.served)?;
    let report = view.service_report(holder.host, id)?;
    (report.serving == Some(service.epoch)).then(|| Proposal {
        act: Act::Commit(Change::Served {
            service: id,
            epoch: service.epoch,
        }),
        why: format!("{} reports it", view.state.host_name(holder.host)),
    })
}

/// A holder that does not do what its order says loses the lease.
pub(super) fn condemn(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let holder = service.holder?;
    if view.facts.leases.is_condemned(id, service.epoch) {
        return None;
    }
    let name = view.state.host_name(holder.host);
    let why = if let Some(failure) = view.failure(id, service) {
        format!("{name} failed to serve: {failure}")
    } else if !holder.served && view.in_step_for(id) > service.spec.workload.start_timeout + ACTIVATE_MAX {
        format!("{name} does not serve in time")
    } else if matches!(
        service.phase,
        Phase::Handover {
            step: Step::Release,
            ..
        }
    ) && view.in_step_for(id) > FENCE_MAX
    {
        format!("{name} does not close its gate in time")
    } else {
        return None;
    };
    let act = Act::Condemn {
        service: id,
        epoch: service.epoch,
        by_evidence: false,
    };
    Some(Proposal { act, why })
}

/// Whether leases of more than the allowed share of hosts ended close to this instant: more likely
/// this coordinator's own trouble than that of all these hosts.
fn is_storm(view: &View<'_>, at: BootTime) -> bool {
    let hosts: BTreeSet<HostId> = ends(view)
        .filter(|(_, ended)| ended.since(at).max(at.since(*ended)) < STORM_DELAY)
        .map(|(host, _)| host)
        .collect();
    hosts.len() > handover::share_max(view.state)
}

/// Holders whose lease ran out, and when.
fn ends<'a>(view: &View<'a>) -> impl Iterator<Item = (HostId, BootTime)> + use<'a> {
    let View { state, facts } = *view;
    state.services.iter().filter_map(move |(id, service)| {
        let ended = facts.leases.ended_at(*id, service.epoch)?;
        (!service.is_fenced()).then_some((service.holder?.host, ended))
    })
}

/// A storm is one piece of news, however many services wait it out.
pub(super) fn tell_storm(view: &View<'_>, plan: &mut Plan) {
    let now = view.facts.now;
    let waiting = |ended: &BootTime| now.since(*ended) < STORM_DELAY && is_storm(view, *ended);
    let hosts: BTreeSet<HostId> = ends(view)
        .filter(|(_, ended)| waiting(ended))
        .map(|(host, _)| host)
        .collect();
    if hosts.is_empty() {
        return;
    }
    let why = format!(
        "the leases of {} ended at once, which is more than {} of {} hosts: takeovers wait {} ms",
        view.names(hosts),
        handover::share_max(view.state),
        view.state.hosts.len(),
        STORM_DELAY.as_millis()
    );
    plan.hold(Subject::Cluster, Cause::StormDelay, why);
}

pub(super) fn grant(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    host: HostId,
    from: Option<GenerationId>,
    reason: GrantReason,
    why: String,
) -> Option<Proposal> {
    Some(Proposal {
        act: Act::Commit(Change::Grant {
            service: id,
            epoch: service.epoch.next(),
            holder: host,
            boot: view.boot(host)?,
            from,
            reason,
        }),
        why,
    })
}

/// Whether the holder reported that its gate is closed for the current epoch.
fn fenced(view: &View<'_>, id: ServiceId, service: &Service) -> bool {
    service
        .holder
        .and_then(|holder| view.service_report(holder.host, id))
        .is_some_and(|report| report.fenced >= service.epoch)
}

fn sealed(view: &View<'_>, host: HostId, id: ServiceId) -> Option<GenerationId> {
    view.service_report(host, id)?.generation
}
