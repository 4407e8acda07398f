//! Giving the leadership to another voter, bounded in time.
//!
//! Invariant: whoever asked is answered when another one leads or the time is over, whichever is first.

use std::time::Duration;

use understudy_common::id::CoordinatorId;
use understudy_common::units::BootTime;
use understudy_common::wire::{Refusal, Response};

use super::{Replica, RequestId};
use crate::state::Standing;

/// raft gives a transfer up after an election timeout; a successor that lost its race needs another.
pub const TRANSFER_MAX: Duration = Duration::from_millis(2_000);

/// A transfer under way.
pub(super) struct Transfer {
    to: CoordinatorId,
    until: BootTime,
    id: Option<RequestId>,
}

impl Replica {
    pub(super) fn ask_transfer(&mut self, now: BootTime, id: RequestId, to: CoordinatorId) {
        let refusal = match self.state.coordinators.members.get(&to) {
            None => Some(format!("{to} is no member")),
            Some(_) if to == self.settings.id => Some(format!("{to} leads already")),
            Some(member) if member.standing != Standing::Voter => Some(format!("{to} is no voter")),
            Some(_) if self.transfer.is_some() => {
                Some("the leadership is being transferred already".to_owned())
            }
            Some(_) if self.has_full_disk(now, to) => Some(format!("the disk of {to} is full")),
            Some(_) if !self.is_active(to) => Some(format!("{to} does not answer")),
            Some(_) => None,
        };
        match refusal {
            Some(why) => self.reply(id, Response::Refused(Refusal::Invalid(why))),
            None => self.transfer(now, to, Some(id)),
        }
    }

    /// Gives the leadership to the voter that is best prepared, if there is one. False when this
    /// replica does not lead or nobody could take over.
    pub fn hand_on(&mut self, now: BootTime) -> bool {
        let Some(to) = self.successor(now).filter(|_| self.is_leader()) else {
            return false;
        };
        if self.transfer.is_none() {
            self.transfer(now, to, None);
            self.drive(now);
        }
        true
    }

    fn transfer(&mut self, now: BootTime, to: CoordinatorId, id: Option<RequestId>) {
        tracing::info!(%to, "gives the leadership away");
        self.transfer = Some(Transfer {
            to,
            until: now + TRANSFER_MAX,
            id,
        });
        self.node.transfer_leader(to.0);
    }

    /// Answers when it is known who leads now, or the time is over.
    pub(super) fn follow_transfer(&mut self, now: BootTime) {
        let Some(transfer) = &self.transfer else { return };
        let leader = self.leader();
        let over = now >= transfer.until;
        let moved = !self.is_leader() && leader.is_some();
        if !over && !moved {
            return;
        }
        let (to, id) = (transfer.to, transfer.id);
        self.transfer = None;
        if self.is_leader() {
            tracing::warn!(%to, "did not take the leadership");
        }
        let Some(id) = id else { return };
        let response = match leader {
            Some(leader) if leader == to => Response::Done,
            Some(leader) => Response::Refused(Refusal::Invalid(format!(
                "{to} did not take over in time; {leader} leads"
            ))),
            None => Response::Refused(Refusal::Invalid(format!(
                "{to} did not take over in time, and nobody is known to lead"
            ))),
        };
        self.reply(id, response);
    }

    pub(super) fn is_active(&self, id: CoordinatorId) -> bool {
        let progress = self.node.raft.prs().get(id.0);
        progress.is_some_and(|progress| progress.recent_active)
    }
}
