//! Holders that the coordinators do not hear.

use understudy_common::id::{HostId, ServiceId};
use understudy_common::wire::{Apart, Basis};

use super::super::{EventKind, ServedApart};
use super::{Applying, Checked};

impl Applying<'_> {
    /// Nothing is granted by this alone: the leases are waited out, and their holder is told to serve
    /// nobody should it be alive after all.
    pub(super) fn confirm_dead(&mut self, id: HostId, boot: u128) -> Checked {
        let index = self.index;
        let known = self
            .state
            .hosts
            .get(&id)
            .ok_or_else(|| format!("{id} is not registered"))?;
        if known.boot != boot {
            return Err(format!("{} has rebooted since it was called dead", known.name));
        }
        let text = format!("an operator vouches that {} is dead", known.name);
        for service in self.state.services.values_mut() {
            if let Some(holder) = &mut service.holder
                && (holder.host, holder.boot) == (id, boot)
                && !holder.dead
            {
                holder.dead = true;
                service.revision = index;
            }
        }
        self.event(EventKind::ConfirmedDead, None, Some(id), text);
        Ok(())
    }

    pub(super) fn served_apart(&mut self, id: ServiceId, host: HostId, boot: u128, apart: Apart) -> Checked {
        let name = self.state.host_name(host);
        let service = self.service(id)?;
        let stretch = ServedApart {
            host,
            boot,
            since: apart.since,
        };
        if service.apart == Some(stretch) {
            return Ok(());
        }
        service.apart = Some(stretch);
        let on = match apart.basis {
            Basis::Lease | Basis::Promises => "on the promises of its shadows",
            Basis::Policy => "by its policy",
        };
        let ms = apart.until.since(apart.since).as_millis();
        let text = format!(
            "{}: {name} served {} for {ms} ms without the coordinators, {on}",
            service.spec.name, apart.epoch
        );
        self.event(EventKind::ServedApart, Some(id), Some(host), text);
        Ok(())
    }
}
