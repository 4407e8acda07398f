//! The version gate: a command that a member cannot apply is never proposed, and never passed over.

mod group;

use std::time::Duration;

use group::{Group, id, note, settings};
use raft::eraftpb::MessageType;
use understudy_coordinator::replica::{Message, Settings};

fn with_an_old_third() -> Group {
    let mut group = Group::of((1..=3).map(|n| Settings {
        command_version: if n == 3 { 0 } else { 1 },
        ..settings(n, 3)
    }));
    group.await_announced();
    group
}

#[test]
fn a_command_that_one_replica_cannot_apply_is_refused_with_its_name() {
    let mut group = with_an_old_third();
    let leader = group.await_leader();
    let before = group.replica(leader).applied();
    let why = group.refused(note("new"));
    assert!(
        why.contains("needs command version 1, which coordinator-3 cannot apply"),
        "{why}"
    );
    group.run(Duration::from_millis(500));
    assert_eq!(group.replica(leader).applied(), before, "nothing was proposed");
}

#[test]
fn the_command_is_taken_once_the_last_replica_is_upgraded() {
    let mut group = with_an_old_third();
    group.crash(id(3));
    group.run(Duration::from_secs(1));
    assert!(group.refused(note("still down")).contains("coordinator-3"));
    group.nodes.get_mut(&id(3)).unwrap().settings.command_version = 1;
    group.start(id(3)).unwrap();
    group.await_announced();
    group.run_until("the newer version to be known", |group| {
        group.leader().is_some_and(|leader| {
            let members = &group.replica(leader).state().coordinators.members;
            members[&id(3)].version == Some(1)
        })
    });
    group.done(note("new"));
}

#[test]
fn a_replica_that_was_downgraded_stops_at_the_first_command_that_it_cannot_apply() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let old = (1..=3).map(id).find(|n| *n != leader).unwrap();
    group.crash(old);
    group.done(note("new"));
    group.nodes.get_mut(&old).unwrap().settings.command_version = 0;
    group.start(old).unwrap();
    group.run_until("it to stop", |group| group.replica(old).halted().is_some());
    let replica = group.replica(old);
    let why = replica.halted().unwrap().to_string();
    assert!(
        why.contains("needs command version 1, and this program applies versions up to 0"),
        "{why}"
    );
    assert_eq!(replica.state().garbage, 0);
    assert!(replica.state().events.after(0).all(|event| event.text != "new"));
}

#[test]
fn a_replica_that_is_sent_a_newer_snapshot_stops_in_plain_words() {
    let mut group = Group::new(3);
    let leader = group.await_leader();
    let old = (1..=3).map(id).find(|n| *n != leader).unwrap();
    let mut message = Message {
        from: leader.0,
        to: old.0,
        term: group.replica(leader).term(),
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgSnapshot);
    let mut newer = group.replica(leader).state().to_snapshot();
    newer[12] += 1;
    message.mut_snapshot().set_data(newer.into());
    message.mut_snapshot().mut_metadata().index = 1_000;
    let now = group.now;
    let replica = group.nodes.get_mut(&old).unwrap().replica.as_mut().unwrap();
    replica.handle_message(now, leader, message);
    let why = replica.halted().unwrap().to_string();
    assert!(
        why.contains("snapshot has version 2, and this program reads version 1"),
        "{why}"
    );
}
