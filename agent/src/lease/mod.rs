//! The holder's side of the lease (DESIGN §5), a machine without I/O.
//!
//! Invariants: `lease/` reads no clock and does no I/O. A deadline is always a send time plus `L`,
//! whenever the answer arrives: of a renewal, or of the oldest of the promises of all shadows
//! (`promise.rs` says why that is safe). Only a service whose policy says so is extended without an answer,
//! and never one whose renewal the coordinators refused. A fenced epoch is never renewed again. What is
//! remembered is bounded by [`OUTSTANDING_MAX`] and [`SERVICES_MAX`].

mod promise;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::spec::CoordinatorLoss;
use understudy_common::units::BootTime;
use understudy_common::wire::{Apart, Basis, Order, PromiseRequest, Promised, Renew, Renewed, Role};

use promise::Promises;

/// Renewals whose answer is still of use. Older ones are forgotten first: they extend the least.
pub const OUTSTANDING_MAX: usize = 16;
/// Services that one host can hold or have fenced. [`LeaseClient::hold`] refuses more.
pub const SERVICES_MAX: usize = 256;
/// Renewal intervals without an answer until the shadows are asked for promises.
const QUIET_ASK: u32 = 2;
/// Renewal intervals without an answer until the policy decides, unless all promises are there.
const QUIET_LOST: u32 = 3;

/// What the data path must now let through, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateChange {
    pub service: ServiceId,
    pub epoch: Epoch,
    /// On this host's boot clock.
    pub deadline: BootTime,
    pub basis: Basis,
}

/// A request for promises to one shadow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    pub to: HostId,
    pub request: PromiseRequest,
}

/// Why an epoch is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    #[error("{epoch} of {service} is fenced here up to {floor}: only a higher epoch can be held")]
    Fenced {
        service: ServiceId,
        epoch: Epoch,
        floor: Epoch,
    },
    #[error("{epoch} of {service} is older than {held}, which this host holds")]
    Older {
        service: ServiceId,
        epoch: Epoch,
        held: Epoch,
    },
    #[error("this host already knows {SERVICES_MAX} services; move some to another host")]
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    sequence: u64,
    at: BootTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    epoch: Epoch,
    /// First renewal that asks for this epoch: answers to earlier ones say nothing about it.
    first_sequence: u64,
    deadline: BootTime,
    /// When the newest renewal that was granted was sent; before the first, when it began to be held.
    answered: BootTime,
    /// The newest renewal that was answered, and whether it was refused.
    answer: u64,
    refused: bool,
    basis: Basis,
    /// The workload takes no writes: `CoordinatorLoss::ReadOnly` may go on.
    read_only: bool,
}

/// What the newest obeyed order says about doing without the coordinators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Terms {
    epoch: Epoch,
    promises: Promises,
    loss: CoordinatorLoss,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Slot {
    floor: Epoch,
    held: Option<Held>,
    terms: Terms,
    apart: Option<Apart>,
}

impl Slot {
    /// The lease that may do without the coordinators under the order in force.
    fn sustained(&mut self) -> Option<(&mut Held, &mut Terms)> {
        let held = self.held.as_mut()?;
        (held.epoch == self.terms.epoch && !held.refused).then_some((held, &mut self.terms))
    }

    /// Extends to `sent + L`; false when that is no extension.
    fn extend(&mut self, now: BootTime, sent: BootTime, times: &LeaseTimes, basis: Basis) -> bool {
        let Some(held) = &mut self.held else { return false };
        let deadline = sent + times.lease;
        if deadline <= held.deadline || deadline <= now {
            return false;
        }
        if basis != Basis::Lease {
            match &mut self.apart {
                Some(apart) if apart.epoch == held.epoch && held.basis != Basis::Lease => {
                    apart.until = deadline;
                    apart.basis = apart.basis.max(basis);
                }
                apart => {
                    *apart = Some(Apart {
                        since: now,
                        until: deadline,
                        basis,
                        epoch: held.epoch,
                    });
                }
            }
        } else if held.basis != Basis::Lease
            && let Some(apart) = &mut self.apart
        {
            apart.until = now;
        }
        held.deadline = deadline;
        held.basis = basis;
        true
    }
}

/// All leases of one host. Drive it with [`Self::handle_order`] for each order that was obeyed,
/// [`Self::handle_tick`], [`Self::handle_renewed`] and [`Self::handle_promised`], then drain
/// [`Self::poll_renew`], [`Self::poll_ask`], [`Self::poll_gate`] and [`Self::poll_forfeit`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseClient {
    host: HostId,
    times: LeaseTimes,
    now: BootTime,
    renew_at: BootTime,
    ask_at: BootTime,
    next_sequence: u64,
    outstanding: VecDeque<Sent>,
    asked: VecDeque<Sent>,
    services: BTreeMap<ServiceId, Slot>,
    extended: BTreeSet<ServiceId>,
    asks: VecDeque<Ask>,
    forfeited: BTreeSet<ServiceId>,
}

impl LeaseClient {
    /// Sequences start at the boot clock, so that an answer to this host's earlier process is
    /// never taken for an answer to this one.
    pub fn new(host: HostId, times: LeaseTimes, now: BootTime) -> Self {
        Self {
            host,
            times,
            now,
            renew_at: now,
            ask_at: now,
            next_sequence: now.0,
            outstanding: VecDeque::with_capacity(OUTSTANDING_MAX),
            asked: VecDeque::with_capacity(OUTSTANDING_MAX),
            services: BTreeMap::new(),
            extended: BTreeSet::new(),
            asks: VecDeque::new(),
            forfeited: BTreeSet::new(),
        }
    }

    /// An order was obeyed: who has to promise, and what the policy is. `newest` is false when a newer one
    /// was obeyed before and is not known any more: then nobody's promise is enough.
    pub fn handle_order(&mut self, order: &Order, newest: bool) {
        let Some(slot) = self.slot(order.service) else {
            return;
        };
        if order.epoch > slot.terms.epoch {
            slot.terms = Terms {
                epoch: order.epoch,
                ..Terms::default()
            };
        }
        let shadows = match &order.role {
            Role::Serve { shadows, .. } if order.bounding && newest => {
                shadows.iter().map(|peer| peer.host).collect()
            }
            _ => BTreeSet::new(),
        };
        slot.terms.promises.name(shadows);
        slot.terms.loss = match order.role {
            Role::Serve { .. } => order.spec.policy.coordinator_loss,
            Role::Release { .. } | Role::Shadow { .. } | Role::Idle => CoordinatorLoss::Stop,
        };
    }

    /// Starts to renew `epoch` of `service`, at the next tick. Harmless when it is already held.
    ///
    /// # Errors
    /// [`HoldError`] when the epoch is fenced or older than the one held, or the host is full.
    pub fn hold(&mut self, service: ServiceId, epoch: Epoch) -> Result<(), HoldError> {
        let (first_sequence, now) = (self.next_sequence, self.now);
        let slot = self.slot(service).ok_or(HoldError::Full)?;
        if epoch <= slot.floor {
            let floor = slot.floor;
            return Err(HoldError::Fenced {
                service,
                epoch,
                floor,
            });
        }
        match slot.held {
            Some(held) if held.epoch == epoch => return Ok(()),
            Some(Held { epoch: held, .. }) if held > epoch => {
                return Err(HoldError::Older { service, epoch, held });
            }
            _ => {}
        }
        slot.held = Some(Held {
            epoch,
            first_sequence,
            deadline: BootTime::ZERO,
            answered: now,
            answer: 0,
            refused: false,
            basis: Basis::Lease,
            read_only: false,
        });
        self.extended.remove(&service);
        self.renew_at = BootTime::ZERO;
        Ok(())
    }

    /// The gate of a held epoch is open until `deadline` by what an agent before this one knew.
    pub fn adopt(&mut self, service: ServiceId, epoch: Epoch, deadline: BootTime) {
        let (now, lease) = (self.now, self.times.lease);
        let held = self
            .services
            .get_mut(&service)
            .and_then(|slot| slot.held.as_mut());
        if let Some(held) = held.filter(|held| held.epoch == epoch && held.deadline < deadline) {
            held.deadline = deadline;
            held.answered = now.min(deadline - lease);
        }
    }

    /// Ends `epoch` of `service` and all before it, for ever. The caller fences the gate first.
    pub fn fence(&mut self, service: ServiceId, epoch: Epoch) {
        // A full table refuses to hold unknown services, so there is nothing to remember then.
        let Some(slot) = self.slot(service) else { return };
        slot.floor = slot.floor.max(epoch);
        if slot.held.is_some_and(|held| held.epoch <= slot.floor) {
            slot.held = None;
            self.extended.remove(&service);
            self.forfeited.remove(&service);
        }
    }

    pub fn handle_tick(&mut self, now: BootTime) {
        self.now = self.now.max(now);
        for sent in [&mut self.outstanding, &mut self.asked] {
            while sent
                .front()
                .is_some_and(|sent| sent.at + self.times.lease <= self.now)
            {
                sent.pop_front();
            }
        }
        self.go_on_by_policy();
        self.ask();
    }

    /// Extends what the policy keeps open though nobody answers.
    fn go_on_by_policy(&mut self) {
        let (now, times) = (self.now, self.times);
        for (service, slot) in &mut self.services {
            let Some((held, terms)) = slot.sustained() else {
                continue;
            };
            let allowed = match terms.loss {
                CoordinatorLoss::Stop => false,
                CoordinatorLoss::Serve => true,
                CoordinatorLoss::ReadOnly => held.read_only && now < held.deadline,
            };
            if allowed && is_lost(held, now, &times) && slot.extend(now, now, &times, Basis::Policy) {
                self.extended.insert(*service);
            }
        }
    }

    /// Asks the shadows of all services whose renewals are not answered, each with one request.
    fn ask(&mut self) {
        if self.now < self.ask_at {
            return;
        }
        let (now, quiet) = (self.now, self.times.renewal * QUIET_ASK);
        let mut wanted: BTreeMap<HostId, Vec<(ServiceId, Epoch)>> = BTreeMap::new();
        for (service, slot) in &mut self.services {
            let Some((held, terms)) = slot.sustained() else {
                continue;
            };
            if now.since(held.answered) >= quiet {
                for host in terms.promises.shadows() {
                    wanted.entry(*host).or_default().push((*service, held.epoch));
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        let (host, sequence) = (self.host, self.next_sequence);
        self.next_sequence += 1;
        self.ask_at = now + self.times.renewal;
        remember(&mut self.asked, Sent { sequence, at: now });
        // Those of the round before that nobody fetched would extend less.
        self.asks = wanted
            .into_iter()
            .map(|(to, leases)| {
                let request = PromiseRequest {
                    host,
                    sequence,
                    leases,
                };
                Ask { to, request }
            })
            .collect();
    }

    /// Takes the leader's answer. Whenever it arrives, it extends to the send time plus `L`.
    pub fn handle_renewed(&mut self, now: BootTime, renewed: &Renewed) {
        self.handle_tick(now);
        let Some(sent) = self
            .outstanding
            .iter()
            .find(|sent| sent.sequence == renewed.sequence)
        else {
            return;
        };
        let Sent { sequence, at } = *sent;
        let (now, times) = (self.now, self.times);
        for (service, slot) in &mut self.services {
            let outlives_silence = slot.terms.loss != CoordinatorLoss::Stop;
            let Some(held) = &mut slot.held else { continue };
            if held.first_sequence > sequence {
                continue;
            }
            let granted = renewed.leases.contains(&(*service, held.epoch));
            if held.answer <= sequence {
                held.answer = sequence;
                held.refused = !granted;
                if held.refused && outlives_silence {
                    self.forfeited.insert(*service);
                } else {
                    self.forfeited.remove(service);
                }
            }
            if granted {
                held.answered = held.answered.max(at);
                if slot.extend(now, at, &times, Basis::Lease) {
                    self.extended.insert(*service);
                }
            }
        }
    }

    /// Takes a shadow's answer. Whenever it arrives, its promise counts from when it was asked for.
    pub fn handle_promised(&mut self, now: BootTime, from: HostId, promised: &Promised) {
        self.handle_tick(now);
        let Some(sent) = self.asked.iter().find(|sent| sent.sequence == promised.sequence) else {
            return;
        };
        let Sent { sequence, at } = *sent;
        let (now, times) = (self.now, self.times);
        for (service, epoch) in &promised.leases {
            let Some(slot) = self.services.get_mut(service) else {
                continue;
            };
            let Some((held, terms)) = slot.sustained() else {
                continue;
            };
            if held.epoch != *epoch || held.first_sequence > sequence {
                continue;
            }
            terms.promises.grant(from, at);
            if let Some(since) = terms.promises.all_since()
                && slot.extend(now, since, &times, Basis::Promises)
            {
                self.extended.insert(*service);
            }
        }
    }

    /// The workload of a held epoch takes no writes any more, or takes them again.
    pub fn set_read_only(&mut self, service: ServiceId, epoch: Epoch, read_only: bool) {
        let held = self
            .services
            .get_mut(&service)
            .and_then(|slot| slot.held.as_mut());
        if let Some(held) = held.filter(|held| held.epoch == epoch) {
            held.read_only = read_only;
        }
    }

    /// Whether a held service has neither the coordinators nor the promises of all its shadows.
    pub fn is_lost(&self, service: ServiceId) -> bool {
        let held = self.services.get(&service).and_then(|slot| slot.held.as_ref());
        held.is_some_and(|held| {
            !held.refused && (held.basis == Basis::Policy || is_lost(held, self.now, &self.times))
        })
    }

    /// The next renewal to send to all coordinators, if one is due. Its send time is the last
    /// tick, which is never later than the real one.
    pub fn poll_renew(&mut self) -> Option<Renew> {
        if self.now < self.renew_at {
            return None;
        }
        let leases: Vec<_> = self
            .services
            .iter()
            .filter_map(|(service, slot)| Some((*service, slot.held?.epoch)))
            .collect();
        if leases.is_empty() {
            return None;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.renew_at = self.now + self.times.renewal;
        remember(
            &mut self.outstanding,
            Sent {
                sequence,
                at: self.now,
            },
        );
        Some(Renew {
            host: self.host,
            sequence,
            leases,
        })
    }

    /// The next extension to put into the gate. Only the latest one of a service is kept.
    pub fn poll_gate(&mut self) -> Option<GateChange> {
        let service = self.extended.pop_first()?;
        let held = self.services.get(&service)?.held?;
        Some(GateChange {
            service,
            epoch: held.epoch,
            deadline: held.deadline,
            basis: held.basis,
        })
    }

    /// The next request to send to a shadow.
    pub fn poll_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// The next epoch to give up for good: the coordinators refuse to renew it, and under its policy they
    /// wait for word that it is over. Fence it, and report that.
    pub fn poll_forfeit(&mut self) -> Option<(ServiceId, Epoch)> {
        let service = self.forfeited.pop_first()?;
        let held = self.services.get(&service)?.held?;
        Some((service, held.epoch))
    }

    /// When the next renewal is due; `None` while nothing is held.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let holds = self.services.values().any(|slot| slot.held.is_some());
        holds.then_some(self.renew_at)
    }

    /// What the service is held on, and the last stretch of time that it was held on anything but the lease.
    pub fn basis(&self, service: ServiceId) -> (Basis, Option<Apart>) {
        let slot = self.services.get(&service);
        let basis = slot
            .and_then(|slot| slot.held)
            .map_or(Basis::Lease, |held| held.basis);
        (basis, slot.and_then(|slot| slot.apart))
    }

    /// The epoch that is being renewed, and its deadline: zero until the first answer.
    pub fn held(&self, service: ServiceId) -> Option<(Epoch, BootTime)> {
        let held = self.services.get(&service)?.held?;
        Some((held.epoch, held.deadline))
    }

    /// Highest epoch that was fenced for the service in this process.
    pub fn floor(&self, service: ServiceId) -> Epoch {
        self.services.get(&service).map_or(Epoch(0), |slot| slot.floor)
    }

    fn slot(&mut self, service: ServiceId) -> Option<&mut Slot> {
        if self.services.len() >= SERVICES_MAX && !self.services.contains_key(&service) {
            return None;
        }
        Some(self.services.entry(service).or_default())
    }
}

/// Neither an answer for a while nor promises that would carry it on.
fn is_lost(held: &Held, now: BootTime, times: &LeaseTimes) -> bool {
    now.since(held.answered) >= times.renewal * QUIET_LOST && now + times.lease / 2 >= held.deadline
}

fn remember(sent: &mut VecDeque<Sent>, one: Sent) {
    if sent.len() == OUTSTANDING_MAX {
        sent.pop_front();
    }
    sent.push_back(one);
}

#[cfg(test)]
mod apart_tests;
#[cfg(test)]
mod tests;
