//! What a leader does unasked: plans, proposals, orders, and what follows from applied entries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::eraftpb::Entry;
use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{Order, Refusal, Response};

use super::announce;
use super::holds::Holds;
use super::requests::{Answer, Waiter};
use super::{Fault, Leading, ORDER_EVERY, Output, PROPOSALS_MAX, Replica, TICK};
use crate::plan::{self, Act, Facts, Plan, Proposal};
use crate::state::{Change, Command, Outcome, orders_for};

/// A risk that moved by less is not proposed, unless it crossed the threshold or half of it.
const RISK_STEP: BasisPoints = BasisPoints(100);
/// Without a model a host in safe mode counts as calm once in this time.
const CALM_EVERY: Duration = Duration::from_secs(1);

impl Leading {
    pub(super) fn new(term: u64, now: BootTime) -> Self {
        Self {
            term,
            full: BTreeMap::new(),
            seen: BTreeMap::new(),
            waiters: BTreeMap::new(),
            proposed: BTreeMap::new(),
            steps: BTreeMap::new(),
            failed: BTreeMap::new(),
            sent: BTreeMap::new(),
            orders_at: now,
            orders_index: 0,
            calm_at: now,
            holds: Holds::default(),
        }
    }
}

impl Replica {
    /// The leader's model: one risk per host, once a second.
    pub fn handle_scores(&mut self, now: BootTime, wall_ms: u64, scores: &[(HostId, BasisPoints)]) {
        self.wall_ms = wall_ms;
        if !self.is_settled() {
            return;
        }
        let threshold = self.settings.threshold;
        let mut changed = Vec::new();
        for (id, risk) in scores {
            let Some(host) = self.state.hosts.get(id) else {
                continue;
            };
            if host.risk.is_none_or(|known| is_news(known, *risk, threshold)) {
                changed.push((*id, *risk));
            }
            let Some(leading) = &mut self.leading else { return };
            let seen = leading.seen.entry(*id).or_default();
            if let Some(threshold) = threshold {
                let (over, calm) = (*risk >= threshold, risk.0 < threshold.0 / 2);
                seen.over = if over { seen.over.saturating_add(1) } else { 0 };
                seen.calm = if calm { seen.calm.saturating_add(1) } else { 0 };
            }
        }
        if !changed.is_empty() {
            // What finds no room now is news at the next tick again.
            let _ = self.propose(Change::Risks(changed), "");
        }
        self.drive(now);
        self.decide(now);
        self.drive(now);
    }

    /// Without a model nothing says that a host is at risk: time alone ends safe mode.
    pub(super) fn count_calm(&mut self, now: BootTime) {
        let Some(leading) = self
            .leading
            .as_mut()
            .filter(|_| self.settings.threshold.is_none())
        else {
            return;
        };
        if now.since(leading.calm_at) < CALM_EVERY {
            return;
        }
        leading.calm_at = now;
        for (id, host) in &self.state.hosts {
            if host.safe_mode {
                let seen = leading.seen.entry(*id).or_default();
                seen.calm = seen.calm.saturating_add(1);
            }
        }
    }

    /// Plans and carries the plan out.
    pub(super) fn decide(&mut self, now: BootTime) {
        if !self.is_settled() {
            return;
        }
        self.leases.handle_tick(now);
        let (Plan { proposals, held }, failing) = self
            .with_facts(now, |facts| {
                (plan::plan(&self.state, facts), plan::failing(&self.state, facts))
            })
            .unwrap_or_default();
        self.count_failures(failing);
        for Proposal { act, why } in proposals {
            match act {
                Act::Commit(change) => {
                    self.commit(change, &why);
                }
                Act::Condemn {
                    service,
                    epoch,
                    by_evidence,
                } => {
                    let change = Change::Condemned {
                        service,
                        epoch,
                        by_evidence,
                    };
                    // What cannot be told yet is not done yet.
                    if self.commit(change, &why) {
                        self.leases.condemn(service, epoch);
                    }
                }
                Act::Strand { service, epoch } => self.leases.strand(service, epoch),
            }
        }
        self.tell_holds(now, &held);
    }

    /// What this leader knows, for the planner; none when it does not lead.
    pub(super) fn with_facts<T>(&self, now: BootTime, ask: impl FnOnce(&Facts<'_>) -> T) -> Option<T> {
        let leading = self.leading.as_ref()?;
        let busy: BTreeSet<_> = leading.proposed.keys().copied().collect();
        let since = leading
            .steps
            .iter()
            .map(|(id, (_, since))| (*id, *since))
            .collect();
        let failed = leading
            .failed
            .iter()
            .map(|(id, (_, times))| (*id, *times))
            .collect();
        Some(ask(&Facts {
            now,
            wall_ms: self.wall_ms,
            threshold: self.settings.threshold,
            seen: &leading.seen,
            leases: &self.leases,
            since: &since,
            busy: &busy,
            failed: &failed,
        }))
    }

    /// How often in a row each service did not start.
    fn count_failures(&mut self, failing: Vec<(ServiceId, Epoch)>) {
        let Some(leading) = &mut self.leading else { return };
        for (id, epoch) in failing {
            let (last, times) = leading.failed.entry(id).or_default();
            if *last != epoch {
                (*last, *times) = (epoch, times.saturating_add(1));
            }
        }
        leading.failed.retain(|id, _| {
            let service = self.state.services.get(id);
            let holder = service.and_then(|service| service.holder);
            holder.is_some_and(|holder| !holder.served)
        });
    }

    /// Whether it is on its way.
    fn commit(&mut self, change: Change, why: &str) -> bool {
        tracing::info!(?change, why, "proposes");
        let service = change.service();
        let grant = match &change {
            Change::Grant { service, epoch, .. } => Some((*service, *epoch)),
            _ => None,
        };
        if let (Change::SafeMode { host, .. }, Some(leading)) = (&change, &mut self.leading) {
            // Counts anew, so that the change is proposed once.
            leading.seen.entry(*host).or_default().calm = 0;
        }
        let Ok(index) = self.propose(change, why) else {
            return false;
        };
        if let Some((service, epoch)) = grant {
            let before = Epoch(epoch.0.saturating_sub(1));
            self.leases.succeed(service, before);
        }
        if let (Some(service), Some(leading)) = (service, &mut self.leading) {
            leading.proposed.insert(service, index);
        }
        true
    }

    /// Appends a command to the leader's log; its index.
    ///
    /// # Errors
    /// `Busy` when there is no room now; otherwise which members cannot apply it.
    pub(super) fn propose(&mut self, change: Change, why: &str) -> Result<u64, Refusal> {
        self.check_room()?;
        self.check_version(&change)?;
        let context = announce::context(&change);
        let command = Command::new(self.wall_ms, change).because(why);
        // raft takes nothing in while the leadership is being given away.
        self.node
            .propose(context, command.encode())
            .map_err(|_| Refusal::Busy("elections".to_owned()))?;
        Ok(self.node.raft.raft_log.last_index())
    }

    /// Whether one more entry can be proposed.
    pub(super) fn check_room(&self) -> Result<(), Refusal> {
        if self.disk_full {
            let id = self.settings.id;
            return Err(Refusal::Busy(format!("writes of {id}, whose disk has no room,")));
        }
        let last = self.node.raft.raft_log.last_index();
        if !self.is_leader() || last.saturating_sub(self.state.index) >= PROPOSALS_MAX {
            return Err(Refusal::Busy("proposals".to_owned()));
        }
        Ok(())
    }

    /// An entry was applied: whoever waits for it is told.
    pub(super) fn settle(&mut self, entry: &Entry, outcome: &Outcome) {
        if let Outcome::Refused(why) = outcome {
            // Whoever waits for it is told. All replicas refuse it, and again whenever they start.
            let own =
                |leading: &Leading| leading.term == entry.term && !leading.waiters.contains_key(&entry.index);
            if self.leading.as_ref().is_some_and(own) {
                tracing::warn!(index = entry.index, why, "a command was refused");
            } else {
                tracing::debug!(index = entry.index, why, "a command was refused");
            }
        }
        let Some(leading) = &mut self.leading else { return };
        let settled: Vec<_> = leading
            .proposed
            .extract_if(.., |_, index| *index <= entry.index)
            .map(|(service, _)| service)
            .collect();
        if matches!(outcome, Outcome::Refused(_)) {
            for service in settled {
                self.leases.unsucceed(service);
            }
        }
        let Some(Waiter { term, id, answer }) = leading.waiters.remove(&entry.index) else {
            return;
        };
        let response = match outcome {
            _ if term != entry.term => Response::NotLeader(self.leader()),
            Outcome::Applied => match answer {
                Answer::Done => Response::Done,
                Answer::Document => {
                    Response::Document(serde_json::json!({ "index": entry.index }).to_string())
                }
                Answer::Admitted { token, request } => self.admission_answer(&token, &request),
            },
            Outcome::Refused(why) => Response::Refused(Refusal::Invalid(why.clone())),
            Outcome::Garbage => Response::Refused(Refusal::Invalid("the command cannot be read".to_owned())),
        };
        self.reply(id, response);
    }

    /// The state changed: which epochs and steps it has now.
    pub(super) fn observe(&mut self, now: BootTime) {
        let Some(leading) = &mut self.leading else { return };
        for (id, service) in &self.state.services {
            if service.holder.is_some() {
                self.leases.observe(now, *id, service.epoch);
                if service.is_fenced() {
                    self.leases.fence(*id, service.epoch);
                }
                let silence_ends = service.silence_ends(&self.state);
                self.leases
                    .set_terms(now, *id, &service.promotable(), silence_ends);
            }
            let step = plan::step_of(service);
            if leading.steps.get(id).map(|(known, _)| *known) != Some(step) {
                leading.steps.insert(*id, (step, now));
            }
        }
    }

    /// Sends each host the orders that it has not obeyed yet: new ones at once, others again and again.
    pub(super) fn send_orders(&mut self, now: BootTime) {
        if !self.is_settled() {
            return;
        }
        let Some(leading) = &mut self.leading else { return };
        if leading.orders_index == self.state.index && now < leading.orders_at {
            return;
        }
        leading.orders_index = self.state.index;
        leading.orders_at = now + TICK;
        let mut due: Vec<(HostId, Order)> = Vec::new();
        // Most hosts of a large fleet are named by no service.
        let named: BTreeSet<HostId> = self
            .state
            .services
            .values()
            .flat_map(|service| service.spec.hosts.iter().copied())
            .collect();
        for host in &named {
            let Some(boot) = self.state.hosts.get(host).map(|host| host.boot) else {
                continue;
            };
            let report = leading
                .seen
                .get(host)
                .and_then(|seen| seen.report.as_ref())
                .filter(|report| report.boot == boot);
            for order in orders_for(&self.state, *host) {
                let obeyed = report
                    .and_then(|report| {
                        report
                            .services
                            .iter()
                            .find(|known| known.service == order.service)
                    })
                    .is_some_and(|known| known.revision >= order.revision);
                let sent = leading.sent.get(&(*host, order.service));
                let overdue = |at: BootTime| {
                    now.since(at) >= ORDER_EVERY && self.settings.fault != Some(Fault::OrdersOnce)
                };
                let again = sent.is_none_or(|(revision, at)| *revision < order.revision || overdue(*at));
                if !obeyed && again {
                    due.push((*host, order));
                }
            }
        }
        for (host, order) in &due {
            leading.sent.insert((*host, order.service), (order.revision, now));
        }
        for (host, order) in due {
            self.push(Output::Order { host, order });
        }
    }

    /// The leadership is over: nobody is left without an answer.
    pub(super) fn dismiss(&mut self, leading: Leading) {
        let hint = self.leader();
        for waiter in leading.waiters.into_values() {
            self.reply(waiter.id, Response::NotLeader(hint));
        }
        for pending in self.rounds.drain() {
            self.reply(pending.id, Response::NotLeader(hint));
        }
    }
}

/// Whether a risk differs enough from the known one to be worth an entry.
fn is_news(known: BasisPoints, risk: BasisPoints, threshold: Option<BasisPoints>) -> bool {
    let crossed = |line: u16| (known.0 >= line) != (risk.0 >= line);
    known.0.abs_diff(risk.0) >= RISK_STEP.0
        || threshold.is_some_and(|threshold| crossed(threshold.0) || crossed(threshold.0 / 2))
}
