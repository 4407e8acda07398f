//! Holders that go on, or went on, without the coordinators.

use understudy_common::id::ServiceId;
use understudy_common::wire::Basis;

use super::{ALIVE, Act, Plan, Proposal, Subject, View};
use crate::state::{Cause, Change, ServedApart, Service};

/// Says that a silent holder is not taken over from, and what would change that.
pub(super) fn tell_silent(view: &View<'_>, id: ServiceId, service: &Service, plan: &mut Plan) {
    let Some(holder) = service.holder else { return };
    // A leader that is new has heard nobody yet.
    let settled = view.in_step_for(id) > ALIVE;
    if service.silence_ends(view.state)
        || !settled
        || view.is_alive(holder.host)
        || view.facts.leases.ended_at(id, service.epoch).is_some()
    {
        return;
    }
    let name = view.name(holder.host);
    let why = format!(
        "{name} is silent, and the service's policy lets it go on then: if it is dead, say so with \
         `understudy fence {name} --confirm-dead`"
    );
    plan.hold(Subject::Service(id), Cause::Policy, why);
}

/// A stretch of time without the coordinators that is over and not yet known.
pub(super) fn told(view: &View<'_>, id: ServiceId, service: &Service) -> Option<Proposal> {
    let holder = service.holder?;
    let report = view.service_report(holder.host, id)?;
    let apart = report.apart.filter(|_| report.basis == Basis::Lease)?;
    let (host, boot) = (holder.host, view.boot(holder.host)?);
    let since = apart.since;
    if service.apart == Some(ServedApart { host, boot, since }) {
        return None;
    }
    let change = Change::ServedApart {
        service: id,
        host,
        boot,
        apart,
    };
    // While a coordinator cannot apply it yet, it would be refused again and again, and nothing else would
    // be decided about the service.
    let mut older = view.state.coordinators.older_than(change.version());
    if older.next().is_some() {
        return None;
    }
    Some(Proposal {
        act: Act::Commit(change),
        why: format!("{} reports it", view.state.host_name(host)),
    })
}
