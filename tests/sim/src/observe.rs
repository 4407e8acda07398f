//! What hosts see of the holders of their services: the agent's own observer, over a simulated network.

use std::net::{IpAddr, SocketAddr};

use understudy_agent::observe::Probe;
use understudy_common::id::{HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::wire::Reach;

use crate::clock::MS;
use crate::world::{Event, World};

/// Between two rounds of questions.
const EVERY_MS: (u64, u64) = (950, 1_050);

impl World {
    pub fn observe(&mut self, id: HostId, incarnation: u64) {
        if self.hosts[&id].incarnation != incarnation {
            return;
        }
        let Some(agent) = self.hosts.get_mut(&id).and_then(|host| host.agent.as_mut()) else {
            return;
        };
        let machines = agent.services.values().map(|known| &known.machine);
        let targets = machines.filter_map(|machine| machine.target(id)).collect();
        agent.observer.handle_targets(targets);
        let probes = agent.observer.probes();
        let seen: Vec<_> = probes
            .into_iter()
            .map(|probe| (probe, self.reach(id, probe)))
            .collect();
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let now = host.clock.read(self.truth);
        if let Some(agent) = &mut host.agent {
            for (probe, reach) in seen {
                agent.observer.handle_reach(now, probe, reach);
            }
        }
        self.observe_soon(id);
    }

    pub fn observe_soon(&mut self, host: HostId) {
        let pause = self.rng.between(EVERY_MS.0 * MS, EVERY_MS.1 * MS);
        let incarnation = self.hosts[&host].incarnation;
        self.schedule(pause, Event::Observe { host, incarnation });
    }

    fn reach(&self, from: HostId, probe: Probe) -> Reach {
        let last = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(ip) => u32::from(ip.octets()[3]),
            IpAddr::V6(_) => 0,
        };
        match probe {
            Probe::Agent(addr) => {
                let host = HostId(last(addr));
                match self.hosts.get(&host) {
                    Some(known) if self.hears(from, host) && known.powered => match known.agent {
                        Some(_) if self.stands_still(Principal::Host(host)) => Reach::Dropped,
                        Some(_) => Reach::Answered,
                        None => Reach::Refused,
                    },
                    _ => Reach::Dropped,
                }
            }
            Probe::Address(addr) => self.reach_address(from, ServiceId(last(addr))),
        }
    }

    fn reach_address(&self, from: HostId, service: ServiceId) -> Reach {
        let claims = |id: &&HostId| {
            let host = &self.hosts[id];
            let store = host.stores.get(&service);
            host.powered && store.is_some_and(|store| store.kernel.address)
        };
        let Some(claimant) = self.hosts.keys().find(claims).copied() else {
            return Reach::Dropped;
        };
        let host = &self.hosts[&claimant];
        if !self.hears(from, claimant) {
            Reach::Dropped
        } else if host.is_open(service, self.truth) {
            if host.serves(service, self.truth) {
                Reach::Answered
            } else {
                Reach::Refused
            }
        } else if host.agent.is_some() && !self.stands_still(Principal::Host(claimant)) {
            // A closed gate answers for as long as the agent says that it lives.
            Reach::Refused
        } else {
            Reach::Dropped
        }
    }

    /// Packets go there and back.
    fn hears(&self, one: HostId, other: HostId) -> bool {
        let (one, other) = (Principal::Host(one), Principal::Host(other));
        !self.net.cuts.contains(&(one, other)) && !self.net.cuts.contains(&(other, one))
    }
}
