//! The holder's side of the lease (DESIGN §5), a machine without I/O.
//!
//! Invariants: `lease/` reads no clock and does no I/O. A deadline is always the send time of a
//! renewal plus `L`, whenever its answer arrives. A fenced epoch is never renewed again. What is
//! remembered is bounded by [`OUTSTANDING_MAX`] and [`SERVICES_MAX`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;
use understudy_common::wire::{Renew, Renewed};

/// Renewals whose answer is still of use. Older ones are forgotten first: they extend the least.
pub const OUTSTANDING_MAX: usize = 16;
/// Services that one host can hold or have fenced. [`LeaseClient::hold`] refuses more.
pub const SERVICES_MAX: usize = 256;

/// What the data path must now let through, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateChange {
    pub service: ServiceId,
    pub epoch: Epoch,
    /// On this host's boot clock.
    pub deadline: BootTime,
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

#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u64,
    at: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    /// First renewal that asks for this epoch: answers to earlier ones say nothing about it.
    first_sequence: u64,
    deadline: BootTime,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    floor: Epoch,
    held: Option<Held>,
}

/// All leases of one host. Drive it with [`Self::handle_tick`] and [`Self::handle_renewed`], then
/// drain [`Self::poll_renew`] and [`Self::poll_gate`].
#[derive(Debug)]
pub struct LeaseClient {
    host: HostId,
    times: LeaseTimes,
    now: BootTime,
    renew_at: BootTime,
    next_sequence: u64,
    outstanding: VecDeque<Sent>,
    services: BTreeMap<ServiceId, Slot>,
    extended: BTreeSet<ServiceId>,
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
            next_sequence: now.0,
            outstanding: VecDeque::with_capacity(OUTSTANDING_MAX),
            services: BTreeMap::new(),
            extended: BTreeSet::new(),
        }
    }

    /// Starts to renew `epoch` of `service`, at the next tick. Harmless when it is already held.
    ///
    /// # Errors
    /// [`HoldError`] when the epoch is fenced or older than the one held, or the host is full.
    pub fn hold(&mut self, service: ServiceId, epoch: Epoch) -> Result<(), HoldError> {
        let first_sequence = self.next_sequence;
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
        });
        self.extended.remove(&service);
        self.renew_at = BootTime::ZERO;
        Ok(())
    }

    /// Ends `epoch` of `service` and all before it, for ever. The caller fences the gate first.
    pub fn fence(&mut self, service: ServiceId, epoch: Epoch) {
        // A full table refuses to hold unknown services, so there is nothing to remember then.
        let Some(slot) = self.slot(service) else { return };
        slot.floor = slot.floor.max(epoch);
        if slot.held.is_some_and(|held| held.epoch <= slot.floor) {
            slot.held = None;
            self.extended.remove(&service);
        }
    }

    pub fn handle_tick(&mut self, now: BootTime) {
        self.now = self.now.max(now);
        let oldest_useful = self.times.lease;
        while self
            .outstanding
            .front()
            .is_some_and(|sent| sent.at + oldest_useful <= self.now)
        {
            self.outstanding.pop_front();
        }
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
        let (sequence, deadline) = (sent.sequence, sent.at + self.times.lease);
        for (service, epoch) in &renewed.leases {
            let Some(held) = self.services.get_mut(service).and_then(|slot| slot.held.as_mut()) else {
                continue;
            };
            if held.epoch == *epoch && held.first_sequence <= sequence && held.deadline < deadline {
                held.deadline = deadline;
                self.extended.insert(*service);
            }
        }
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
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Sent {
            sequence,
            at: self.now,
        });
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
        })
    }

    /// When the next renewal is due; `None` while nothing is held.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let holds = self.services.values().any(|slot| slot.held.is_some());
        holds.then_some(self.renew_at)
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

#[cfg(test)]
mod tests;
