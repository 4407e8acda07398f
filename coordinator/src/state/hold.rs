//! What is not done although something speaks for it, and decisions that change nothing but the
//! event log.

use understudy_common::id::{Epoch, ServiceId};

use super::EventKind;
use super::apply::{Applying, Checked};

/// One thing held back for one cause. It is told when it begins, not at every look.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
)]
#[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord))]
pub struct Hold {
    /// None: it is about the whole cluster.
    pub service: Option<ServiceId>,
    pub cause: Cause,
}

/// Why something is held back.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
)]
#[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord))]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// An operator paused moves by prediction.
    Paused,
    /// It was moved by prediction a short while ago.
    Window,
    /// As many hosts are acted on as may be at once.
    ShareCap,
    /// More leases ended at once than hosts fail at once.
    StormDelay,
    /// Nobody is fit to take over.
    NoTarget,
    /// A shadow would share a failure domain with its primary.
    Domain,
    /// Those who watch a holder do not agree.
    Disagreement,
    /// Its holder is silent, and its policy lets a silent holder go on.
    Policy,
}

impl Cause {
    /// The words for people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Window => "window",
            Self::ShareCap => "share cap",
            Self::StormDelay => "storm delay",
            Self::NoTarget => "no fit target",
            Self::Domain => "failure domain",
            Self::Disagreement => "observers disagree",
            Self::Policy => "policy",
        }
    }
}

impl Applying<'_> {
    pub(super) fn condemned(&mut self, id: ServiceId, epoch: Epoch, by_evidence: bool) -> Checked {
        let at_ms = self.at_ms;
        let service = self.service_at(id, epoch)?;
        if by_evidence {
            service.distrusted_at_ms = Some(at_ms);
        }
        let host = service.holder.map(|holder| holder.host);
        let text = format!("{}: {epoch} is renewed no more", service.spec.name);
        self.event(EventKind::Condemned, Some(id), host, text);
        Ok(())
    }

    pub(super) fn held(&mut self, hold: Hold, on: bool) -> Checked {
        let subject = match hold.service {
            None => "the cluster".to_owned(),
            Some(id) => match self.state.services.get(&id) {
                Some(service) => service.spec.name.clone(),
                None => return Err(format!("there is no {id}")),
            },
        };
        if !on {
            self.state.held.remove(&hold);
        } else if self.state.held.insert(hold) {
            let text = format!("{subject}: held back ({})", hold.cause.label());
            self.event(EventKind::HeldBack, hold.service, None, text);
        }
        Ok(())
    }
}
