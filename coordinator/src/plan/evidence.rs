//! Agreement of observers: what the other hosts of a service see of its holder.
//!
//! Invariants: a holder that the coordinator hears is condemned only when every observer that ever saw
//! the address answer says, for [`AGREED_MIN`], that it does not, while the holder claimed for as long
//! that it serves; one observer alone only when it is
//! *refused*, since what it sees *dropped* may be its own cut. A port that nobody ever saw answer
//! says nothing. A lease end is never held back by evidence.

use std::collections::BTreeSet;

use understudy_common::id::{HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::{Evidence, Reach, Sight};

use super::{AGREED_MIN, AGREED_TIMES, ASKED_MAX, Act, Plan, Proposal, Subject, View, handover};
use crate::state::{Cause, Phase, Service, WINDOW_MS};

/// What an observer sees, and when it said so, on its own clock.
#[derive(Clone, Copy)]
struct Witness<'a> {
    host: HostId,
    evidence: &'a Evidence,
    at: BootTime,
}

impl Witness<'_> {
    /// Of the address, if it is worth something: it answered before, could be asked, and was just now.
    fn counts(&self) -> Option<Sight> {
        self.evidence.address.filter(|sight| {
            sight.answered && sight.reach != Reach::Unreachable && self.at.since(sight.asked) <= ASKED_MAX
        })
    }

    fn says_for_long_enough(&self, sight: Sight) -> bool {
        sight.reach != Reach::Answered
            && sight.times >= AGREED_TIMES
            && self.at.since(sight.since) >= AGREED_MIN
    }

    fn words(&self, view: &View<'_>) -> String {
        let name = view.name(self.host);
        let agent = format!("its agent {}", words(self.evidence.agent, self.at));
        match self.evidence.address {
            Some(sight) => format!("{name} sees the address {}, {agent}", words(sight, self.at)),
            None => format!("{name} sees {agent}"),
        }
    }
}

fn words(sight: Sight, at: BootTime) -> String {
    let what = match sight.reach {
        Reach::Answered => return "answer".to_owned(),
        Reach::Refused => "refuse",
        Reach::Dropped => "drop",
        Reach::Unreachable => "out of its own reach",
    };
    format!("{what} for {} s", at.since(sight.since).as_secs())
}

/// What is known now of the holder in its present epoch.
fn witnesses<'a>(view: &View<'a>, id: ServiceId, service: &Service) -> Vec<Witness<'a>> {
    let Some(holder) = service.holder else {
        return Vec::new();
    };
    let others = service.spec.hosts.iter().filter(|host| **host != holder.host);
    others
        .filter(|host| view.is_alive(**host))
        .filter_map(|host| {
            let (_, report) = view.report(*host)?;
            let evidence = report.evidence.iter().find(|evidence| {
                evidence.service == id && evidence.epoch == service.epoch && evidence.holder == holder.host
            })?;
            Some(Witness {
                host: *host,
                evidence,
                at: report.at,
            })
        })
        .collect()
}

/// What each observer sees, as the end of a sentence; empty when none sees anything.
pub(super) fn told(view: &View<'_>, id: ServiceId, service: &Service) -> String {
    witnesses(view, id, service)
        .iter()
        .map(|witness| format!("; {}", witness.words(view)))
        .collect()
}

/// A holder that claims to serve and cannot be reached.
pub(super) fn condemn(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    plan: &mut Plan,
) -> Option<Proposal> {
    let verdict = verdict(view, id, service)?;
    let holder = service.holder?.host;
    let claim = format!(
        "{} is heard and says that it serves, but {}",
        view.name(holder),
        told(view, id, service).trim_start_matches("; ")
    );
    if let Some((cause, but)) = obstacle(view, id, service, verdict) {
        plan.hold(Subject::Service(id), cause, format!("{claim}; {but}"));
        return None;
    }
    Some(Proposal {
        act: Act::Condemn {
            service: id,
            epoch: service.epoch,
            by_evidence: true,
        },
        why: claim,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Agreed,
    Disputed,
    /// One observer, and what it sees may be its own cut.
    Alone,
}

/// Whether there is evidence against a holder that claims to serve.
fn verdict(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Verdict> {
    let holder = service.holder.filter(|holder| holder.served)?;
    let (seen, _) = view.report(holder.host)?;
    let (epoch, since) = seen.serving.get(&id)?;
    // A workload that just came back was refused a moment ago, and is not asked again yet.
    let claims =
        view.is_alive(holder.host) && *epoch == service.epoch && view.facts.now.since(*since) >= AGREED_MIN;
    let leases = view.facts.leases;
    if !claims
        || service.phase != Phase::Steady
        || leases.is_condemned(id, service.epoch)
        || leases.ended_at(id, service.epoch).is_some()
    {
        return None;
    }
    let witnesses = witnesses(view, id, service);
    let sights: Vec<_> = witnesses
        .iter()
        .filter_map(|witness| Some((witness, witness.counts()?)))
        .collect();
    let against = sights
        .iter()
        .filter(|(witness, sight)| witness.says_for_long_enough(*sight))
        .count();
    let any = |reach| sights.iter().any(|(_, sight)| sight.reach == reach);
    match against {
        0 => None,
        _ if any(Reach::Answered) => Some(Verdict::Disputed),
        // Those who agree do not begin to at the same instant.
        _ if against < sights.len() => None,
        1 if !any(Reach::Refused) => Some(Verdict::Alone),
        _ => Some(Verdict::Agreed),
    }
}

fn obstacle(view: &View<'_>, id: ServiceId, service: &Service, verdict: Verdict) -> Option<(Cause, String)> {
    let heirs = service.shadows.iter();
    let fit = heirs.filter(|host| {
        view.is_alive(**host) && view.is_ready(**host, id) && view.continues(**host, id, service)
    });
    let accused = accused(view);
    let doubt = match verdict {
        Verdict::Agreed => None,
        Verdict::Disputed => Some("they do not agree"),
        Verdict::Alone => Some("what one alone sees dropped may be its own cut"),
    };
    if let Some(doubt) = doubt {
        Some((Cause::Disagreement, doubt.to_owned()))
    } else if fit.count() == 0 {
        let but = format!(
            "nobody can take over: {}",
            handover::unfit_each(view, id, service)
        );
        Some((Cause::NoTarget, but))
    } else if !service.may_be_distrusted(view.facts.wall_ms) {
        let but = format!(
            "it was taken from a holder by evidence within the last {} minutes",
            WINDOW_MS / 60_000
        );
        Some((Cause::Window, but))
    } else if accused.len() > handover::share_max(view.state) {
        let but = format!(
            "the same is said of {}, and of {} hosts {} may be acted on at once",
            view.names(accused),
            view.state.hosts.len(),
            handover::share_max(view.state)
        );
        Some((Cause::ShareCap, but))
    } else {
        None
    }
}

/// All holders against whom observers agree.
fn accused(view: &View<'_>) -> BTreeSet<HostId> {
    let services = view.state.services.iter();
    services
        .filter(|(id, service)| verdict(view, **id, service) == Some(Verdict::Agreed))
        .filter_map(|(_, service)| Some(service.holder?.host))
        .collect()
}
