//! At most one gate of a service is open, by true time.
//!
//! A gate that is closed opens when its lease is extended, or when a promise that bars it ends, so looking
//! at these instants is the same as looking at every one.

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::{HostId, ServiceId};

use crate::host::Host;
use crate::tally::Tally;

#[derive(Default)]
pub struct Gates {
    extended: Vec<(HostId, ServiceId)>,
    /// Leased, but barred by a promise.
    barred: BTreeSet<(HostId, ServiceId)>,
    epochs: BTreeMap<ServiceId, u64>,
}

impl Gates {
    pub fn opened(&mut self, host: HostId, service: ServiceId) {
        self.extended.push((host, service));
    }

    pub fn check(
        &mut self,
        hosts: &BTreeMap<HostId, Host>,
        truth: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let before = std::mem::take(&mut self.barred);
        let looked_at = self.extended.drain(..).chain(before.iter().copied());
        for (host, service) in looked_at {
            if !hosts[&host].is_open(service, truth) {
                if hosts[&host].is_barred(service, truth) {
                    if !before.contains(&(host, service)) {
                        tally.count("gates: one was barred by a promise");
                    }
                    self.barred.insert((host, service));
                }
                continue;
            }
            let epoch = hosts[&host].stores[&service].kernel.gate.epoch;
            if self
                .epochs
                .insert(service, epoch)
                .is_some_and(|known| known < epoch)
            {
                tally.count("gates: another epoch's gate opened");
            }
            for (other, known) in hosts {
                if *other != host && known.is_open(service, truth) {
                    return Err(format!("gates: {service} has two open gates: {other} and {host}"));
                }
            }
        }
        Ok(())
    }
}
