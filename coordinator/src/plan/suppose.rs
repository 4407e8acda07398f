//! What-if: the same planner on facts that were changed. Nothing of the real ones is touched.

use std::collections::BTreeMap;

use understudy_common::id::HostId;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::Fate;

use super::{ALIVE, CALM_TICKS, Facts, OVER_TICKS, Plan, Seen, plan};
use crate::lease::LeaseTable;
use crate::state::State;

/// Copies of a state and of facts, to be changed.
#[derive(Clone, Debug)]
pub struct Supposed {
    state: State,
    seen: BTreeMap<HostId, Seen>,
    leases: LeaseTable,
    now: BootTime,
    threshold: Option<BasisPoints>,
}

impl Supposed {
    pub fn new(state: &State, facts: &Facts<'_>) -> Self {
        Self {
            state: state.clone(),
            seen: facts.seen.clone(),
            leases: facts.leases.clone(),
            now: facts.now,
            threshold: facts.threshold,
        }
    }

    pub fn host(&mut self, host: HostId, fate: Fate) {
        match fate {
            Fate::Risk(risk) => self.risk(host, risk),
            Fate::Dead => self.dead(host),
        }
    }

    fn risk(&mut self, id: HostId, risk: BasisPoints) {
        if let Some(host) = self.state.hosts.get_mut(&id) {
            host.risk = Some(risk);
        }
        let seen = self.seen.entry(id).or_default();
        let over = self.threshold.is_some_and(|threshold| risk >= threshold);
        let calm = self.threshold.is_some_and(|threshold| risk.0 < threshold.0 / 2);
        seen.over = if over { seen.over.max(OVER_TICKS) } else { 0 };
        seen.calm = if calm { seen.calm.max(CALM_TICKS) } else { 0 };
    }

    /// It fell silent before the last reports of all who are alive.
    fn dead(&mut self, id: HostId) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.gone = true;
        }
        let ago = u64::try_from(ALIVE.as_nanos()).unwrap_or(u64::MAX);
        let ended = BootTime(self.now.0.saturating_sub(ago));
        for (service, known) in &self.state.services {
            let ends = known.silence_ends(&self.state);
            if ends && known.holder.is_some_and(|holder| holder.host == id) {
                self.leases.suppose_ended(*service, known.epoch, ended);
            }
        }
    }

    /// The plan that these facts would lead to, and the state that it is about.
    pub fn plan(&self, facts: &Facts<'_>) -> Plan {
        plan(
            &self.state,
            &Facts {
                seen: &self.seen,
                leases: &self.leases,
                ..*facts
            },
        )
    }
}
