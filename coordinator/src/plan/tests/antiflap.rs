//! What holds a move back, and what does not.

use super::*;
use crate::state::{Change, MoveReason, WINDOW_MS};

fn order(world: &World, to: u32) -> Result<HostId, String> {
    world.with_facts(|state, facts| check_target(state, facts, world::KV, Some(HostId(to))))
}

#[test]
fn paused_mode_holds_predictions_back_and_nothing_else() {
    let paused = World::steady().apply(Change::Pause { on: true });
    check(
        &paused.clone().risky(1),
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (paused): the risk of a stayed at or above 80.00 % for 3 ticks or more, but moves by prediction are paused
    "#]],
    );
    assert_eq!(order(&paused.clone().risky(1), 2), Ok(HostId(2)));
    check(
        &paused.silent(1).lease_ended(0).later(400).reported(2, 7),
        expect![[r#"
            would:
              kv: grant e2 to b, because the lease of a ended and b has the newest sealed generation
            would not:
              nothing
        "#]],
    );
}

#[test]
fn a_service_moves_by_prediction_once_in_a_window_whoever_leads() {
    // The move is in the state: the facts of the next leader are all new.
    let moved = World::steady().moved(MoveReason::Predicted {
        risk: BasisPoints(9_100),
    });
    check(
        &moved.clone().risky(2),
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (window): the risk of b stayed at or above 80.00 % for 3 ticks or more, but it was moved by prediction within the last 10 minutes
    "#]],
    );
    assert_eq!(order(&moved.clone().risky(2), 3), Ok(HostId(3)));
    check(
        &moved.clone().wall(WINDOW_MS).risky(2),
        expect![[r#"
        would:
          kv: hand over to a, because the risk of b stayed at or above 80.00 % for 3 ticks or more
        would not:
          nothing
    "#]],
    );
    check(
        &moved.silent(2).lease_ended(0).later(400).reported(3, 9),
        expect![[r#"
            would:
              kv: grant e3 to c, because the lease of b ended and c has the newest sealed generation
            would not:
              nothing
        "#]],
    );
}

#[test]
fn a_manual_move_opens_no_window() {
    check(
        &World::steady().moved(MoveReason::Operator).risky(2),
        expect![[r#"
            would:
              kv: hand over to a, because the risk of b stayed at or above 80.00 % for 3 ticks or more
            would not:
              nothing
        "#]],
    );
}

#[test]
fn no_more_than_the_share_of_hosts_is_acted_on_at_once() {
    check(
        &World::two_services().risky(1).risky(2),
        expect![[r#"
        would:
          kv: hand over to c, because the risk of a stayed at or above 80.00 % for 3 ticks or more
        would not:
          web: held back (share cap): the risk of b stayed at or above 80.00 % for 3 ticks or more, but a is being acted on already, and of 3 hosts 1 may be at once
    "#]],
    );
}

#[test]
fn services_of_one_host_move_together() {
    check(
        &World::two_on_one().risky(1),
        expect![[r#"
        would:
          kv: hand over to b, because the risk of a stayed at or above 80.00 % for 3 ticks or more
          web: hand over to b, because the risk of a stayed at or above 80.00 % for 3 ticks or more
        would not:
          nothing
    "#]],
    );
}

#[test]
fn leases_that_end_together_wait_out_the_storm_delay() {
    let storm = World::two_services()
        .silent(1)
        .silent(2)
        .lease_ended(0)
        .lease_ended(1);
    let later = |ms| storm.clone().later(ms).reported(3, 9);
    check(
        &later(1_900),
        expect![[r#"
        would:
          nothing
        would not:
          the cluster: held back (storm delay): the leases of a, b ended at once, which is more than 1 of 3 hosts: takeovers wait 2000 ms
          kv: its lease ended together with those of more hosts than fail at once
          web: its lease ended together with those of more hosts than fail at once
    "#]],
    );
    check(
        &later(2_000),
        expect![[r#"
        would:
          kv: grant e2 to c, because the lease of a ended and c has the newest sealed generation
          web: grant e2 to c, because the lease of b ended and c has the newest sealed generation
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_lease_that_ended_long_ago_makes_no_storm() {
    let stranded = World::two_services().silent(1).lease_ended(0).later(60_000);
    check(
        &stranded.silent(2).lease_ended(1).later(400).reported(3, 9),
        expect![[r#"
            would:
              kv: grant e2 to c, because the lease of a ended and c has the newest sealed generation
              web: grant e2 to c, because the lease of b ended and c has the newest sealed generation
            would not:
              nothing
        "#]],
    );
}

#[test]
fn a_manual_order_passes_over_antiflap_but_not_over_safety() {
    let world = World::steady();
    for (world, expected) in [
        (world.clone().silent(2), Err("b has not been heard of lately")),
        (
            world.clone().copy(2, CopyState::Warming),
            Err("b has no ready copy"),
        ),
        (world.clone().risky(2), Err("b is itself at risk")),
        (world.clone().unready(2), Err("b is not in the promotable set")),
        (world, Ok(HostId(2))),
    ] {
        assert_eq!(order(&world, 2), expected.map_err(str::to_owned));
    }
}
