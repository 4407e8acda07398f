//! Holders that may go on without the coordinators.

use understudy_common::spec::CoordinatorLoss;
use understudy_common::wire::{Apart, Basis};

use super::*;
use crate::state::Change;

#[test]
fn a_silent_holder_that_may_go_on_is_not_taken_over_from() {
    let silent = World::steady()
        .going_on(CoordinatorLoss::Serve)
        .silent(1)
        .older(2_000);
    check(
        &silent,
        expect![[r#"
            would:
              nothing
            would not:
              kv: held back (policy): a is silent, and the service's policy lets it go on then: if it is dead, say so with `understudy fence a --confirm-dead`
        "#]],
    );
    let dead = Change::ConfirmDead {
        host: HostId(1),
        boot: 1,
    };
    check(
        &silent
            .apply(dead)
            .lease_ended(0)
            .later(400)
            .reported(2, 7)
            .reported(3, 6),
        expect![[r#"
            would:
              kv: grant e2 to b, because the lease of a ended and b has the newest sealed generation
            would not:
              nothing
        "#]],
    );
}

#[test]
fn what_was_served_without_coordinators_is_told_once() {
    let apart = Apart {
        since: BootTime::from_ms(5),
        until: BootTime::from_ms(1_505),
        basis: Basis::Promises,
        epoch: Epoch(1),
    };
    check(
        &World::steady().apart(apart, Basis::Promises),
        expect![[r#"
            would:
              nothing
            would not:
              kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
        "#]],
    );
    let told = World::steady().apart(apart, Basis::Lease);
    check(
        &told,
        expect![[r#"
            would:
              kv: record that e1 was served without coordinators, because a reports it
            would not:
              nothing
        "#]],
    );
    let change = Change::ServedApart {
        service: world::KV,
        host: HostId(1),
        boot: 1,
        apart,
    };
    check(
        &told.apply(change),
        expect![[r#"
            would:
              nothing
            would not:
              kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
        "#]],
    );
}

#[test]
fn what_a_coordinator_cannot_apply_yet_holds_up_no_decision() {
    let apart = Apart {
        since: BootTime::from_ms(5),
        until: BootTime::from_ms(1_505),
        basis: Basis::Promises,
        epoch: Epoch(1),
    };
    let told = World::steady().apart(apart, Basis::Lease);
    check(
        &told.older_coordinator().failing(1, "it does not start"),
        expect![[r#"
            would:
              kv: renew e1 no more, so that its lease ends, because a failed to serve: it does not start
            would not:
              nothing
        "#]],
    );
}
