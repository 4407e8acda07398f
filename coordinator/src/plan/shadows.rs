//! Who keeps a copy, and who of them may be promoted.

use understudy_common::id::ServiceId;
use understudy_common::wire::CopyState;

use super::{Act, Plan, Proposal, View, domain};
use crate::state::{Change, Service};

/// A shadow of the set whose copy is no longer ready leaves it.
pub(super) fn unready(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let host = *service.shadows.iter().find(|host| {
        view.is_alive(**host)
            && view
                .service_report(**host, id)
                .is_some_and(|report| report.epoch == service.epoch && report.copy != CopyState::Ready)
    })?;
    Some(Proposal {
        act: Act::Commit(Change::ShadowUnready { service: id, host }),
        why: format!(
            "{} reports that its copy is not ready",
            view.state.host_name(host)
        ),
    })
}

/// A joining host enters the set once it is ready, and the holder both obeyed an order that names
/// it and got an acknowledgement from it.
pub(super) fn ready(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let holder = service.holder.filter(|holder| holder.served)?;
    let primary = view.service_report(holder.host, id)?;
    let (host, _) = service.joining.iter().find(|(host, revision)| {
        primary.revision >= **revision
            && primary.epoch == service.epoch
            && primary.acked.iter().any(|(acked, _)| acked == *host)
            && view.is_alive(**host)
            && view.is_ready(**host, id)
    })?;
    Some(Proposal {
        act: Act::Commit(Change::ShadowReady {
            service: id,
            epoch: service.epoch,
            host: *host,
        }),
        why: format!(
            "{} is ready and the holder ships to it",
            view.state.host_name(*host)
        ),
    })
}

/// A host that is alive and allowed becomes a shadow.
pub(super) fn missing(
    view: &View<'_>,
    id: ServiceId,
    service: &Service,
    plan: &mut Plan,
) -> Option<Proposal> {
    let holder = service.holder?;
    let free = service.spec.hosts.iter().copied().filter(|host| {
        *host != holder.host && !service.is_shadow(*host) && view.is_alive(*host) && !view.in_safe_mode(*host)
    });
    let (near, far): (Vec<_>, Vec<_>) = free.partition(|host| domain::shared(view, service, *host).is_some());
    let Some(host) = far.first().copied() else {
        if service.shadows.is_empty() && service.joining.is_empty() && !near.is_empty() {
            domain::tell_alone(view, id, service, &near, plan);
        }
        return None;
    };
    Some(Proposal {
        act: Act::Commit(Change::AddShadow { service: id, host }),
        why: format!("{} is alive and keeps no copy", view.state.host_name(host)),
    })
}
