//! Planned moves: who may be moved when, where to, and the steps on the way.

use std::collections::BTreeSet;

use understudy_common::id::{HostId, ServiceId};
use understudy_common::wire::FinalCut;

use super::failover::grant;
use super::score::Move;
use super::{Act, CUT_MAX, Facts, OVER_TICKS, Plan, Proposal, SHARE_MAX_PERCENT, Subject, TARGET_MAX, View};
use crate::state::{Cause, Change, GrantReason, MoveReason, Phase, Service, State, Step, WINDOW_MS};

/// Hosts whose services are on their way elsewhere.
pub(super) fn acted_on(state: &State) -> BTreeSet<HostId> {
    let moving = |service: &&Service| {
        matches!(
            service.phase,
            Phase::Handover {
                step: Step::Release | Step::Fenced | Step::Cut(_),
                ..
            }
        )
    };
    let services = state.services.values().filter(moving);
    services
        .filter_map(|service| Some(service.holder?.host))
        .collect()
}

pub(super) fn share_max(state: &State) -> usize {
    (state.hosts.len() * SHARE_MAX_PERCENT / 100).max(1)
}

/// Begins a move because the holder's risk stayed at or above the threshold.
pub(super) fn predicted(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    acted_on: &mut BTreeSet<HostId>,
    plan: &mut Plan,
) -> Option<Proposal> {
    let holder = service.holder.filter(|holder| holder.served)?;
    let threshold = view.facts.threshold?;
    let over = view.facts.seen.get(&holder.host).map_or(0, |seen| seen.over);
    if over < OVER_TICKS || service.phase != Phase::Steady {
        return None;
    }
    let risk = view.state.hosts.get(&holder.host)?.risk?;
    let danger = format!(
        "the risk of {} stayed at or above {threshold} for {OVER_TICKS} ticks or more",
        view.name(holder.host)
    );
    if let Some((cause, but)) = obstacle(view, service, holder.host, acted_on) {
        plan.hold(Subject::Service(id), cause, format!("{danger}, but {but}"));
        return None;
    }
    let Some(to) = best_target(view, id, service) else {
        let why = format!(
            "{danger}, but nobody can take over: {}",
            unfit_each(view, id, service)
        );
        plan.hold(Subject::Service(id), Cause::NoTarget, why);
        return None;
    };
    acted_on.insert(holder.host);
    Some(Proposal {
        act: Act::Commit(Change::BeginHandover {
            service: id,
            epoch: service.epoch,
            to,
            reason: MoveReason::Predicted { risk },
        }),
        why: danger,
    })
}

/// What speaks against any move of the service by prediction now.
fn obstacle(
    view: &View<'_>,
    service: &Service,
    from: HostId,
    acted_on: &BTreeSet<HostId>,
) -> Option<(Cause, String)> {
    if view.state.paused {
        Some((Cause::Paused, "moves by prediction are paused".to_owned()))
    } else if !service.may_be_predicted(view.facts.wall_ms) {
        let minutes = WINDOW_MS / 60_000;
        let but = format!("it was moved by prediction within the last {minutes} minutes");
        Some((Cause::Window, but))
    } else if !acted_on.contains(&from) && acted_on.len() >= share_max(view.state) {
        let but = format!(
            "{} is being acted on already, and of {} hosts {} may be at once",
            view.names(acted_on.iter().copied()),
            view.state.hosts.len(),
            share_max(view.state)
        );
        Some((Cause::ShareCap, but))
    } else {
        None
    }
}

/// The next step of a handover under way.
pub(super) fn advance(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let Phase::Handover { to, step, .. } = &service.phase else {
        return None;
    };
    let holder = service.holder?;
    // What another boot of the holder reports is not about this epoch's files.
    let report = view
        .service_report(holder.host, id)
        .filter(|_| !service.holder_rebooted(view.state));
    let cut = report
        .and_then(|report| report.final_cut.as_ref())
        .filter(|cut| cut.epoch == service.epoch);
    match step {
        Step::Release => report
            .filter(|report| report.fenced >= service.epoch)
            .map(|_| Proposal {
                act: Act::Commit(Change::HolderFenced {
                    service: id,
                    epoch: service.epoch,
                }),
                why: "the holder reports that its gate is closed".to_owned(),
            }),
        Step::Fenced => cut
            .filter(|cut| !cut.acked_by.is_empty())
            .map(|cut| record_cut(id, service, cut)),
        Step::Cut(known) => {
            if let Some(host) = choose(view, id, service, *to, known) {
                let why = format!("{} has the final cut", view.state.host_name(host));
                return grant(
                    view,
                    id,
                    service,
                    host,
                    Some(known.generation),
                    GrantReason::Handover,
                    why,
                );
            }
            cut.filter(|cut| *cut != known)
                .map(|cut| record_cut(id, service, cut))
        }
        Step::Activate => None,
    }
}

/// Whether the lease-end path must keep its hands off: the final cut is still being made.
pub(super) fn cut_pending(view: &View<'_>, id: ServiceId, service: &Service) -> bool {
    let bound = service.spec.workload.stop_timeout + CUT_MAX;
    service.is_fenced()
        && !service.holder_rebooted(view.state)
        && view.in_step_for(id) <= bound
        && service.holder.is_some_and(|holder| view.is_alive(holder.host))
}

fn record_cut(id: ServiceId, service: &Service, cut: &FinalCut) -> Proposal {
    Proposal {
        act: Act::Commit(Change::FinalCut {
            service: id,
            epoch: service.epoch,
            cut: cut.clone(),
        }),
        why: "the holder reports the final cut".to_owned(),
    }
}

/// The planned target if it has the final cut, else the first alive shadow of the set that has it. A
/// target that is alive gets a moment to acknowledge, since somebody may have asked for it by name.
fn choose(view: &View<'_>, id: ServiceId, service: &Service, to: HostId, cut: &FinalCut) -> Option<HostId> {
    let fit =
        |host: &HostId| cut.acked_by.contains(host) && service.shadows.contains(host) && view.is_alive(*host);
    let coming = service.shadows.contains(&to) && view.is_alive(to) && view.in_step_for(id) < TARGET_MAX;
    if fit(&to) || coming {
        return Some(to).filter(fit);
    }
    service.spec.hosts.iter().copied().find(fit)
}

fn best_target(view: &View<'_>, id: ServiceId, service: &Service) -> Option<HostId> {
    service
        .shadows
        .iter()
        .copied()
        .filter(|host| unfit(view, id, service, *host).is_none())
        .max_by_key(|host| Move::of(view, id, service, *host))
}

/// Why the host cannot be the target of a planned move.
fn unfit(view: &View<'_>, id: ServiceId, service: &Service, host: HostId) -> Option<&'static str> {
    if !service.shadows.contains(&host) {
        Some("is not in the promotable set")
    } else if !view.is_alive(host) {
        Some("has not been heard of lately")
    } else if view.in_safe_mode(host) {
        Some("is in safe mode")
    } else if view.is_at_risk(host) {
        Some("is itself at risk")
    } else if !view.is_ready(host, id) {
        Some("has no ready copy")
    } else if !view.continues(host, id, service) {
        Some("has a copy that the holder did not go on from")
    } else {
        None
    }
}

/// Why each of the other hosts cannot be the target of a planned move.
pub(super) fn unfit_each(view: &View<'_>, id: ServiceId, service: &Service) -> String {
    let others = service.spec.hosts.iter().copied();
    let others = others.filter(|host| service.holder.is_none_or(|holder| holder.host != *host));
    let each: Vec<_> = others
        .filter_map(|host| Some(format!("{} {}", view.name(host), unfit(view, id, service, host)?)))
        .collect();
    each.join("; ")
}

/// The target of a move that an operator asks for: the named host, or the best one.
///
/// # Errors
/// Why there is none, for people.
pub fn check_target(
    state: &State,
    facts: &Facts<'_>,
    id: ServiceId,
    to: Option<HostId>,
) -> Result<HostId, String> {
    let view = View { state, facts };
    let service = state
        .services
        .get(&id)
        .ok_or_else(|| format!("there is no {id}"))?;
    match to {
        Some(host) => match unfit(&view, id, service, host) {
            Some(why) => Err(format!("{} {why}", state.host_name(host))),
            None => Ok(host),
        },
        None => best_target(&view, id, service)
            .ok_or_else(|| format!("no shadow of {} can take over now", service.spec.name)),
    }
}
