//! The end of safe mode.

use super::{Act, CALM_TICKS, Proposal, View};
use crate::state::Change;

/// Hosts whose risk stayed low long enough leave safe mode.
pub(super) fn calmed(view: &View<'_>) -> Vec<Proposal> {
    view.state
        .hosts
        .iter()
        .filter(|(id, host)| {
            let calm = view.facts.seen.get(id).map_or(0, |seen| seen.calm);
            host.safe_mode && calm >= CALM_TICKS && view.is_alive(**id)
        })
        .map(|(id, host)| Proposal {
            act: Act::Commit(Change::SafeMode { host: *id, on: false }),
            why: format!("the risk of {} stayed low for {CALM_TICKS} ticks", host.name),
        })
        .collect()
}
