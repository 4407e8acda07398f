//! Changes of who the coordinators are: learner first, then joint consensus, one at a time.
//!
//! Invariants: the state and raft's own configuration change together, by the same entry. A learner
//! votes only once it has caught up and said which commands it can apply. The leader never removes
//! itself: it gives the leadership away first. One that finds itself removed leads no longer.

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry};
use raft::{Progress, ProgressState};
use understudy_common::id::CoordinatorId;
use understudy_common::units::BootTime;
use understudy_common::wire::{self, Refusal, Response};

use super::requests::Answer;
use super::{Replica, RequestId};
use crate::state::{Membership, MembershipChange, Outcome, Standing};

/// Entries that a learner may be behind when it begins to vote.
const BEHIND_MAX: u64 = 64;

impl Replica {
    pub(super) fn ask_members(&mut self, now: BootTime, id: RequestId, change: MembershipChange) {
        if let Err(why) = self.state.coordinators.check(change) {
            self.reply(id, Response::Refused(Refusal::Invalid(why)));
            return;
        }
        if change == (MembershipChange::Remove { id: self.settings.id }) {
            // Whoever leads next is asked again.
            self.hand_on(now);
            self.reply(id, Response::NotLeader(None));
            return;
        }
        match self.propose_members(change) {
            Ok(index) => self.wait_for(index, id, Answer::Document),
            Err(refusal) => self.reply(id, Response::Refused(refusal)),
        }
    }

    /// The leader's part of a change that is under way.
    pub(super) fn follow_members(&mut self, now: BootTime) {
        if !self.is_settled() || self.node.raft.has_pending_conf() {
            return;
        }
        let change = if self.is_leaving() {
            // It was elected while two sets of voters had to agree; whoever leads next ends that.
            self.hand_on(now);
            return;
        } else if self.state.coordinators.is_joint() {
            MembershipChange::Settle
        } else {
            match self.state.coordinators.learner() {
                Some((id, learner)) if learner.version.is_some() && self.has_caught_up(id) => {
                    MembershipChange::Promote { id }
                }
                _ => return,
            }
        };
        // What finds no room now is tried again at the next tick.
        let _ = self.propose_members(change);
    }

    fn is_leaving(&self) -> bool {
        let own = self.state.coordinators.members.get(&self.settings.id);
        own.is_some_and(|member| member.standing == Standing::Leaving)
    }

    fn has_caught_up(&self, id: CoordinatorId) -> bool {
        let committed = self.node.raft.raft_log.committed;
        self.node.raft.prs().get(id.0).is_some_and(|progress: &Progress| {
            progress.state == ProgressState::Replicate
                && progress.recent_active
                && progress.matched + BEHIND_MAX >= committed
        })
    }

    fn propose_members(&mut self, change: MembershipChange) -> Result<u64, Refusal> {
        self.check_room()?;
        // raft would put an empty entry into the log instead.
        if self.node.raft.has_pending_conf() {
            return Err(Refusal::Busy("changes of the coordinators".to_owned()));
        }
        let membership = Membership {
            at_ms: self.wall_ms,
            change,
        };
        let context = wire::encode(&membership).into_vec();
        tracing::info!(?change, "proposes");
        self.node
            .propose_conf_change(context, conf_change(change))
            .map_err(|_| Refusal::Busy("proposals".to_owned()))?;
        Ok(self.node.raft.raft_log.last_index())
    }

    /// A committed entry that changes who the coordinators are.
    pub(super) fn apply_members(&mut self, entry: &Entry) -> Outcome {
        self.state.index = entry.index;
        let Ok(membership) = wire::decode::<Membership>(&entry.context) else {
            self.state.garbage += 1;
            return Outcome::Garbage;
        };
        let change = membership.change;
        if let Err(why) = self.state.coordinators.check(change) {
            self.state.refused += 1;
            return Outcome::Refused(why);
        }
        match self.node.apply_conf_change(&conf_change(change)) {
            Ok(members) => {
                self.node.mut_store().set_members(members);
                if self.is_leader() && !self.node.raft.promotable() {
                    // An entry of the leader before: raft would look for its own progress in vain.
                    let term = self.term();
                    self.node.raft.become_follower(term, raft::INVALID_ID);
                }
                self.state.change_members(entry.index, &membership);
                // The newcomer needs a snapshot that names it.
                self.snapshot_due = true;
                tracing::info!(?change, "the coordinators changed");
                Outcome::Applied
            }
            Err(error) => {
                self.state.refused += 1;
                Outcome::Refused(error.to_string())
            }
        }
    }

    /// Whether this replica is, or may still become, a member.
    pub fn is_member(&self) -> bool {
        self.state.coordinators.listens_to(self.settings.id)
    }

    /// The voter that is best prepared to lead, other than this one.
    pub(super) fn successor(&self, now: BootTime) -> Option<CoordinatorId> {
        let members = &self.state.coordinators.members;
        let voters = members
            .iter()
            .filter(|(id, member)| **id != self.settings.id && member.standing == Standing::Voter);
        voters
            .filter_map(|(id, _)| {
                let progress = self.node.raft.prs().get(id.0)?;
                let able = progress.recent_active && !self.has_full_disk(now, *id);
                able.then_some((progress.matched, *id))
            })
            .max()
            .map(|(_, id)| id)
    }
}

fn conf_change(change: MembershipChange) -> ConfChangeV2 {
    let (kind, id, transition) = match change {
        MembershipChange::Add { id, .. } => (ConfChangeType::AddLearnerNode, id, ConfChangeTransition::Auto),
        MembershipChange::Promote { id } => (ConfChangeType::AddNode, id, ConfChangeTransition::Explicit),
        MembershipChange::Remove { id } => (ConfChangeType::RemoveNode, id, ConfChangeTransition::Explicit),
        MembershipChange::Settle => return ConfChangeV2::default(),
    };
    let mut single = ConfChangeSingle {
        node_id: id.0,
        ..ConfChangeSingle::default()
    };
    single.set_change_type(kind);
    let mut change = ConfChangeV2::default();
    change.set_transition(transition);
    change.set_changes(vec![single].into());
    change
}
