//! Who the coordinators are, where they listen, and which commands each of them can apply.
//!
//! Invariants: at most one change is under way. A number is never used twice, so that a coordinator
//! that was removed is told apart from one that is not known yet. There are 1 to [`VOTERS_MAX`] voters.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use understudy_common::id::CoordinatorId;

use super::{EventKind, State};

/// More voters than this only slow commits down.
pub const VOTERS_MAX: usize = 7;
/// Longest name of a program version.
pub const SOFTWARE_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Coordinators {
    pub members: BTreeMap<CoordinatorId, Coordinator>,
    /// Raft index of the last change of who they are.
    pub revision: u64,
    /// The highest number ever used.
    pub last_id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Coordinator {
    /// Where it listens; none in a cluster that has no network.
    pub addr: Option<SocketAddr>,
    pub standing: Standing,
    /// The highest command version that it can apply, as it said itself.
    pub version: Option<u32>,
    /// The version of its program, for people.
    pub software: String,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Catches up; its word counts for nothing.
    Learner,
    /// Becomes a voter: both the voters before and those after it have to agree.
    Entering,
    Voter,
    /// Stops being a member: both the voters before and those after it have to agree.
    Leaving,
}

/// What a membership entry of the log says, in raft's `Entry.context`.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Membership {
    /// Wall time of the proposer, for people.
    pub at_ms: u64,
    pub change: MembershipChange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum MembershipChange {
    /// As a learner.
    Add {
        id: CoordinatorId,
        addr: SocketAddr,
    },
    /// The learner has caught up and begins to vote.
    Promote {
        id: CoordinatorId,
    },
    Remove {
        id: CoordinatorId,
    },
    /// Ends the time in which two sets of voters have to agree.
    Settle,
}

impl Coordinators {
    /// The voters that the configuration files name.
    pub fn first(voters: impl IntoIterator<Item = (CoordinatorId, Option<SocketAddr>)>, index: u64) -> Self {
        let voter = |addr| Coordinator {
            addr,
            standing: Standing::Voter,
            version: None,
            software: String::new(),
        };
        let members: BTreeMap<_, _> = voters.into_iter().map(|(id, addr)| (id, voter(addr))).collect();
        Self {
            last_id: members.keys().next_back().map_or(0, |id| id.0),
            members,
            revision: index,
        }
    }

    /// Whether its messages are to be taken in: it is a member, or so new that it is not known here.
    pub fn listens_to(&self, id: CoordinatorId) -> bool {
        self.members.contains_key(&id) || id.0 > self.last_id
    }

    /// The members that cannot apply commands of `version`. One that has not said what it can apply
    /// knows the commands of the first version.
    pub fn older_than(&self, version: u32) -> impl Iterator<Item = CoordinatorId> {
        self.members
            .iter()
            .filter(move |(_, member)| member.version.unwrap_or(1) < version)
            .map(|(id, _)| *id)
    }

    pub fn learner(&self) -> Option<(CoordinatorId, &Coordinator)> {
        let mut members = self.members.iter();
        members
            .find(|(_, member)| member.standing == Standing::Learner)
            .map(|(id, member)| (*id, member))
    }

    /// Whether two sets of voters have to agree.
    pub fn is_joint(&self) -> bool {
        self.members
            .values()
            .any(|member| matches!(member.standing, Standing::Entering | Standing::Leaving))
    }

    fn voters(&self) -> usize {
        let voters = self.members.values();
        voters.filter(|member| member.standing == Standing::Voter).count()
    }

    /// # Errors
    /// Why the change is refused, in plain words.
    pub fn check(&self, change: MembershipChange) -> Result<(), String> {
        match change {
            MembershipChange::Settle if self.is_joint() => Ok(()),
            MembershipChange::Settle => Err("no change of the coordinators is under way".to_owned()),
            _ if self.is_joint() => {
                Err("another change of the coordinators is under way; try again in a moment".to_owned())
            }
            MembershipChange::Add { id, addr } => self.check_add(id, addr),
            MembershipChange::Promote { id } => match self.learner() {
                Some((learner, _)) if learner == id => Ok(()),
                _ => Err(format!("{id} does not catch up as a learner")),
            },
            MembershipChange::Remove { id } => self.check_remove(id),
        }
    }

    fn check_add(&self, id: CoordinatorId, addr: SocketAddr) -> Result<(), String> {
        if self.members.contains_key(&id) {
            return Err(format!("{id} is a member already"));
        }
        if id.0 <= self.last_id {
            let next = self.last_id.saturating_add(1);
            return Err(format!(
                "numbers of coordinators are never used twice: give {next} or a higher one"
            ));
        }
        if let Some((other, _)) = self.members.iter().find(|(_, member)| member.addr == Some(addr)) {
            return Err(format!("{other} listens at {addr} already"));
        }
        self.check_no_learner()?;
        if self.voters() >= VOTERS_MAX {
            return Err(format!(
                "there are {VOTERS_MAX} coordinators already, and more only slow commits down"
            ));
        }
        Ok(())
    }

    fn check_remove(&self, id: CoordinatorId) -> Result<(), String> {
        let Some(member) = self.members.get(&id) else {
            return Err(format!("{id} is no member"));
        };
        if member.standing == Standing::Learner {
            return Ok(());
        }
        self.check_no_learner()?;
        if self.voters() == 1 {
            return Err(format!("{id} is the only voter: add another one first"));
        }
        Ok(())
    }

    fn check_no_learner(&self) -> Result<(), String> {
        match self.learner() {
            Some((id, _)) => Err(format!(
                "{id} is being added and has not caught up yet: wait for it, or remove it"
            )),
            None => Ok(()),
        }
    }

    /// A change that was checked.
    fn carry_out(&mut self, index: u64, change: MembershipChange) {
        self.revision = index;
        let stand = |members: &mut BTreeMap<CoordinatorId, Coordinator>, id, standing| {
            if let Some(member) = members.get_mut(&id) {
                member.standing = standing;
            }
        };
        match change {
            MembershipChange::Add { id, addr } => {
                let learner = Coordinator {
                    addr: Some(addr),
                    standing: Standing::Learner,
                    version: None,
                    software: String::new(),
                };
                self.members.insert(id, learner);
                self.last_id = id.0;
            }
            MembershipChange::Promote { id } => stand(&mut self.members, id, Standing::Entering),
            MembershipChange::Remove { id } => stand(&mut self.members, id, Standing::Leaving),
            MembershipChange::Settle => {
                self.members
                    .retain(|_, member| member.standing != Standing::Leaving);
                for member in self.members.values_mut() {
                    if member.standing == Standing::Entering {
                        member.standing = Standing::Voter;
                    }
                }
            }
        }
    }
}

impl State {
    /// Carries out a change that [`Coordinators::check`] allows and raft has taken.
    pub fn change_members(&mut self, index: u64, Membership { at_ms, change }: &Membership) {
        self.coordinators.carry_out(index, *change);
        let (kind, text) = match change {
            MembershipChange::Add { id, addr } => (
                EventKind::CoordinatorAdded,
                format!("{id} at {addr} is being added: it catches up first"),
            ),
            MembershipChange::Promote { id } => (
                EventKind::CoordinatorPromoted,
                format!("{id} has caught up and votes from now on"),
            ),
            MembershipChange::Remove { id } => (
                EventKind::CoordinatorRemoved,
                format!("{id} is no coordinator of this cluster any more"),
            ),
            MembershipChange::Settle => return,
        };
        self.events.push(*at_ms, kind, None, None, text);
    }
}
