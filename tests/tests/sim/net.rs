//! The network: delay, loss, duplication, reordering and one-way cuts.

use std::collections::BTreeSet;

use understudy_common::id::{GenerationId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::wire::{Request, Response};
use understudy_coordinator::replica::Message;

use super::clock::MS;
use super::rng::Rng;

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a queue of a few of them in one test")]
pub enum Packet {
    Raft(Box<Message>),
    Request {
        rpc: u64,
        request: Request,
    },
    Response {
        rpc: u64,
        response: Response,
    },
    /// A sealed generation on its way to a shadow, and its acknowledgement.
    Generation {
        service: ServiceId,
        generation: GenerationId,
    },
    Acked {
        service: ServiceId,
        generation: GenerationId,
    },
}

#[derive(Clone, Debug, Default)]
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
            delay_ms_max: 3,
            ..Self::default()
        }
    }

    /// When the copies of one packet arrive, counted from now in nanoseconds.
    pub fn deliveries(&self, rng: &mut Rng, from: Principal, to: Principal) -> Vec<u64> {
        if self.cuts.contains(&(from, to)) || rng.chance(self.loss_per_mille) {
            return Vec::new();
        }
        let copies = if rng.chance(self.duplicates_per_mille) {
            2
        } else {
            1
        };
        (0..copies)
            .map(|_| {
                // Now and then one packet is much slower than the rest.
                let slowest = if rng.chance(10) {
                    self.delay_ms_max * 20
                } else {
                    self.delay_ms_max
                };
                rng.between(MS / 20, slowest * MS)
            })
            .collect()
    }

    pub fn isolate(&mut self, node: Principal, others: impl IntoIterator<Item = Principal>) {
        for other in others {
            self.cuts.insert((node, other));
            self.cuts.insert((other, node));
        }
    }
}
