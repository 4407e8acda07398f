//! The end of safe mode.

use super::{Act, CALM_TICKS, Plan, Proposal, Subject, View};
use crate::state::Change;

/// Hosts whose risk stayed low long enough leave safe mode.
pub(super) fn calmed(view: &View<'_>, plan: &mut Plan) {
    for (id, host) in view.state.hosts.iter().filter(|(_, host)| host.safe_mode) {
        let calm = view.facts.seen.get(id).map_or(0, |seen| seen.calm);
        if !view.is_alive(*id) {
            let why = "it is in safe mode and has not been heard of lately".to_owned();
            plan.hold(Subject::Host(*id), None, why);
        } else if calm < CALM_TICKS {
            let why = format!("it is in safe mode until its risk stays low for {CALM_TICKS} ticks");
            plan.hold(Subject::Host(*id), None, why);
        } else {
            plan.proposals.push(Proposal {
                act: Act::Commit(Change::SafeMode { host: *id, on: false }),
                why: format!("the risk of {} stayed low for {CALM_TICKS} ticks", host.name),
            });
        }
    }
}
