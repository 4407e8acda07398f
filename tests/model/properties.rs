//! What always holds, and what must be reached so that it means something.

use stateright::Property;

use super::host::Role;
use super::log::Step;
use super::{Protocol, Slice};

pub const ONE_GATE: &str = "at most one gate is open";
pub const EPOCHS: &str = "an epoch has one owner and nobody is ahead of the log";
pub const OUTSIDERS: &str = "nobody outside the holder's list can be promoted";
pub const NOTHING_LOST: &str = "a planned move loses nothing that was acknowledged";

pub fn of(slice: &Slice) -> Vec<Property<Protocol>> {
    let mut properties = vec![
        Property::<Protocol>::always(ONE_GATE, |_, state| state.open_gates() <= 1),
        Property::<Protocol>::always(EPOCHS, |_, state| {
            state.hosts.iter().all(|host| {
                host.epoch <= state.log.epoch
                    && host.gate.epoch <= state.log.epoch
                    && (host.gate.epoch < state.log.epoch || state.log.holder == host.id)
            })
        }),
        Property::<Protocol>::always(OUTSIDERS, |_, state| {
            let holder = &state.hosts[state.log.holder];
            let obeys = holder.role == Role::Serve && holder.epoch == state.log.epoch;
            !obeys || holder.list.covers(state.log.set)
        }),
        Property::<Protocol>::always(NOTHING_LOST, |_, state| !state.lost),
        Property::<Protocol>::sometimes("the next holder serves", |_, state| {
            state.log.epoch > 1 && state.is_open(state.log.holder)
        }),
        Property::<Protocol>::sometimes("the first gate is open after a renewal", |_, state| {
            state.time > 3 && state.is_open(0)
        }),
    ];
    if slice.elections > 0 {
        properties.push(Property::<Protocol>::sometimes(
            "a deposed leader has a renewal to answer",
            |_, state| !state.leaders[1 - state.reigns].waiting.is_empty(),
        ));
        properties.push(Property::<Protocol>::sometimes(
            "a proposal in doubt was committed",
            |_, state| state.in_doubt,
        ));
    }
    if slice.handover {
        properties.push(Property::<Protocol>::sometimes(
            "a planned move with a write",
            |_, state| state.planned && state.acknowledged > 0,
        ));
        properties.push(Property::<Protocol>::sometimes(
            "an answer is under way to a fenced holder",
            |_, state| state.log.step == Step::Fenced && !state.answers.is_empty(),
        ));
    }
    if slice.promises {
        properties.push(Property::<Protocol>::sometimes(
            "promises keep a gate open",
            |_, state| state.kept_by_promises,
        ));
        properties.push(Property::<Protocol>::sometimes(
            "a promise holds a promotion back",
            |_, state| state.refused_by_promise,
        ));
    }
    if slice.hosts == 3 {
        properties.push(Property::<Protocol>::sometimes(
            "a third host can be promoted",
            |_, state| state.log.set.has(2),
        ));
    }
    if slice.reboots > 0 && !slice.promises {
        properties.push(Property::<Protocol>::sometimes(
            "a holder came back from a reboot",
            |_, state| state.log.holder_rebooted(),
        ));
    }
    properties
}
