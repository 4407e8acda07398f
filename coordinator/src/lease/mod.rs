//! The leader's side of the lease (DESIGN §5), without I/O and without a clock of its own.
//!
//! Invariants: [`LeaseTable::ended_at`] says that a lease is over only when no holder that keeps the
//! protocol can still have an open gate for it: its clock is at
//! `max(arrival of the last renewal, becoming leader, process start, grant, the promotable set grew) +
//! L(1+ρ) + F`, or the holder reported the fence. While a service's policy lets its holder go on without
//! coordinators, no silence says that: see [`LeaseTable::set_terms`]. A lease that is being waited out, or whose successor was proposed, is
//! not renewed. Nothing here survives a change of leader: the next one starts at its own election.

mod rounds;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;

pub use rounds::{PENDING_MAX, Pending, ROUND_EVERY, ROUNDS_MAX, Rounds};

/// What the leader knows about each service's current lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTable {
    times: LeaseTimes,
    /// Process start, becoming leader or the end of a pause of this process, whichever is last.
    since: BootTime,
    leases: BTreeMap<ServiceId, Lease>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lease {
    epoch: Epoch,
    /// The last instant on this leader's clock that a renewal may have been sent before.
    extended: BootTime,
    /// The holder reported that its gate is closed for the epoch.
    fenced: bool,
    /// It is being waited out whatever the holder sends.
    condemned: bool,
    /// Nobody can take over: its holder may have it back.
    stranded: bool,
    /// The next epoch was proposed.
    succeeded: bool,
    ended_at: Option<BootTime>,
    /// Who could be granted the next epoch when that was last looked at.
    promotable: BTreeSet<HostId>,
    /// Not hearing of the holder for long enough says that its gate is closed.
    silence_ends: bool,
}

impl LeaseTable {
    pub const fn new(times: LeaseTimes, started: BootTime) -> Self {
        Self {
            times,
            since: started,
            leases: BTreeMap::new(),
        }
    }

    /// Forgets everything: from `now` this replica leads, or notices that it was paused.
    pub fn restart(&mut self, now: BootTime) {
        self.since = self.since.max(now);
        self.leases.clear();
    }

    /// The state says that `epoch` is the service's current one. Harmless when that is known.
    pub fn observe(&mut self, now: BootTime, service: ServiceId, epoch: Epoch) {
        let known = self.leases.get(&service).map(|lease| lease.epoch);
        if known != Some(epoch) {
            // The first epoch seen after an election may have been renewed by the leader before;
            // a grant seen later was never renewed by anybody. `now` is right for both.
            let extended = now.max(self.since);
            self.leases.insert(
                service,
                Lease {
                    epoch,
                    extended,
                    fenced: false,
                    condemned: false,
                    stranded: false,
                    succeeded: false,
                    ended_at: None,
                    promotable: BTreeSet::new(),
                    silence_ends: true,
                },
            );
        }
    }

    /// What the state says of the lease: who can be granted the next epoch, and whether the holder's
    /// silence means anything. Call it whenever either may have changed.
    ///
    /// When the set grew, the holder obeyed an order that names the newcomer before now. It may still be
    /// open by promises that it asked of the old set alone, until a lease from then: so the lease counts
    /// from now. The same holds when silence begins to count.
    pub fn set_terms(
        &mut self,
        now: BootTime,
        service: ServiceId,
        promotable: &BTreeSet<HostId>,
        silence_ends: bool,
    ) {
        let Some(lease) = self.leases.get_mut(&service) else {
            return;
        };
        let grew = !promotable.is_subset(&lease.promotable);
        if grew || (silence_ends && !lease.silence_ends) {
            lease.extended = lease.extended.max(now);
            lease.ended_at = lease.ended_at.filter(|_| lease.fenced);
        }
        if lease.promotable != *promotable {
            lease.promotable = promotable.clone();
        }
        lease.silence_ends = silence_ends;
    }

    /// Whether a renewal may be answered now.
    pub fn may_renew(&self, now: BootTime, service: ServiceId, epoch: Epoch) -> bool {
        self.leases.get(&service).is_some_and(|lease| {
            let over = lease.ended_at.is_some() || (lease.silence_ends && now >= self.end(lease));
            lease.epoch == epoch
                && !lease.fenced
                && !lease.condemned
                && !lease.succeeded
                && (!over || lease.stranded)
        })
    }

    /// A renewal that arrived at `arrived` is being answered.
    pub fn renew(&mut self, service: ServiceId, arrived: BootTime) {
        if let Some(lease) = self.leases.get_mut(&service) {
            lease.extended = lease.extended.max(arrived);
            lease.ended_at = None;
            lease.stranded = false;
        }
    }

    /// The holder closed its gate for `epoch` and everything before it.
    pub fn fence(&mut self, service: ServiceId, epoch: Epoch) {
        if let Some(lease) = self.leases.get_mut(&service) {
            lease.fenced |= lease.epoch <= epoch;
        }
    }

    /// Waits the epoch out: no renewal of it is answered from now on.
    pub fn condemn(&mut self, service: ServiceId, epoch: Epoch) {
        if let Some(lease) = self.leases.get_mut(&service).filter(|lease| lease.epoch == epoch) {
            lease.condemned = true;
        }
    }

    /// Takes it as ended, on a copy that a dry run is made with.
    pub fn suppose_ended(&mut self, service: ServiceId, epoch: Epoch, at: BootTime) {
        if let Some(lease) = self.leases.get_mut(&service).filter(|lease| lease.epoch == epoch) {
            lease.ended_at = Some(lease.ended_at.map_or(at, |ended| ended.min(at)));
        }
    }

    /// Nobody can take over from the ended lease; its holder may have it back if it returns.
    pub fn strand(&mut self, service: ServiceId, epoch: Epoch) {
        if let Some(lease) = self.leases.get_mut(&service).filter(|lease| lease.epoch == epoch) {
            lease.stranded = lease.ended_at.is_some();
        }
    }

    /// The epoch after `epoch` was proposed: from now on this one is never renewed by this leader.
    pub fn succeed(&mut self, service: ServiceId, epoch: Epoch) {
        if let Some(lease) = self.leases.get_mut(&service).filter(|lease| lease.epoch == epoch) {
            lease.succeeded = true;
        }
    }

    /// The proposal of the next epoch was refused for good: this one may go on.
    pub fn unsucceed(&mut self, service: ServiceId) {
        if let Some(lease) = self.leases.get_mut(&service) {
            lease.succeeded = false;
        }
    }

    /// Notices which leases ended.
    pub fn handle_tick(&mut self, now: BootTime) {
        let (since, wait_out) = (self.since, self.times.wait_out());
        for lease in self.leases.values_mut() {
            let end = lease.extended.max(since) + wait_out;
            if lease.ended_at.is_none() && (lease.fenced || (lease.silence_ends && now >= end)) {
                lease.ended_at = Some(now);
            }
        }
    }

    /// When this leader noticed that the epoch's lease is surely over; none while it may be held.
    pub fn ended_at(&self, service: ServiceId, epoch: Epoch) -> Option<BootTime> {
        self.leases
            .get(&service)
            .filter(|lease| lease.epoch == epoch)?
            .ended_at
    }

    pub fn is_condemned(&self, service: ServiceId, epoch: Epoch) -> bool {
        self.leases
            .get(&service)
            .is_some_and(|lease| lease.epoch == epoch && lease.condemned)
    }

    fn end(&self, lease: &Lease) -> BootTime {
        lease.extended.max(self.since) + self.times.wait_out()
    }
}
