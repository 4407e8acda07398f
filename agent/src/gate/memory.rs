//! A gate in memory, for simulation: the same rule, no kernel.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use understudy_common::abi::gate::{ADDRESSES_MAX, GateCounters, GateEntry};
use understudy_common::id::Epoch;
use understudy_common::units::BootTime;

use super::{Gate, GateError};

#[derive(Debug, Default)]
pub struct MemoryGate {
    entries: Mutex<BTreeMap<Ipv4Addr, GateEntry>>,
}

impl MemoryGate {
    /// What the kernel would decide at this boot time.
    pub fn is_open(&self, address: Ipv4Addr, now: BootTime) -> bool {
        self.lock()
            .get(&address)
            .is_some_and(|entry| entry.is_open(now.0))
    }

    fn change<R>(&self, address: Ipv4Addr, apply: impl FnOnce(&mut GateEntry) -> R) -> Result<R, GateError> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&address).ok_or(GateError::NotArmed(address))?;
        Ok(apply(entry))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, GateEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for MemoryGate {
    fn arm(&self, address: Ipv4Addr) -> Result<(), GateError> {
        let mut entries = self.lock();
        if entries.len() >= ADDRESSES_MAX as usize && !entries.contains_key(&address) {
            return Err(GateError::Full);
        }
        entries.entry(address).or_default();
        Ok(())
    }

    fn open(&self, address: Ipv4Addr, epoch: Epoch, deadline: BootTime) -> Result<bool, GateError> {
        self.change(address, |entry| entry.apply_open(epoch.0, deadline.0))
    }

    fn fence(&self, address: Ipv4Addr, epoch: Epoch) -> Result<(), GateError> {
        self.arm(address)?;
        if let Some(entry) = self.lock().get_mut(&address) {
            entry.apply_fence(epoch.0);
        }
        Ok(())
    }

    fn see(&self, address: Ipv4Addr, epoch: Epoch, revision: u64) -> Result<bool, GateError> {
        self.arm(address)?;
        self.change(address, |entry| entry.apply_seen(epoch.0, revision))
    }

    fn promise(
        &self,
        address: Ipv4Addr,
        now: BootTime,
        epoch: Epoch,
        until: BootTime,
    ) -> Result<bool, GateError> {
        self.change(address, |entry| entry.apply_promise(now.0, epoch.0, until.0))
    }

    fn forgotten(&self, address: Ipv4Addr, now: BootTime, until: BootTime) -> Result<(), GateError> {
        self.change(address, |entry| entry.apply_forgotten(now.0, until.0))
    }

    fn keep_alive(&self, until: BootTime) -> Result<(), GateError> {
        for entry in self.lock().values_mut() {
            entry.reset_until_ns = until.0;
        }
        Ok(())
    }

    fn entry(&self, address: Ipv4Addr) -> Result<Option<GateEntry>, GateError> {
        Ok(self.lock().get(&address).copied())
    }

    fn counters(&self) -> Result<GateCounters, GateError> {
        Ok(GateCounters::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_closes_at_once_and_a_higher_epoch_opens_again() {
        let gate = MemoryGate::default();
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let (now, later) = (BootTime::from_ms(1), BootTime::from_ms(2));
        assert!(matches!(
            gate.open(address, Epoch(1), later),
            Err(GateError::NotArmed(_))
        ));
        gate.arm(address).unwrap();
        assert!(gate.open(address, Epoch(1), later).unwrap());
        assert!(gate.is_open(address, now) && !gate.is_open(address, later));
        gate.fence(address, Epoch(1)).unwrap();
        assert!(!gate.is_open(address, now));
        assert!(!gate.open(address, Epoch(1), later).unwrap());
        assert!(gate.open(address, Epoch(2), later).unwrap());
        assert!(gate.is_open(address, now));
    }
}
