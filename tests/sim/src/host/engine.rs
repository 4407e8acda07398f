//! The sync engines' part in the protocol, without files: what is cut, shipped, sealed, acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_agent::service::SyncStatus;
use understudy_common::id::{Epoch, GenerationId, HostId};
use understudy_common::units::BootTime;
use understudy_common::wire::{CopyState, FinalCut};

use super::store::{Sealed, Store};

const CUT_EVERY: Duration = Duration::from_millis(150);
/// A generation that was not acknowledged is shipped again after this.
const SHIP_AGAIN: Duration = Duration::from_millis(250);
/// How long the final cut waits for shadows that do not answer.
pub const FINAL_CUT_MAX: Duration = Duration::from_secs(10);
/// Comparing a copy with its hashes, and filling one from nothing.
const CHECK: Duration = Duration::from_millis(200);
const FILL: Duration = Duration::from_millis(400);

#[derive(Debug, Default)]
pub enum Engine {
    #[default]
    None,
    Primary(Primary),
    Shadow(Shadow),
}

#[derive(Debug)]
pub struct Primary {
    epoch: Epoch,
    newest: Option<Sealed>,
    /// Generations of the epoch up to here may be in use.
    taken: u64,
    shadows: Vec<HostId>,
    acked: BTreeMap<HostId, GenerationId>,
    cut_at: BootTime,
    ship_at: BootTime,
    pub final_cut: Option<FinalCut>,
    pub final_until: BootTime,
}

#[derive(Debug)]
pub struct Shadow {
    pub primary: HostId,
    pub epoch: Epoch,
    copy: CopyState,
    /// When the copy is checked or filled.
    warm_at: Option<BootTime>,
    failure: Option<String>,
}

/// Of whom a frame is and what it carries.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub epoch: Epoch,
    pub sealed: Sealed,
}

impl Primary {
    /// `from` is what a promotion continues.
    pub fn new(epoch: Epoch, from: Option<Sealed>, taken: u64, shadows: Vec<HostId>) -> Self {
        let mut primary = Self {
            epoch,
            newest: from,
            taken,
            shadows: Vec::new(),
            acked: BTreeMap::new(),
            cut_at: BootTime::ZERO,
            ship_at: BootTime::ZERO,
            final_cut: None,
            final_until: BootTime::ZERO,
        };
        primary.set_shadows(shadows);
        primary
    }

    pub fn set_shadows(&mut self, shadows: Vec<HostId>) {
        self.acked.retain(|host, _| shadows.contains(host));
        self.shadows = shadows;
        self.ship_at = BootTime::ZERO;
    }

    /// Cuts what changed. The first cut of an epoch is made even if nothing did.
    pub fn cut(&mut self, now: BootTime, store: &Store) {
        let changed = self
            .newest
            .is_none_or(|newest| newest.content != store.files || newest.id.epoch != self.epoch);
        if changed && self.final_cut.is_none() && now >= self.cut_at {
            self.cut_now(now, store);
        }
    }

    fn cut_now(&mut self, now: BootTime, store: &Store) -> GenerationId {
        let n = self
            .newest
            .filter(|newest| newest.id.epoch == self.epoch)
            .map_or(0, |newest| newest.id.n);
        let id = GenerationId {
            epoch: self.epoch,
            n: n.max(self.taken) + 1,
        };
        self.newest = Some(Sealed {
            id,
            content: store.files,
        });
        self.cut_at = now + CUT_EVERY;
        self.ship_at = BootTime::ZERO;
        id
    }

    pub fn final_cut(&mut self, now: BootTime, store: &Store) {
        let generation = self.cut_now(now, store);
        self.final_until = now + FINAL_CUT_MAX;
        self.final_cut = Some(FinalCut {
            epoch: self.epoch,
            generation,
            acked_by: Vec::new(),
        });
    }

    /// The final cut, once all have it or it has waited long enough for them.
    pub fn final_cut_done(&self, now: BootTime) -> Option<FinalCut> {
        let cut = self.final_cut.as_ref()?;
        let all = self.shadows.iter().all(|host| cut.acked_by.contains(host));
        (all || now >= self.final_until).then(|| cut.clone())
    }

    /// The final cut as a copy of this host, when another one has it as well.
    pub fn settled(&self) -> Option<Sealed> {
        let cut = self.final_cut.as_ref()?;
        self.newest.filter(|_| !cut.acked_by.is_empty())
    }

    /// What is to be shipped now, and to whom.
    pub fn ship(&mut self, now: BootTime) -> Option<(Frame, Vec<HostId>)> {
        let behind = self.behind();
        if behind.is_empty() || now < self.ship_at {
            return None;
        }
        self.ship_at = now + SHIP_AGAIN;
        let frame = Frame {
            epoch: self.epoch,
            sealed: self.newest?,
        };
        Some((frame, behind))
    }

    fn behind(&self) -> Vec<HostId> {
        let Some(newest) = self.newest.filter(|newest| newest.id.epoch == self.epoch) else {
            return Vec::new();
        };
        let shadows = self.shadows.iter().copied();
        shadows
            .filter(|host| self.acked.get(host).is_none_or(|acked| *acked < newest.id))
            .collect()
    }

    pub fn acked(&mut self, from: HostId, generation: GenerationId) {
        if generation.epoch != self.epoch || !self.shadows.contains(&from) {
            return;
        }
        let known = self.acked.entry(from).or_insert(generation);
        *known = generation.max(*known);
        if let Some(cut) = &mut self.final_cut
            && generation >= cut.generation
            && !cut.acked_by.contains(&from)
        {
            cut.acked_by.push(from);
        }
    }

    /// When there is something to do again.
    pub fn timeout(&self, store: &Store) -> Option<BootTime> {
        let dirty = store.kernel.running
            && self.final_cut.is_none()
            && self
                .newest
                .is_none_or(|newest| newest.content != store.files || newest.id.epoch != self.epoch);
        let cut = dirty.then_some(self.cut_at);
        let ship = (!self.behind().is_empty()).then_some(self.ship_at);
        let done = self.final_cut.as_ref().map(|_| self.final_until);
        cut.into_iter().chain(ship).chain(done).min()
    }

    fn status(&self) -> SyncStatus {
        SyncStatus {
            generation: self.newest.map(|newest| newest.id),
            acked: self.acked.iter().map(|(host, id)| (*host, *id)).collect(),
            final_cut: self.final_cut.clone(),
            ..SyncStatus::default()
        }
    }
}

impl Shadow {
    pub fn open(primary: HostId, epoch: Epoch, now: BootTime, store: &Store) -> Self {
        let mut shadow = Self {
            primary,
            epoch,
            copy: CopyState::Cold,
            warm_at: None,
            failure: None,
        };
        if store.sealed.is_some() && !store.own {
            if store.kernel.verified {
                shadow.copy = CopyState::Ready;
            } else {
                shadow.copy = CopyState::Warming;
                shadow.warm_at = Some(now + CHECK);
            }
        }
        shadow
    }

    /// Whether the frame can be taken now; a copy that is none has to be filled first.
    pub fn takes(&mut self, now: BootTime, from: HostId, frame: &Frame) -> bool {
        if from != self.primary || frame.epoch < self.epoch {
            return false;
        }
        match self.copy {
            CopyState::Ready => true,
            _ => now >= *self.warm_at.get_or_insert(now + FILL),
        }
    }

    /// The copy was compared.
    pub fn warm(&mut self, now: BootTime, store: &mut Store) {
        if self.copy == CopyState::Warming && self.warm_at.is_some_and(|at| now >= at) {
            self.became_ready(store);
        }
    }

    pub fn became_ready(&mut self, store: &mut Store) {
        self.copy = CopyState::Ready;
        self.warm_at = None;
        self.failure = None;
        store.kernel.verified = true;
    }

    /// The disk did not take a generation: the copy cannot be relied on any more.
    pub fn failed(&mut self, why: &str) {
        self.copy = CopyState::Cold;
        self.failure = Some(why.to_owned());
    }

    fn status(&self, store: &Store) -> SyncStatus {
        SyncStatus {
            copy: self.copy,
            generation: store.sealed.filter(|_| !store.own).map(|sealed| sealed.id),
            failure: self.failure.clone(),
            ..SyncStatus::default()
        }
    }
}

impl Engine {
    pub fn status(&self, store: &Store) -> SyncStatus {
        match self {
            Self::None => SyncStatus::default(),
            Self::Primary(primary) => primary.status(),
            Self::Shadow(shadow) => shadow.status(store),
        }
    }

    pub fn timeout(&self, store: &Store) -> Option<BootTime> {
        match self {
            Self::None => None,
            Self::Primary(primary) => primary.timeout(store),
            Self::Shadow(shadow) => shadow.warm_at.filter(|_| shadow.copy == CopyState::Warming),
        }
    }
}
