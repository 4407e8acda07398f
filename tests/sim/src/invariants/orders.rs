//! No order of an old epoch is obeyed by a host that has seen a newer one in this boot.

use std::collections::BTreeMap;

use understudy_common::id::{Epoch, HostId, ServiceId};

use crate::tally::Tally;

#[derive(Default)]
pub struct Orders {
    /// Highest epoch that each boot of a host was told.
    seen: BTreeMap<(HostId, ServiceId), (u128, Epoch)>,
}

impl Orders {
    pub fn obeyed(
        &mut self,
        host: HostId,
        boot: u128,
        service: ServiceId,
        told: Epoch,
        obeyed: Epoch,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let (known, seen) = self.seen.entry((host, service)).or_default();
        if *known != boot {
            (*known, *seen) = (boot, Epoch(0));
        }
        if told < *seen {
            tally.count("orders: one of an old epoch arrived");
        }
        *seen = told.max(*seen);
        if obeyed < *seen {
            return Err(format!("orders: {host} obeys {obeyed} of {service} after {seen}"));
        }
        Ok(())
    }
}
