//! What pre-vote, check-quorum and a slow disk do to a leadership.

mod group;

use std::time::Duration;

use group::{Group, id, note};
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::Principal;
use understudy_common::wire::{Renew, Request, Response};
use understudy_coordinator::replica::RequestId;

fn others(leader: CoordinatorId) -> Vec<CoordinatorId> {
    (1..=3).map(id).filter(|n| *n != leader).collect()
}

#[test]
fn a_follower_that_was_cut_off_does_not_unseat_the_leader_when_it_returns() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let term = group.replica(leader).term();
    let away = others(leader)[0];
    group.cut_off(away);
    group.run(Duration::from_secs(20));
    assert_eq!(
        group.replica(away).term(),
        term,
        "without pre-vote it would have counted terms up"
    );
    group.cuts.clear();
    group.done(note("while it returns"));
    group.run(Duration::from_secs(3));
    assert_eq!(
        (group.leader(), group.replica(leader).term()),
        (Some(leader), term)
    );
    assert_eq!(group.replica(away).applied(), group.replica(leader).applied());
}

#[test]
fn a_leader_that_hears_no_majority_stops_leading_and_acknowledges_nothing() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    group.cut_off(leader);
    let request = group.ask(leader, note("to nobody"));
    group.run(Duration::from_secs(2));
    assert!(
        !group.replica(leader).is_leader(),
        "without check-quorum it would lead for ever"
    );
    assert!(
        matches!(group.replies[&request], Response::NotLeader(_)),
        "{:?}",
        group.replies[&request]
    );
    let next = group.await_leader();
    assert_ne!(next, leader);
    group.done(note("by the majority"));
    group.cuts.clear();
    group.run(Duration::from_secs(2));
    let texts: Vec<_> = group
        .replica(leader)
        .state()
        .events
        .after(0)
        .map(|event| event.text.as_str())
        .collect();
    assert!(
        texts.contains(&"by the majority") && !texts.contains(&"to nobody"),
        "{texts:?}"
    );
}

#[test]
fn one_half_heard_follower_cannot_depose_a_leader() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let term = group.replica(leader).term();
    let deaf = others(leader)[0];
    // It hears nobody, and everybody hears it.
    for other in (1..=3).map(id) {
        group.cuts.insert((other, deaf));
    }
    group.run(Duration::from_secs(20));
    assert_eq!(
        (group.leader(), group.replica(leader).term()),
        (Some(leader), term)
    );
}

fn renew(group: &mut Group, leader: CoordinatorId, sequence: u64) -> RequestId {
    let renew = Renew {
        host: HostId(1),
        sequence,
        leases: Vec::new(),
    };
    group.ask_as(leader, Principal::Host(HostId(1)), Request::Renew(renew))
}

/// How long the answers of ten renewals took, at most, while the disks of `slow` took nothing.
fn slowest_renewal(slow: impl Fn(CoordinatorId) -> Vec<CoordinatorId>) -> Duration {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let slow = slow(leader);
    for id in &slow {
        group.nodes.get_mut(id).unwrap().stuck = true;
    }
    let stalled = group.ask(leader, note("waits for the disks"));
    let mut slowest = Duration::ZERO;
    for sequence in 1..=10 {
        let asked = group.now;
        let request = renew(&mut group, leader, sequence);
        let response = group.await_reply(request);
        assert!(matches!(response, Response::Renewed(_)), "{response:?}");
        slowest = slowest.max(group.now.since(asked));
        group.run(Duration::from_millis(200));
    }
    assert_eq!(group.leader(), Some(leader));
    let acknowledged = group.replies.contains_key(&stalled);
    let applies = !slow.contains(&leader) && slow.len() < 2;
    assert_eq!(
        acknowledged, applies,
        "only what is durable on a majority, the leader's own disk included"
    );
    for id in &slow {
        group.nodes.get_mut(id).unwrap().stuck = false;
    }
    group.run_until("everything to be written", |group| {
        group.replies.contains_key(&stalled)
            && (1..=3).all(|n| group.replica(id(n)).applied() == group.replica(leader).applied())
    });
    slowest
}

#[test]
fn a_disk_that_takes_nothing_for_seconds_holds_up_no_renewal() {
    let lease = Duration::from_millis(1_000);
    for (which, slow) in [
        ("leader", slowest_renewal(|leader| vec![leader])),
        (
            "one follower",
            slowest_renewal(|leader| others(leader)[..1].to_vec()),
        ),
        ("both followers", slowest_renewal(others)),
        ("all", slowest_renewal(|_| (1..=3).map(id).collect())),
    ] {
        println!("slow disk of {which}: renewals answered within {slow:?}");
        assert!(slow * 4 < lease, "{which}: {slow:?}");
    }
}

#[test]
fn an_election_while_a_snapshot_is_being_written_is_survived() {
    for after_ms in [20, 60, 400] {
        let mut group = Group::new(3);
        let leader = group.await_leader();
        let late = others(leader)[0];
        group.crash(late);
        for n in 0..200 {
            group.done(note(&format!("note {n}")));
        }
        group.start(late).unwrap();
        group.nodes.get_mut(&late).unwrap().stuck = true;
        group.run_until("the snapshot to be sent", |group| {
            group.sent.contains_key(&(leader, "MsgSnapshot".to_owned()))
        });
        group.run(Duration::from_millis(after_ms));
        group.cut_off(late);
        group.run(Duration::from_secs(2));
        group.nodes.get_mut(&late).unwrap().stuck = false;
        group.run(Duration::from_secs(2));
        group.cuts.clear();
        group.run_until("it to catch up", |group| {
            group.leader().is_some_and(|leader| {
                group.replica(late).applied() == group.replica(leader).applied()
                    && group.replica(late).applied() > 200
            })
        });
    }
}

#[test]
fn a_crash_with_writes_under_way_loses_nothing_that_was_acknowledged() {
    for seed in 0..20_u64 {
        let mut group = Group::new(3);
        let leader = group.await_leader();
        for (at, other) in others(leader).into_iter().enumerate() {
            group.nodes.get_mut(&other).unwrap().stuck = (seed >> at) & 1 == 1;
        }
        let asked: Vec<_> = (0..30)
            .map(|n| group.ask(leader, note(&format!("note {n}"))))
            .collect();
        group.run(Duration::from_millis(20 + seed * 5));
        let acknowledged: Vec<_> = (0..30)
            .filter(|n| group.replies.get(&asked[*n]) == Some(&Response::Done))
            .collect();
        for n in 1..=3 {
            group.crash(id(n));
            group.nodes.get_mut(&id(n)).unwrap().stuck = false;
        }
        for n in 1..=3 {
            group.start(id(n)).unwrap();
        }
        group.done(note("after the crash"));
        let leader = group.await_leader();
        let texts: Vec<_> = group
            .replica(leader)
            .state()
            .events
            .after(0)
            .map(|event| event.text.clone())
            .collect();
        for n in acknowledged {
            assert!(
                texts.contains(&format!("note {n}")),
                "seed {seed}: note {n} is lost"
            );
        }
    }
}

#[test]
fn a_leader_whose_disk_is_full_gives_the_leadership_away_and_takes_nothing_in() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    group.fill_disk(leader, true);
    group.run_until("another leader", |group| {
        group.leader().is_some_and(|now| now != leader)
    });
    group.done(note("the others go on"));
    let next = group.await_leader();
    let status = group.replica(next).status(group.now).to_string();
    group.run(Duration::from_secs(2));
    let status_later = group.replica(next).status(group.now);
    let row = &status_later["coordinators"][usize::try_from(leader.0 - 1).unwrap()];
    assert_eq!(row["disk_full"], true, "{status}");
    group.fill_disk(leader, false);
    group.run_until("it to catch up", |group| {
        group.replica(leader).applied() == group.replica(next).applied()
    });
    group.run(Duration::from_secs(2));
    let status = group.replica(next).status(group.now);
    assert_eq!(
        status["coordinators"][usize::try_from(leader.0 - 1).unwrap()]["disk_full"],
        false,
        "{status}"
    );
}

#[test]
fn a_lone_coordinator_whose_disk_is_full_refuses_and_goes_on_when_there_is_room() {
    let mut group = Group::new(1);
    let leader = group.await_leader();
    group.fill_disk(leader, true);
    let request = group.ask(leader, note("no room"));
    let response = group.await_reply(request);
    assert!(
        matches!(&response, Response::Refused(refusal) if refusal.to_string().contains("coordinator-1, whose disk has no room")),
        "{response:?}"
    );
    group.run(Duration::from_secs(3));
    group.fill_disk(leader, false);
    group.done(note("room again"));
}
