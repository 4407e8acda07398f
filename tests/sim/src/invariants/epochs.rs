//! Epochs only rise, and each has one holder.

use std::collections::BTreeMap;

use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_coordinator::state::{Phase, State, Step};

use crate::tally::Tally;

#[derive(Default)]
pub struct Epochs {
    /// Highest epoch in any replica's state, and the index it was first seen at.
    highest: BTreeMap<ServiceId, (u64, Epoch)>,
    grants: BTreeMap<(ServiceId, Epoch), Granted>,
    pub grants_seen: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Granted {
    host: HostId,
    planned: bool,
}

impl Epochs {
    pub fn applied(&mut self, state: &State, tally: &mut Tally) -> Result<(), String> {
        for (id, service) in &state.services {
            let (at, epoch) = self.highest.entry(*id).or_default();
            let fell = (state.index >= *at && service.epoch < *epoch)
                || (state.index <= *at && service.epoch > *epoch);
            if fell {
                return Err(format!(
                    "epochs: that of {id} fell from {epoch} to {}",
                    service.epoch
                ));
            }
            if service.epoch > *epoch {
                self.grants_seen += 1;
                if epoch.0 > 0 {
                    tally.count("epochs: an epoch rose");
                }
            }
            if state.index > *at {
                (*at, *epoch) = (state.index, service.epoch);
            }
            let Some(holder) = service.holder else { continue };
            let planned = matches!(
                service.phase,
                Phase::Handover {
                    step: Step::Activate,
                    ..
                }
            );
            let granted = Granted {
                host: holder.host,
                planned,
            };
            let known = *self.grants.entry((*id, service.epoch)).or_insert(granted);
            if known.host != holder.host {
                return Err(format!(
                    "epochs: {} of {id} belongs to {} and to {}",
                    service.epoch, known.host, holder.host
                ));
            }
        }
        Ok(())
    }

    /// Whether the epoch was granted as the last step of a planned move.
    pub fn is_planned(&self, service: ServiceId, epoch: Epoch) -> bool {
        self.grants
            .get(&(service, epoch))
            .is_some_and(|grant| grant.planned)
    }
}
