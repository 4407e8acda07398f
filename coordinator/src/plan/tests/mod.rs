//! The pure planner on small worlds, with the printed plan as the expected value.

mod antiflap;
mod apart;
mod domain;
mod evidence;
mod world;

use expect_test::{Expect, expect};
use understudy_common::id::{Epoch, HostId};
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{CopyState, Fate};

use super::{PlanDocument, Supposed, check_target, plan};
use world::World;

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&world.printed());
}

#[test]
fn a_steady_service_is_left_alone_and_the_plan_says_why() {
    check(
        &World::steady(),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
}

#[test]
fn a_host_that_stays_at_risk_is_left() {
    check(
        &World::steady().risky(1),
        expect![[r#"
        would:
          kv: hand over to b, because the risk of a stayed at or above 80.00 % for 3 ticks or more
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_risk_that_was_seen_for_a_tick_or_two_moves_nothing() {
    check(
        &World::steady().over(1, 2),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk has not been at or above 80.00 % for 3 ticks yet; ready to take over: b, c
    "#]],
    );
}

#[test]
fn a_move_without_anybody_fit_says_what_each_lacks() {
    check(
        &World::steady().risky(1).risky(2).copy(3, CopyState::Warming),
        expect![[r#"
            would:
              kv: let c take over no more, because c reports that its copy is not ready
            would not:
              kv: held back (no fit target): the risk of a stayed at or above 80.00 % for 3 ticks or more, but nobody can take over: b is itself at risk; c has no ready copy
        "#]],
    );
}

#[test]
fn a_lease_end_waits_for_all_shadows_to_speak_and_then_goes_to_the_newest_copy() {
    let world = World::steady().silent(1).lease_ended(0);
    check(
        &world,
        expect![[r#"
        would:
          nothing
        would not:
          kv: the lease of a ended, and b, c are asked what they have
    "#]],
    );
    let world = world.later(400).reported(2, 7).reported(3, 9);
    check(
        &world,
        expect![[r#"
        would:
          kv: grant e2 to c, because the lease of a ended and c has the newest sealed generation
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_lease_end_that_nobody_can_follow_says_what_each_lacks() {
    let world = World::steady().silent(1).silent(2).lease_ended(0).later(400);
    let world = world.reported(3, 7).copy(3, CopyState::Warming);
    check(
        &world,
        expect![[r#"
        would:
          kv: renew e1 again if its holder comes back, because no shadow of kv can take over
        would not:
          kv: held back (no fit target): the lease of a ended, but nobody can take over: b has not been heard of lately; c has no ready copy
    "#]],
    );
}

#[test]
fn a_copy_that_the_last_holder_did_not_go_on_from_takes_over_no_more() {
    let ended = |world: World| {
        let world = world.silent(1).silent(2).lease_ended(0).later(400);
        world.printed()
    };
    // c was not heard of when b went on from less: what b served since is not in it.
    let passed_over = World::steady().failed_over(3).sealed(3, 1, 5);
    assert!(ended(passed_over).contains("c has a copy that the holder did not go on from"));
    for (epoch, n) in [(1, 3), (1, 2), (2, 1)] {
        let world = World::steady().failed_over(3).sealed(3, epoch, n);
        let plan = ended(world);
        assert!(plan.contains("grant e3 to c"), "sealed {n} of e{epoch}: {plan}");
    }
    let older = World::steady().failed_over(3).sealed(3, 0, 9);
    assert!(!ended(older).contains("grant"));
}

#[test]
fn a_holder_that_fails_to_serve_is_renewed_no_more() {
    check(
        &World::steady().failing(1, "it does not start"),
        expect![[r#"
        would:
          kv: renew e1 no more, so that its lease ends, because a failed to serve: it does not start
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_service_that_starts_nowhere_is_tried_less_and_less_often() {
    let ended = |failed: u32, waited_ms: u64| {
        let world = World::steady()
            .failed_times(failed)
            .lease_ended(0)
            .later(waited_ms);
        let world = world.reported(1, 1).reported(2, 7).reported(3, 9);
        world.printed()
    };
    assert!(ended(5, 400).contains("grant e2 to c"), "{}", ended(5, 400));
    expect![[r#"
        would:
          nothing
        would not:
          kv: held back (no fit target): it did not start in the last 7 epochs, on a, b, c: it is tried again 10 s after the last of them
    "#]]
    .assert_eq(&ended(7, 9_900));
    for (failed, pause_ms) in [(6, 5_000), (7, 10_000), (60, 10_000)] {
        assert!(!ended(failed, pause_ms - 100).contains("grant"), "{failed}");
        assert!(ended(failed, pause_ms).contains("grant e2 to c"), "{failed}");
    }
}

#[test]
fn what_if_plans_with_other_facts_and_touches_none() {
    let world = World::steady();
    let before = world.printed();
    let suppose = |fates: &[(u32, Fate)]| {
        world.with_facts(|state, facts| {
            let mut supposed = Supposed::new(state, facts);
            for (host, fate) in fates {
                supposed.host(HostId(*host), *fate);
            }
            PlanDocument::of(&supposed.plan(facts), state, Vec::new()).to_string()
        })
    };
    expect![[r#"
        would:
          kv: hand over to b, because the risk of a stayed at or above 80.00 % for 3 ticks or more
        would not:
          nothing
    "#]]
    .assert_eq(&suppose(&[(1, Fate::Risk(BasisPoints(9_500)))]));
    expect![[r#"
        would:
          kv: grant e2 to b, because the lease of a ended and b has the newest sealed generation
        would not:
          nothing
    "#]]
    .assert_eq(&suppose(&[(1, Fate::Dead)]));
    expect![[r#"
        would:
          kv: grant e2 to c, because the lease of a ended and c has the newest sealed generation
        would not:
          nothing
    "#]]
    .assert_eq(&suppose(&[(1, Fate::Dead), (2, Fate::Dead)]));
    assert_eq!(world.printed(), before);
}

#[test]
fn the_same_world_plans_the_same() {
    let world = World::steady().risky(1);
    assert_eq!(world.printed(), world.printed());
    let twice = world.with_facts(|state, facts| (plan(state, facts), plan(state, facts)));
    assert_eq!(twice.0, twice.1);
}

#[test]
fn a_released_holder_that_reports_its_fence_is_taken_at_its_word() {
    check(
        &World::steady().released(),
        expect![[r#"
        would:
          kv: record that e1 is fenced, because the holder reports that its gate is closed
        would not:
          nothing
    "#]],
    );
}

#[test]
fn what_another_boot_of_a_released_holder_reports_ends_nothing() {
    check(
        &World::steady().released().rebooted(1),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a closes its gate for the handover to b
    "#]],
    );
}
