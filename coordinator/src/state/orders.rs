//! The roles that the state wants a host to have.

use understudy_common::id::{HostId, ServiceId};
use understudy_common::wire::{Order, Peer, Role};

use super::{Phase, Service, State, Step};

/// One order for every service that the host is named in, but none for one that it is leaving: its last
/// order, to release, stands until its successor serves. The same state gives the same orders.
pub fn orders_for(state: &State, host: HostId) -> Vec<Order> {
    state
        .services
        .iter()
        .filter(|(_, service)| service.spec.hosts.contains(&host) && service.leaving != Some(host))
        .map(|(id, service)| order(state, *id, service, host))
        .collect()
}

fn order(state: &State, id: ServiceId, service: &Service, host: HostId) -> Order {
    Order {
        service: id,
        epoch: service.epoch,
        revision: service.revision,
        role: role(state, service, host),
        spec: service.spec.clone(),
        holder: service.holder.and_then(|holder| peer(state, holder.host)),
        bounding: service.ever_served,
        boot: state.hosts.get(&host).map_or(0, |host| host.boot),
    }
}

fn peer(state: &State, host: HostId) -> Option<Peer> {
    let addr = state.hosts.get(&host)?.addr;
    Some(Peer { host, addr })
}

fn role(state: &State, service: &Service, host: HostId) -> Role {
    match service.holder {
        // Another boot of the holder holds nothing: nothing in its memory survived. One that was called
        // dead must not serve if it is not.
        Some(holder) if holder.host == host && (holder.dead || service.holder_rebooted(state)) => Role::Idle,
        Some(holder) if holder.host == host => match service.phase {
            Phase::Handover {
                step: Step::Release | Step::Fenced | Step::Cut(_),
                ..
            } => Role::Release {
                shadows: peers(state, service),
            },
            Phase::Handover {
                step: Step::Activate, ..
            }
            | Phase::Steady
            | Phase::Failover => Role::Serve {
                from: holder.from,
                shadows: peers(state, service),
            },
        },
        Some(holder) if service.is_shadow(host) => Role::Shadow { primary: holder.host },
        Some(_) | None => Role::Idle,
    }
}

fn peers(state: &State, service: &Service) -> Vec<Peer> {
    service
        .spec
        .hosts
        .iter()
        .filter(|host| service.is_shadow(**host))
        .filter_map(|host| peer(state, *host))
        .collect()
}
