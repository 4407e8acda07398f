//! What the loop does so that a service goes on without coordinators: orders and leases of an agent before
//! this one, promises asked for and given, epochs given up.

use understudy_common::abi::gate::GateEntry;
use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::{Order, Peer, PromiseRequest, Promised, Refusal, Role};

use super::{Agent, Service};
use crate::clock::boot_time;
use crate::gate::Gate as _;
use crate::service::{Event, Machine};
use crate::sync;

impl Agent {
    /// Obeys the orders that an earlier agent of this boot kept, as far as it saw no later epoch. One that
    /// is not the newest of its epoch does for guarding, renewing and reporting, but says nothing about
    /// who may be promoted.
    pub(super) fn adopt(&mut self, orders: Vec<Order>) {
        for order in orders {
            let id = order.service;
            let entry = match self.gate.entry(order.spec.address) {
                Ok(entry) => entry.unwrap_or_default(),
                Err(error) => {
                    tracing::error!(service = %id, error = sync::chain(&error), "its gate cannot be read");
                    continue;
                }
            };
            if order.epoch < Epoch(entry.seen) {
                tracing::info!(service = %id, epoch = %order.epoch, seen = entry.seen, "the kept order is outdated");
                continue;
            }
            let newest = order.revision >= entry.revision;
            tracing::info!(service = %id, epoch = %order.epoch, role = ?order.role, newest, "adopts the kept order");
            let mut machine = Machine::new(id);
            if machine.handle_order(order.clone()).is_ok() {
                self.lease.handle_order(&order, newest);
                let spec = order.spec;
                let driver = None;
                self.services.insert(
                    id,
                    Service {
                        machine,
                        spec,
                        driver,
                    },
                );
            }
        }
    }

    /// An order that is older than one that this host obeyed.
    pub(super) fn outdated(&self, order: &Order) -> Result<(), Refusal> {
        let entry = self
            .gate
            .entry(order.spec.address)
            .ok()
            .flatten()
            .unwrap_or_default();
        let seen = Epoch(entry.seen);
        if order.epoch < seen {
            return Err(Refusal::StaleEpoch {
                order: order.epoch,
                seen,
            });
        }
        // An older revision of the same epoch changes nothing.
        Ok(())
    }

    /// A lease that an earlier agent of this boot held and that still lasts.
    pub(super) fn adopt_lease(&mut self, id: ServiceId, epoch: Epoch) {
        let Some(known) = self.services.get_mut(&id) else {
            return;
        };
        let Ok(Some(entry)) = self.gate.entry(known.spec.address) else {
            return;
        };
        let now = boot_time();
        if entry.epoch == epoch.0 && entry.is_open(now.0) {
            let deadline = BootTime(entry.deadline_ns);
            tracing::info!(service = %id, %epoch, left = ?deadline.since(now), "adopts its lease");
            self.lease.adopt(id, epoch, deadline);
            known.machine.handle_event(now, Event::Opened { epoch, deadline });
        }
    }

    /// Sends what is to be asked to the shadows of the newest orders.
    pub(super) fn ask(&mut self) {
        while let Some(ask) = self.lease.poll_ask() {
            if let Some(peer) = self.peer(ask.to, &ask.request) {
                self.peers.ask(peer, ask.request);
            }
        }
    }

    fn peer(&self, host: HostId, request: &PromiseRequest) -> Option<Peer> {
        let services = request.leases.iter().filter_map(|(id, _)| self.services.get(id));
        let mut named = services.filter_map(|known| match known.machine.order().map(|order| &order.role) {
            Some(Role::Serve { shadows, .. }) => shadows.iter().find(|peer| peer.host == host).copied(),
            _ => None,
        });
        named.next()
    }

    /// Promises what can be promised. It is pinned before it is said.
    pub(super) fn promise(&mut self, now: BootTime, request: &PromiseRequest) -> Promised {
        let until = now + self.times.promise();
        let mut leases = Vec::new();
        for (id, epoch) in &request.leases {
            let Some(known) = self.services.get_mut(id) else {
                continue;
            };
            if !known.machine.follows(request.host, *epoch) {
                continue;
            }
            let address = known.spec.address;
            match self.gate.promise(address, now, *epoch, until) {
                Ok(true) => leases.push((*id, *epoch)),
                Ok(false) => continue,
                Err(error) => {
                    tracing::error!(service = %id, error = sync::chain(&error), "a promise cannot be pinned");
                    continue;
                }
            }
            match self.gate.entry(address) {
                Ok(entry) => known
                    .machine
                    .handle_event(now, barred(&entry.unwrap_or_default())),
                // What cannot be read is taken for the worst.
                Err(_) => known.machine.handle_event(
                    now,
                    Event::Barred {
                        epoch: Epoch(0),
                        until,
                    },
                ),
            }
        }
        let sequence = request.sequence;
        Promised { sequence, leases }
    }

    /// Tells the machines who has neither coordinators nor promises.
    pub(super) fn lose(&mut self, now: BootTime) {
        for (id, known) in &mut self.services {
            known
                .machine
                .handle_event(now, Event::Lost(self.lease.is_lost(*id)));
        }
    }

    /// Gives up the epochs that the coordinators refuse to renew though they cannot wait them out.
    pub(super) fn forfeit(&mut self, now: BootTime) {
        while let Some((id, epoch)) = self.lease.poll_forfeit() {
            let Some(known) = self.services.get_mut(&id) else {
                continue;
            };
            tracing::warn!(service = %id, %epoch, "the coordinators renew it no more: it is given up");
            match self.gate.fence(known.spec.address, epoch) {
                Ok(()) => {
                    self.lease.fence(id, epoch);
                    known.machine.handle_event(now, Event::Fenced { epoch });
                }
                Err(error) => {
                    let why = sync::chain(&error);
                    tracing::error!(service = %id, %epoch, why, "the gate cannot be closed");
                    known.machine.handle_event(now, Event::FenceFailed { why });
                }
            }
        }
    }
}

/// What the gate's entry promises, for the machine.
pub(super) fn barred(entry: &GateEntry) -> Event {
    Event::Barred {
        epoch: Epoch(entry.promised),
        until: BootTime(entry.promised_until_ns),
    }
}
