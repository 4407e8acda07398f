//! Which targets are watched, and since when each has looked as it does. No I/O and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use understudy_common::id::{Epoch, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::{Evidence, Peer, Reach, Sight};

/// The holder of a service, to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub service: ServiceId,
    pub epoch: Epoch,
    pub holder: Peer,
    /// The service's address and port; none when it declares no TCP port.
    pub address: Option<SocketAddr>,
}

/// One question. Services that share a holder share the one to its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// The QUIC endpoint of an agent.
    Agent(SocketAddr),
    /// The TCP port of a service.
    Address(SocketAddr),
}

#[derive(Debug, Default)]
pub struct Observer {
    watched: BTreeMap<ServiceId, Watched>,
}

#[derive(Debug)]
struct Watched {
    target: Target,
    agent: Option<Sight>,
    address: Option<Sight>,
}

impl Observer {
    /// Replaces the targets. What was seen of one that is still the same is kept.
    pub fn handle_targets(&mut self, targets: Vec<Target>) {
        let mut before = std::mem::take(&mut self.watched);
        for target in targets {
            let known = before
                .remove(&target.service)
                .filter(|known| known.target == target);
            let watched = known.unwrap_or(Watched {
                target,
                agent: None,
                address: None,
            });
            self.watched.insert(target.service, watched);
        }
    }

    /// One round of questions.
    pub fn probes(&self) -> BTreeSet<Probe> {
        let targets = self.watched.values().map(|watched| &watched.target);
        targets
            .flat_map(|target| {
                let address = target.address.map(Probe::Address);
                std::iter::once(Probe::Agent(target.holder.addr)).chain(address)
            })
            .collect()
    }

    pub fn handle_reach(&mut self, now: BootTime, probe: Probe, reach: Reach) {
        for Watched {
            target,
            agent,
            address,
        } in self.watched.values_mut()
        {
            if probe == Probe::Agent(target.holder.addr) {
                *agent = Some(look(*agent, now, reach));
            } else if target.address.map(Probe::Address) == Some(probe) {
                *address = Some(look(*address, now, reach));
            }
        }
    }

    /// What is known of each target; nothing of one that was not asked yet.
    pub fn evidence(&self) -> Vec<Evidence> {
        let known = self.watched.values().filter_map(|watched| {
            Some(Evidence {
                service: watched.target.service,
                epoch: watched.target.epoch,
                holder: watched.target.holder.host,
                agent: watched.agent?,
                address: watched.address,
            })
        });
        known.collect()
    }
}

fn look(before: Option<Sight>, now: BootTime, reach: Reach) -> Sight {
    let same = before.filter(|before| before.reach == reach);
    Sight {
        reach,
        since: same.map_or(now, |before| before.since),
        answered: reach == Reach::Answered || before.is_some_and(|before| before.answered),
        asked: now,
        times: same.map_or(0, |before| before.times).saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use understudy_common::id::HostId;

    use super::*;

    fn target(service: u32, epoch: u64) -> Target {
        Target {
            service: ServiceId(service),
            epoch: Epoch(epoch),
            holder: Peer {
                host: HostId(1),
                addr: ([10, 0, 0, 1], 7401).into(),
            },
            address: Some(([10, 0, 9, service as u8], 80).into()),
        }
    }

    fn address(observer: &Observer) -> Option<Sight> {
        observer.evidence()[0].address
    }

    #[test]
    fn a_sight_is_as_old_as_the_last_change_of_what_is_seen() {
        let mut observer = Observer::default();
        observer.handle_targets(vec![target(1, 1)]);
        assert!(observer.evidence().is_empty());
        let port = Probe::Address(([10, 0, 9, 1], 80).into());
        observer.handle_reach(
            BootTime(1),
            Probe::Agent(([10, 0, 0, 1], 7401).into()),
            Reach::Answered,
        );
        for (at, reach, since, times, answered) in [
            (1, Reach::Refused, 1, 1, false),
            (2, Reach::Answered, 2, 1, true),
            (3, Reach::Answered, 2, 2, true),
            (4, Reach::Dropped, 4, 1, true),
            (5, Reach::Dropped, 4, 2, true),
            (6, Reach::Dropped, 4, 3, true),
            (7, Reach::Refused, 7, 1, true),
        ] {
            observer.handle_reach(BootTime(at), port, reach);
            let expected = Sight {
                reach,
                since: BootTime(since),
                answered,
                asked: BootTime(at),
                times,
            };
            assert_eq!(address(&observer), Some(expected), "{at}");
        }
    }

    #[test]
    fn another_epoch_is_looked_at_afresh_and_the_same_one_is_not() {
        let mut observer = Observer::default();
        observer.handle_targets(vec![target(1, 1)]);
        let agent = Probe::Agent(([10, 0, 0, 1], 7401).into());
        observer.handle_reach(BootTime(1), agent, Reach::Answered);
        observer.handle_targets(vec![target(1, 1), target(2, 1)]);
        assert_eq!(observer.evidence().len(), 1);
        observer.handle_targets(vec![target(1, 2)]);
        assert!(observer.evidence().is_empty());
    }

    #[test]
    fn services_of_one_holder_share_the_question_to_its_agent() {
        let mut observer = Observer::default();
        observer.handle_targets(vec![target(1, 1), target(2, 4)]);
        assert_eq!(observer.probes().len(), 3);
    }
}
