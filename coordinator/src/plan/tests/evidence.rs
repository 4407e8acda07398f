//! What observers must see before a holder is not believed.

use understudy_common::wire::Reach::{Answered, Dropped, Refused, Unreachable};

use super::*;
use crate::plan::Seen;
use crate::state::{Change, WINDOW_MS};
use understudy_common::id::Epoch;
use understudy_common::units::BootTime;

#[test]
fn a_holder_that_is_heard_but_that_nobody_reaches_is_condemned_with_the_evidence() {
    let world = World::steady()
        .sees(2, 0, Dropped, 3_000)
        .sees(3, 0, Refused, 4_200);
    check(
        &world,
        expect![[r#"
        would:
          kv: renew e1 no more, so that its lease ends, because a is heard and says that it serves, but b sees the address drop for 3 s, its agent drop for 3 s; c sees the address refuse for 4 s, its agent refuse for 4 s
        would not:
          nothing
    "#]],
    );
}

#[test]
fn observers_must_agree_for_long_enough() {
    let world = World::steady()
        .sees(2, 0, Dropped, 2_999)
        .sees(3, 0, Dropped, 2_999);
    check(
        &world,
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
    let world = World::steady()
        .sees(2, 0, Dropped, 9_000)
        .sees(3, 0, Refused, 2_000);
    check(
        &world,
        expect![[r#"
            would:
              nothing
            would not:
              kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
        "#]],
    );
}

#[test]
fn a_workload_that_just_came_back_is_not_condemned_for_what_was_seen_before() {
    let world = World::steady()
        .sees(2, 0, Refused, 20_000)
        .sees(3, 0, Refused, 20_000);
    check(
        &world.claimed(2_999),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
}

#[test]
fn an_observer_that_stood_still_saw_nothing_meanwhile() {
    let world = World::steady()
        .sees(2, 0, Dropped, 20_000)
        .sees(3, 0, Dropped, 20_000);
    check(
        &world.clone().asked(2, 500, 2),
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
    check(
        &world.clone().asked(2, 20_000, 3).asked(3, 20_000, 3),
        expect![[r#"
            would:
              nothing
            would not:
              kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
        "#]],
    );
    check(
        &world.asked(2, 500, 3),
        expect![[r#"
        would:
          kv: renew e1 no more, so that its lease ends, because a is heard and says that it serves, but b sees the address drop for 20 s, its agent drop for 20 s; c sees the address drop for 20 s, its agent drop for 20 s
        would not:
          nothing
    "#]],
    );
}

#[test]
fn a_claim_begins_anew_with_each_break() {
    let serving = |epoch| {
        let world = World::steady();
        let mut report = world.report(1);
        report.services[0].serving = epoch;
        report
    };
    let (one, other) = (Some(Epoch(1)), Some(Epoch(2)));
    let at = BootTime::from_ms;
    let mut seen = Seen::default();
    for (now, epoch, gone, expected) in [
        (10_000, one, false, Some(10_000)),
        (11_000, one, false, Some(10_000)),
        (12_000, None, false, None),
        (13_000, one, false, Some(13_000)),
        (14_000, other, false, Some(14_000)),
        (15_000, other, true, Some(15_000)),
        (20_000, other, false, Some(20_000)),
    ] {
        seen.gone = gone;
        seen.hear(at(now), serving(epoch));
        let since = seen.serving.get(&world::KV).map(|(_, since)| *since);
        assert_eq!(since, expected.map(at), "{now}");
    }
}

#[test]
fn observers_that_disagree_are_no_reason_to_act() {
    let world = World::steady()
        .sees(2, 0, Refused, 60_000)
        .sees(3, 0, Answered, 60_000);
    check(
        &world,
        expect![[r#"
            would:
              nothing
            would not:
              kv: held back (observers disagree): a is heard and says that it serves, but b sees the address refuse for 60 s, its agent refuse for 60 s; c sees the address answer, its agent answer; they do not agree
        "#]],
    );
}

#[test]
fn one_observer_alone_is_believed_only_when_it_is_refused() {
    check(
        &World::steady().sees(2, 0, Dropped, 60_000),
        expect![[r#"
            would:
              nothing
            would not:
              kv: held back (observers disagree): a is heard and says that it serves, but b sees the address drop for 60 s, its agent drop for 60 s; what one alone sees dropped may be its own cut
        "#]],
    );
    check(
        &World::steady().sees(2, 0, Refused, 3_000),
        expect![[r#"
        would:
          kv: renew e1 no more, so that its lease ends, because a is heard and says that it serves, but b sees the address refuse for 3 s, its agent refuse for 3 s
        would not:
          nothing
    "#]],
    );
}

#[test]
fn an_observer_that_cannot_ask_is_none() {
    let world = World::steady().sees(2, 0, Dropped, 60_000);
    check(
        &world.sees(3, 0, Unreachable, 60_000),
        expect![[r#"
            would:
              nothing
            would not:
              kv: held back (observers disagree): a is heard and says that it serves, but b sees the address drop for 60 s, its agent drop for 60 s; c sees the address out of its own reach for 60 s, its agent out of its own reach for 60 s; what one alone sees dropped may be its own cut
        "#]],
    );
}

#[test]
fn a_port_that_never_answered_says_nothing() {
    let world = World::steady()
        .sees_after(false, 2, 0, Refused, 60_000)
        .sees_after(false, 3, 0, Refused, 60_000);
    check(
        &world,
        expect![[r#"
        would:
          nothing
        would not:
          kv: a serves e1; its risk is below 80.00 %; ready to take over: b, c
    "#]],
    );
}

#[test]
fn nobody_is_condemned_when_nobody_could_take_over() {
    let world = World::steady()
        .sees(2, 0, Refused, 5_000)
        .sees(3, 0, Refused, 5_000);
    let world = world.copy(2, CopyState::Warming).copy(3, CopyState::Warming);
    check(
        &world.unready(2).unready(3),
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (no fit target): a is heard and says that it serves, but b sees the address refuse for 5 s, its agent refuse for 5 s; c sees the address refuse for 5 s, its agent refuse for 5 s; nobody can take over: b is not in the promotable set; c is not in the promotable set
    "#]],
    );
}

#[test]
fn evidence_moves_a_service_once_in_a_window() {
    let world = World::steady()
        .apply(Change::Condemned {
            service: world::KV,
            epoch: Epoch(1),
            by_evidence: true,
        })
        .sees(2, 0, Refused, 5_000)
        .sees(3, 0, Refused, 5_000);
    check(
        &world,
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (window): a is heard and says that it serves, but b sees the address refuse for 5 s, its agent refuse for 5 s; c sees the address refuse for 5 s, its agent refuse for 5 s; it was taken from a holder by evidence within the last 10 minutes
    "#]],
    );
    check(
        &world.wall(WINDOW_MS),
        expect![[r#"
        would:
          kv: renew e1 no more, so that its lease ends, because a is heard and says that it serves, but b sees the address refuse for 5 s, its agent refuse for 5 s; c sees the address refuse for 5 s, its agent refuse for 5 s
        would not:
          nothing
    "#]],
    );
}

#[test]
fn evidence_against_more_hosts_than_fail_at_once_moves_nothing() {
    let world = World::two_services()
        .sees(2, 0, Dropped, 5_000)
        .sees(3, 0, Dropped, 5_000)
        .sees(1, 1, Dropped, 5_000)
        .sees(3, 1, Dropped, 5_000);
    check(
        &world,
        expect![[r#"
        would:
          nothing
        would not:
          kv: held back (share cap): a is heard and says that it serves, but b sees the address drop for 5 s, its agent drop for 5 s; c sees the address drop for 5 s, its agent drop for 5 s; the same is said of a, b, and of 3 hosts 1 may be acted on at once
          web: held back (share cap): b is heard and says that it serves, but a sees the address drop for 5 s, its agent drop for 5 s; c sees the address drop for 5 s, its agent drop for 5 s; the same is said of a, b, and of 3 hosts 1 may be acted on at once
    "#]],
    );
}

#[test]
fn a_lease_end_is_not_held_back_and_tells_what_each_observer_saw() {
    let world = World::steady()
        .sees(2, 0, Answered, 60_000)
        .sees(3, 0, Dropped, 1_000)
        .silent(1)
        .lease_ended(0);
    check(
        &world.later(400).reported(2, 7).reported(3, 9),
        expect![[r#"
        would:
          kv: grant e2 to c, because the lease of a ended and c has the newest sealed generation; b sees the address answer, its agent answer; c sees the address drop for 1 s, its agent drop for 1 s
        would not:
          nothing
    "#]],
    );
}
