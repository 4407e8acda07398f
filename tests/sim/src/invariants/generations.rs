//! A promoted shadow has everything of the newest generation that it ever acknowledged.

use std::collections::BTreeMap;

use understudy_common::id::{HostId, ServiceId};

use crate::content::{Content, Contents};
use crate::host::store::Sealed;
use crate::tally::Tally;

#[derive(Default)]
pub struct Generations {
    acknowledged: BTreeMap<(HostId, ServiceId), Sealed>,
}

impl Generations {
    pub fn acknowledged(&mut self, host: HostId, service: ServiceId, sealed: Sealed, tally: &mut Tally) {
        let known = self.acknowledged.entry((host, service)).or_insert(sealed);
        if known.id < sealed.id {
            *known = sealed;
        }
        tally.count("generations: one was acknowledged");
    }

    /// The host goes on from `start`; from now on its files are the primary's.
    pub fn promoted(
        &mut self,
        host: HostId,
        service: ServiceId,
        start: Content,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let Some(sealed) = self.acknowledged.remove(&(host, service)) else {
            return Ok(());
        };
        tally.count("generations: a shadow that acknowledged some was promoted");
        if !contents.is_prefix(start, sealed.content) {
            return Err(format!(
                "generations: {host} was promoted for {service} without {} that it acknowledged",
                sealed.id
            ));
        }
        Ok(())
    }
}
