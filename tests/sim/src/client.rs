//! A client of one service: it writes and reads, one operation at a time, and gives up after a while.

use understudy_common::id::{Epoch, HostId, ServiceId};

use crate::clock::MS;
use crate::content::Content;
use crate::invariants::histories::Begun;
use crate::world::{Event, World};

const PAUSE_MS: (u64, u64) = (60, 500);
const GIVES_UP: u64 = 1_000 * MS;

pub struct Client {
    pub service: ServiceId,
    /// The operation under way: its number, and what it must find.
    waits: Option<(u64, Begun)>,
    number: u64,
}

#[derive(Clone, Copy)]
pub enum Happening {
    Next,
    /// The request reaches the host that answered for the address when it left.
    Arrive {
        number: u64,
        host: HostId,
        write: bool,
    },
    /// The workload's answer comes to the gate.
    Leave {
        number: u64,
        host: HostId,
        epoch: Epoch,
        content: Content,
    },
    Answered {
        number: u64,
        epoch: Epoch,
        content: Content,
    },
    GiveUp {
        number: u64,
    },
}

impl Client {
    pub const fn new(service: ServiceId) -> Self {
        Self {
            service,
            waits: None,
            number: 0,
        }
    }
}

impl World {
    pub fn client(&mut self, client: usize, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Next => self.begin(client),
            Happening::Arrive { number, host, write } => self.arrive(client, number, host, write),
            Happening::Leave {
                number,
                host,
                epoch,
                content,
            } => {
                let service = self.clients[client].service;
                let gate = self.hosts[&host]
                    .stores
                    .get(&service)
                    .map(|store| store.kernel.gate.epoch);
                if self.hosts[&host].is_open(service, self.truth) && gate == Some(epoch.0) {
                    let delay = self.client_delay();
                    self.client_in(
                        delay,
                        client,
                        Happening::Answered {
                            number,
                            epoch,
                            content,
                        },
                    );
                }
            }
            Happening::Answered {
                number,
                epoch,
                content,
            } => {
                let Some((_, begun)) = self.clients[client].waits.take_if(|(known, _)| *known == number)
                else {
                    return Ok(());
                };
                let service = self.clients[client].service;
                self.note(u64::from(service.0) << 32 ^ epoch.0);
                self.invariants.histories.answered(
                    service,
                    begun,
                    epoch,
                    content,
                    &self.contents,
                    &mut self.tally,
                )?;
                self.pause_client(client);
            }
            Happening::GiveUp { number } => {
                if self.clients[client]
                    .waits
                    .take_if(|(known, _)| *known == number)
                    .is_some()
                {
                    self.tally.count("client gave up");
                    self.pause_client(client);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, client: usize) {
        let service = self.clients[client].service;
        let begun = self.invariants.histories.begin(service);
        let known = &mut self.clients[client];
        known.number += 1;
        let number = known.number;
        known.waits = Some((number, begun));
        self.client_in(GIVES_UP, client, Happening::GiveUp { number });
        let claims = |host: &crate::host::Host| {
            let store = host.stores.get(&service);
            host.powered && store.is_some_and(|store| store.kernel.address)
        };
        let claimants: Vec<HostId> = self
            .hosts
            .values()
            .filter(|host| claims(host))
            .map(|host| host.id)
            .collect();
        if !claimants.is_empty() {
            let host = self.rng.pick(&claimants);
            let write = self.rng.chance(600);
            let delay = self.client_delay();
            self.client_in(delay, client, Happening::Arrive { number, host, write });
        }
    }

    fn arrive(&mut self, client: usize, number: u64, host: HostId, write: bool) {
        let (service, truth) = (self.clients[client].service, self.truth);
        let Some(known) = self.hosts.get_mut(&host) else {
            return;
        };
        let Some((content, epoch)) = known.serve(service, write, truth, &mut self.contents) else {
            return;
        };
        self.invariants.histories.served(service, content);
        if write {
            self.wake_host(host);
        }
        let work = self.rng.between(MS / 10, 3 * MS);
        let leave = Happening::Leave {
            number,
            host,
            epoch,
            content,
        };
        self.client_in(work, client, leave);
    }

    fn client_delay(&mut self) -> u64 {
        self.rng.between(MS / 20, self.net.delay_ms_max * MS)
    }

    fn pause_client(&mut self, client: usize) {
        let pause = self.rng.between(PAUSE_MS.0 * MS, PAUSE_MS.1 * MS);
        self.client_in(pause, client, Happening::Next);
    }

    pub fn client_in(&mut self, delay: u64, client: usize, happening: Happening) {
        self.schedule(delay, Event::Client(client, happening));
    }
}
