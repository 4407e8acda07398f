//! Model check: lease, epoch, gate, shadow set and promises, every order of events within small bounds.
//!
//! The times, the holder's lease, the leader's lease table and the gate's rule are the product's own;
//! promises, consensus, the network and the hosts around them are as abstract as they can be. One [`Slice`] bounds
//! one part of the protocol so that it can be searched to the end. Each [`Broken`] variant leaves one rule
//! out and must be found, else the check proves nothing.

mod actions;
mod host;
mod log;
mod properties;
mod state;
mod times;

use properties::{NOTHING_LOST, ONE_GATE, OUTSIDERS};
use state::State;
use stateright::{Checker, HasDiscoveries, Model};

/// What is searched to the end, and what is left to other slices.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    pub name: &'static str,
    /// True time ends here.
    pub until: u64,
    pub hosts: usize,
    pub elections: u8,
    pub restarts: u8,
    pub reboots: u8,
    pub epoch_max: u64,
    pub handover: bool,
    /// Coordinators may be unreachable, promises stand in, and a third host joins the set.
    pub promises: bool,
    /// Renewals reach no coordinator from then on.
    pub renewals_until: u64,
}

const LEADERS: Slice = Slice {
    name: "two leaders in succession",
    until: 6,
    hosts: 2,
    elections: 2,
    restarts: 0,
    reboots: 0,
    epoch_max: 2,
    handover: false,
    promises: false,
    renewals_until: u64::MAX,
};

const RESTARTS: Slice = Slice {
    name: "holder restarts and reboots",
    until: 5,
    elections: 0,
    restarts: 1,
    reboots: 1,
    ..LEADERS
};

const HANDOVER: Slice = Slice {
    name: "planned handover",
    until: 4,
    elections: 0,
    handover: true,
    ..LEADERS
};

const PROMISES: Slice = Slice {
    name: "promises without coordinators",
    until: 5,
    elections: 0,
    reboots: 1,
    promises: true,
    renewals_until: 0,
    ..LEADERS
};

const JOINING: Slice = Slice {
    name: "a third host joins under promises",
    hosts: 3,
    reboots: 0,
    ..PROMISES
};

/// One rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    AnswersWithoutReadIndex,
    DeadlineFromReceipt,
    GrantsWithoutWaiting,
    NewLeaderDoesNotWait,
    NoDriftAllowed,
    FenceNotKept,
    GrantsBeforeFence,
    CutsBeforeFence,
    PromoteesNeedNoListing,
    SubsetOfPromises,
    PromiseFromReceipt,
    PromiseKeptTooShort,
    RebootForgetsPromise,
    PromisesAfterNewerEpoch,
    ListGrowsUnderPromises,
}

pub struct Protocol {
    pub slice: Slice,
    pub broken: Option<Broken>,
}

impl Protocol {
    /// As the leaders know them.
    pub fn leader_times(&self) -> understudy_common::lease::LeaseTimes {
        if self.is(Broken::NoDriftAllowed) {
            times::NO_DRIFT
        } else {
            times::TIMES
        }
    }

    pub fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = actions::Action;

    fn init_states(&self) -> Vec<State> {
        times::RATES[..if self.slice.promises { 2 } else { 3 }]
            .iter()
            .map(|slow| State::first(self, *slow))
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Self::Action>) {
        state.enabled(self, actions);
    }

    fn next_state(&self, state: &State, action: Self::Action) -> Option<State> {
        let mut next = state.clone();
        next.act(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        properties::of(&self.slice)
    }
}

fn holds(slice: Slice) {
    let checker = Protocol { slice, broken: None }
        .checker()
        .threads(2)
        .spawn_dfs()
        .join();
    println!(
        "{}: {} states, {} generated",
        slice.name,
        checker.unique_state_count(),
        checker.state_count()
    );
    assert!(checker.is_done());
    checker.assert_properties();
}

fn finds(slice: Slice, broken: Broken, property: &'static str) {
    let model = Protocol {
        slice,
        broken: Some(broken),
    };
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discovery(property);
    println!("{broken:?}: {} states", checker.unique_state_count());
    let path = found.unwrap_or_else(|| panic!("{broken:?} was not found in `{}`", slice.name));
    println!("{:?}", path.into_actions());
}

#[test]
fn two_leaders_in_succession_keep_one_gate() {
    holds(LEADERS);
}

#[test]
fn restarts_and_reboots_keep_one_gate() {
    holds(RESTARTS);
}

#[test]
fn a_planned_handover_loses_nothing() {
    holds(HANDOVER);
}

#[test]
fn promises_keep_one_gate_without_coordinators() {
    holds(PROMISES);
}

#[test]
fn a_host_that_joins_under_promises_keeps_one_gate() {
    holds(JOINING);
}

#[test]
fn every_rule_left_out_is_found() {
    finds(LEADERS, Broken::AnswersWithoutReadIndex, ONE_GATE);
    finds(LEADERS, Broken::DeadlineFromReceipt, ONE_GATE);
    finds(LEADERS, Broken::GrantsWithoutWaiting, ONE_GATE);
    finds(LEADERS, Broken::NewLeaderDoesNotWait, ONE_GATE);
    finds(LEADERS, Broken::NoDriftAllowed, ONE_GATE);
    finds(HANDOVER, Broken::FenceNotKept, ONE_GATE);
    finds(HANDOVER, Broken::GrantsBeforeFence, ONE_GATE);
    finds(HANDOVER, Broken::CutsBeforeFence, NOTHING_LOST);
}

#[test]
fn every_rule_of_promises_left_out_is_found() {
    finds(JOINING, Broken::PromoteesNeedNoListing, OUTSIDERS);
    finds(JOINING, Broken::SubsetOfPromises, ONE_GATE);
    finds(PROMISES, Broken::PromiseFromReceipt, ONE_GATE);
    finds(PROMISES, Broken::PromiseKeptTooShort, ONE_GATE);
    finds(PROMISES, Broken::RebootForgetsPromise, ONE_GATE);
    finds(PROMISES, Broken::PromisesAfterNewerEpoch, ONE_GATE);
    finds(JOINING, Broken::ListGrowsUnderPromises, ONE_GATE);
}
