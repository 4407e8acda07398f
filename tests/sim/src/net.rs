//! The network: delay, loss, duplication, reordering and one-way cuts.

use std::collections::BTreeSet;
use std::rc::Rc;

use understudy_common::id::{GenerationId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::wire::{Order, PromiseRequest, Promised, Request, Response};
use understudy_coordinator::replica::Message;

use crate::clock::MS;
use crate::host::engine::Frame;
use crate::rng::Rng;
use crate::tally::Tally;

#[derive(Clone, Debug)]
pub enum Packet {
    Raft(Box<Message>),
    Request(Rc<Request>),
    /// Bound to the connection of one process of the agent.
    Order(Box<Order>, u64),
    Response {
        hello: bool,
        response: Rc<Response>,
    },
    /// A sealed generation on its way to a shadow, and its acknowledgement.
    Frame(ServiceId, Frame),
    Acked(ServiceId, GenerationId),
    /// A holder asks a shadow for promises, and its answer.
    Ask(Rc<PromiseRequest>),
    Promised(Rc<Promised>),
}

#[derive(Clone, Debug)]
pub struct Net {
    /// Nothing gets from the first to the second.
    pub cuts: BTreeSet<(Principal, Principal)>,
    pub loss_per_mille: u64,
    pub duplicates_per_mille: u64,
    /// Longest delay in this weather.
    pub delay_ms_max: u64,
}

impl Net {
    pub fn calm() -> Self {
        Self {
            cuts: BTreeSet::new(),
            loss_per_mille: 0,
            duplicates_per_mille: 0,
            delay_ms_max: 3,
        }
    }

    /// When the one or two copies of a packet arrive, in nanoseconds from now; none if it is lost.
    pub fn deliveries(
        &self,
        rng: &mut Rng,
        tally: &mut Tally,
        from: Principal,
        to: Principal,
    ) -> [Option<u64>; 2] {
        if !self.cuts.is_empty() && self.cuts.contains(&(from, to)) {
            tally.count("packet met a cut");
            return [None; 2];
        }
        if self.loss_per_mille > 0 && rng.chance(self.loss_per_mille) {
            tally.count("packet lost");
            return [None; 2];
        }
        let first = Some(self.delay(rng));
        let again = self.duplicates_per_mille > 0 && rng.chance(self.duplicates_per_mille);
        if again {
            tally.count("packet duplicated");
        }
        [first, again.then(|| self.delay(rng))]
    }

    fn delay(&self, rng: &mut Rng) -> u64 {
        // Now and then one packet is much slower than the rest, and overtaken by many.
        let slowest = if rng.chance(10) {
            self.delay_ms_max * 20
        } else {
            self.delay_ms_max
        };
        rng.between(MS / 20, slowest * MS)
    }

    pub fn isolate(&mut self, node: Principal, others: impl IntoIterator<Item = Principal>) {
        for other in others {
            self.cuts.insert((node, other));
            self.cuts.insert((other, node));
        }
    }
}
