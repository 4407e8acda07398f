//! Coordinators come and go while the others decide.

mod group;

use std::time::Duration;

use group::{Group, add, id, note, remove, settings};
use understudy_common::wire::{Operate, Response};

fn members(list: &[(u64, &str)]) -> Vec<(u64, String)> {
    list.iter()
        .map(|(id, standing)| (*id, (*standing).to_owned()))
        .collect()
}

fn await_members(group: &mut Group, expected: &[(u64, &str)]) {
    let expected = members(expected);
    group.run_until(&format!("members {expected:?}"), |group| {
        group
            .leader()
            .is_some_and(|leader| group.members(leader) == expected)
    });
}

#[test]
fn a_newcomer_catches_up_from_a_compacted_log_and_then_votes() {
    let mut group = Group::new(3);
    for n in 0..200 {
        group.done(note(&format!("before {n}")));
    }
    group.done(add(4));
    let leader = group.await_leader();
    assert_eq!(group.members(leader)[3], (4, "learner".to_owned()));
    group.install_newcomer(4);
    await_members(
        &mut group,
        &[(1, "voter"), (2, "voter"), (3, "voter"), (4, "voter")],
    );
    // Its vote counts: of four voters, three have to agree.
    let leader = group.await_leader();
    let other = (1..=3).map(id).find(|n| *n != leader).unwrap();
    group.crash(other);
    group.done(note("agreed by the newcomer"));
    group.run_until("the newcomer to apply it", |group| {
        group.replica(id(4)).applied() == group.replica(leader).applied()
    });
    assert_eq!(
        group.replica(id(4)).state().digest(),
        group.replica(leader).state().digest()
    );
}

#[test]
fn a_newcomer_that_is_not_there_holds_up_nobody_and_can_be_taken_back() {
    let mut group = Group::new(3);
    group.done(add(4));
    let leader = group.await_leader();
    let other = (1..=3).map(id).find(|n| *n != leader).unwrap();
    group.crash(other);
    group.done(note("two of three are enough"));
    group.start(other).unwrap();
    assert!(group.refused(add(5)).contains("coordinator-4 is being added"));
    assert!(
        group
            .refused(remove(other.0))
            .contains("coordinator-4 is being added")
    );
    group.done(remove(4));
    await_members(&mut group, &[(1, "voter"), (2, "voter"), (3, "voter")]);
    assert!(group.refused(add(4)).contains("never used twice: give 5"));
    group.done(add(5));
}

#[test]
fn a_change_that_makes_no_sense_is_refused_in_words() {
    let mut group = Group::new(1);
    for (operate, expected) in [
        (remove(1), "coordinator-1 is the only voter"),
        (remove(9), "coordinator-9 is no member"),
        (add(1), "coordinator-1 is a member already"),
        (
            Operate::AddCoordinator {
                id: id(2),
                addr: ([192, 0, 2, 1], 7400).into(),
            },
            "coordinator-1 listens at 192.0.2.1:7400 already",
        ),
        (
            Operate::TransferLeadership { to: id(1) },
            "coordinator-1 leads already",
        ),
        (
            Operate::TransferLeadership { to: id(2) },
            "coordinator-2 is no member",
        ),
    ] {
        let why = group.refused(operate);
        assert!(why.contains(expected), "{why}");
    }
    let mut seven = Group::new(7);
    assert!(seven.refused(add(8)).contains("there are 7 coordinators already"));
}

#[test]
fn a_leader_that_is_to_go_gives_the_leadership_away_first() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    group.done(remove(leader.0));
    let left: Vec<_> = (1..=3).filter(|n| *n != leader.0).map(|n| (n, "voter")).collect();
    await_members(&mut group, &left);
    assert_ne!(group.await_leader(), leader);
    group.done(note("two are left"));
}

#[test]
fn a_coordinator_that_was_removed_disturbs_nobody() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let gone = (1..=3).map(id).find(|n| *n != leader).unwrap();
    // It never hears that it was removed.
    group.cut_off(gone);
    group.done(remove(gone.0));
    let left: Vec<_> = (1..=3).filter(|n| *n != gone.0).map(|n| (n, "voter")).collect();
    await_members(&mut group, &left);
    let term = group.replica(leader).term();
    group.cuts.clear();
    group.run(Duration::from_secs(5));
    assert_eq!(group.leader(), Some(leader));
    assert_eq!(group.replica(leader).term(), term);
    assert!(!group.replica(leader).listens_to(gone));
}

#[test]
fn a_new_leader_ends_a_change_that_the_old_one_began() {
    let mut group = Group::new(3);
    group.done(add(4));
    group.install_newcomer(4);
    group.run_until("two sets of voters", |group| {
        group.nodes.values().any(|node| {
            node.replica
                .as_ref()
                .is_some_and(|replica| replica.state().coordinators.is_joint())
        })
    });
    let leader = group.leader().unwrap();
    group.crash(leader);
    await_members(
        &mut group,
        &[(1, "voter"), (2, "voter"), (3, "voter"), (4, "voter")],
    );
    assert_ne!(group.await_leader(), leader);
}

#[test]
fn one_that_is_elected_while_it_leaves_gives_the_leadership_away_as_well() {
    let mut group = Group::new(4);
    let leader = group.await_leader();
    let mut others = (1..=4).map(id).filter(|n| *n != leader);
    let leaving = others.next().unwrap();
    group.done(remove(leaving.0));
    group.crash(leader);
    // Only the one that leaves reaches enough of the voters before the change.
    let others: Vec<_> = others.collect();
    group.cuts.insert((others[0], others[1]));
    group.cuts.insert((others[1], others[0]));
    group.run_until("the one that leaves to lead", |group| {
        group.leader() == Some(leaving)
    });
    group.cuts.clear();
    let left: Vec<_> = (1..=4)
        .filter(|n| *n != leaving.0)
        .map(|n| (n, "voter"))
        .collect();
    await_members(&mut group, &left);
    assert_ne!(group.await_leader(), leaving);
    group.done(note("three are left"));
}

#[test]
fn the_whole_set_can_be_replaced_one_by_one_and_started_again() {
    let mut group = Group::new(3);
    group.done(note("written by the first three"));
    for n in 1..=3 {
        group.done(add(n + 3));
        group.install_newcomer(n + 3);
        group.run_until("a voter more", |group| {
            group
                .leader()
                .is_some_and(|leader| group.members(leader).contains(&(n + 3, "voter".to_owned())))
        });
        group.done(remove(n));
        group.run_until("a voter less", |group| {
            group.leader().is_some_and(|leader| {
                group
                    .members(leader)
                    .iter()
                    .all(|(id, standing)| *id != n && standing == "voter")
            })
        });
        group.crash(id(n));
    }
    let expected = members(&[(4, "voter"), (5, "voter"), (6, "voter")]);
    for n in 4..=6 {
        group.crash(id(n));
    }
    for n in 4..=6 {
        group.start(id(n)).unwrap();
    }
    let leader = group.await_leader();
    group.run_until("the state again", |group| group.members(leader) == expected);
    let texts: Vec<_> = group
        .replica(leader)
        .state()
        .events
        .after(0)
        .map(|event| event.text.clone())
        .collect();
    assert!(
        texts.contains(&"written by the first three".to_owned()),
        "{texts:?}"
    );
}

#[test]
fn the_leadership_goes_to_whom_the_operator_names() {
    let mut group = Group::new(3);
    for _ in 0..4 {
        let leader = group.await_leader();
        let to = id(leader.0 % 3 + 1);
        assert_eq!(group.operate(Operate::TransferLeadership { to }), Response::Done);
        assert_eq!(group.leader(), Some(to));
    }
}

#[test]
fn the_leadership_stays_when_the_one_named_does_not_answer() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let to = id(leader.0 % 3 + 1);
    group.crash(to);
    let request = group.ask(leader, Operate::TransferLeadership { to });
    let Response::Refused(why) = group.await_reply(request) else {
        panic!("a dead one took over");
    };
    assert!(why.to_string().contains("did not take over in time"), "{why}");
    assert_eq!(group.await_leader(), leader);
    group.done(note("the old leader goes on"));
    assert!(
        group
            .refused(Operate::TransferLeadership { to })
            .contains("does not answer")
    );
}

#[test]
fn a_cluster_that_began_with_other_members_in_its_files_keeps_those_of_the_state() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let other = (1..=3).map(id).find(|n| *n != leader).unwrap();
    group.crash(other);
    group.nodes.get_mut(&other).unwrap().settings = settings(other.0, 5);
    group.start(other).unwrap();
    group.run(Duration::from_secs(2));
    assert_eq!(group.members(other).len(), 3);
}
