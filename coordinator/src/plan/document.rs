//! A plan for people: as JSON, and as text that stays the same while the plan does.
//!
//! Invariant: neither holds an instant, nor an age or a count that moves while all is well, so that
//! two of them can be compared line by line.

use std::fmt;

use super::{Act, Plan, Subject};
use crate::state::{Change, State};

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlanDocument {
    /// What was supposed though it is not so.
    pub supposed: Vec<String>,
    /// By subject.
    pub would: Vec<Would>,
    /// By subject.
    pub would_not: Vec<WouldNot>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Would {
    /// A service, a host or the cluster, by name.
    pub subject: String,
    pub act: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WouldNot {
    pub subject: String,
    /// What holds it back; null when nothing speaks for doing anything.
    pub held_by: Option<String>,
    pub why: String,
}

impl PlanDocument {
    pub fn of(plan: &Plan, state: &State, supposed: Vec<String>) -> Self {
        let mut would: Vec<_> = plan
            .proposals
            .iter()
            .map(|proposal| {
                let (about, act) = describe(state, &proposal.act);
                let (subject, why) = (name(state, about), proposal.why.clone());
                (about, Would { subject, act, why })
            })
            .collect();
        would.sort_by_key(|(about, _)| *about);
        let mut held: Vec<_> = plan.held.iter().collect();
        held.sort_by_key(|held| (held.subject, held.cause));
        let would_not = held.into_iter().map(|held| WouldNot {
            subject: name(state, held.subject),
            held_by: held.cause.map(|cause| cause.label().to_owned()),
            why: held.why.clone(),
        });
        Self {
            supposed,
            would: would.into_iter().map(|(_, would)| would).collect(),
            would_not: would_not.collect(),
        }
    }
}

fn name(state: &State, subject: Subject) -> String {
    match subject {
        Subject::Cluster => "the cluster".to_owned(),
        Subject::Host(host) => state.host_name(host),
        Subject::Service(id) => state
            .services
            .get(&id)
            .map_or_else(|| id.to_string(), |service| service.spec.name.clone()),
    }
}

/// Whom an act is about, and what it is.
fn describe(state: &State, act: &Act) -> (Subject, String) {
    let name = |host| state.host_name(host);
    let change = match act {
        Act::Condemn { service, epoch, .. } => {
            let act = format!("renew {epoch} no more, so that its lease ends");
            return (Subject::Service(*service), act);
        }
        Act::Strand { service, epoch } => {
            let act = format!("renew {epoch} again if its holder comes back");
            return (Subject::Service(*service), act);
        }
        Act::Commit(change) => change,
    };
    let subject = match change {
        Change::SafeMode { host, .. } => Subject::Host(*host),
        other => other.service().map_or(Subject::Cluster, Subject::Service),
    };
    let act = match change {
        Change::Grant { epoch, holder, .. } => format!("grant {epoch} to {}", name(*holder)),
        Change::BeginHandover { to, .. } => format!("hand over to {}", name(*to)),
        Change::HolderFenced { epoch, .. } => format!("record that {epoch} is fenced"),
        Change::FinalCut { cut, .. } => format!("record the final cut {}", cut.generation),
        Change::Served { epoch, .. } => format!("record that {epoch} is served"),
        Change::AddShadow { host, .. } => format!("make {} a shadow", name(*host)),
        Change::RemoveShadow { host, .. } => format!("end the copy on {}", name(*host)),
        Change::ShadowReady { host, .. } => format!("let {} take over from now on", name(*host)),
        Change::ShadowUnready { host, .. } => format!("let {} take over no more", name(*host)),
        Change::ServedApart { apart, .. } => {
            format!("record that {} was served without coordinators", apart.epoch)
        }
        Change::SafeMode { on: false, .. } => "end its safe mode".to_owned(),
        other => format!("propose {other:?}"),
    };
    (subject, act)
}

impl fmt::Display for PlanDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for supposed in &self.supposed {
            writeln!(f, "supposed: {supposed}")?;
        }
        writeln!(f, "would:")?;
        for Would { subject, act, why } in &self.would {
            writeln!(f, "  {subject}: {act}, because {why}")?;
        }
        if self.would.is_empty() {
            writeln!(f, "  nothing")?;
        }
        writeln!(f, "would not:")?;
        for WouldNot {
            subject,
            held_by,
            why,
        } in &self.would_not
        {
            match held_by {
                Some(cause) => writeln!(f, "  {subject}: held back ({cause}): {why}")?,
                None => writeln!(f, "  {subject}: {why}")?,
            }
        }
        if self.would_not.is_empty() {
            writeln!(f, "  nothing")?;
        }
        Ok(())
    }
}
