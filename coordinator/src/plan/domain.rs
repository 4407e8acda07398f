//! Failure domains: a shadow shares no rack, power or region with its primary, unless the service's
//! policy says that it may.
//!
//! Invariant: a copy that is there is never given up before one that stands apart is ready.

use understudy_common::id::{HostId, ServiceId};
use understudy_common::spec::Domains;

use super::{Act, Plan, Proposal, Subject, View};
use crate::state::{Cause, Change, Service};

/// What the host shares with the holder though it must not: the kind of label and its value.
pub(super) fn shared<'a>(
    view: &View<'a>,
    service: &Service,
    host: HostId,
) -> Option<(&'static str, &'a str)> {
    if service.spec.policy.domains == Domains::Any {
        return None;
    }
    let holder = view.state.hosts.get(&service.holder?.host)?;
    view.state.hosts.get(&host)?.domain.shared(&holder.domain)
}

/// A shadow that shares a domain with its primary, as after a move, ends once one that does not is
/// ready. Until then it is better than nothing, and people are told.
pub(super) fn crowded(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    plan: &mut Plan,
) -> Option<Proposal> {
    let holder = service.holder.filter(|holder| holder.served)?;
    let shadows = service.shadows.iter().chain(service.joining.keys());
    let near: Vec<HostId> = shadows
        .copied()
        .filter(|host| shared(view, service, *host).is_some())
        .collect();
    let host = *near.first()?;
    let apart = service
        .shadows
        .iter()
        .find(|shadow| !near.contains(shadow) && view.is_alive(**shadow) && view.is_ready(**shadow, id));
    let why = format!(
        "{} with its primary {}",
        each(view, service, &near),
        view.name(holder.host)
    );
    let Some(apart) = apart else {
        let why = format!("{why}, but no shadow that stands apart is ready yet: the copy is kept until then");
        plan.hold(Subject::Service(id), Cause::Domain, why);
        return None;
    };
    Some(Proposal {
        act: Act::Commit(Change::RemoveShadow { service: id, host }),
        why: format!("{why}, and {} stands apart and is ready", view.name(*apart)),
    })
}

/// The service has no shadow, and the only hosts that could be one are too near.
pub(super) fn tell_alone(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    near: &[HostId],
    plan: &mut Plan,
) {
    let primary = service
        .holder
        .map(|holder| view.name(holder.host))
        .unwrap_or_default();
    let why = format!(
        "it has no shadow: {} with its primary {primary}; name a host that stands apart among its hosts, \
         or set [policy] domains = \"any\"",
        each(view, service, near)
    );
    plan.hold(Subject::Service(id), Cause::Domain, why);
}

/// `b shares rack r1; c shares power p2`
fn each(view: &View<'_>, service: &Service, near: &[HostId]) -> String {
    let each: Vec<_> = near
        .iter()
        .filter_map(|host| {
            let (kind, label) = shared(view, service, *host)?;
            Some(format!("{} shares {kind} {label}", view.name(*host)))
        })
        .collect();
    each.join("; ")
}
