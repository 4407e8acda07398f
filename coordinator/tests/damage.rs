//! Real bytes on the disk of a coordinator that was killed.

mod cluster;

use std::path::PathBuf;

use cluster::{Cluster, text, wait};

/// A cluster of three in which one that does not lead was killed, its newest log file, and the end of
/// what is written in it.
fn with_a_dead_follower() -> (Cluster, usize, PathBuf, usize) {
    let mut cluster = Cluster::new(3);
    for n in 1..=3 {
        cluster.start(n);
    }
    let leader = cluster.leader(None);
    for words in ["one", "two", "three"] {
        let noted = cluster.understudy(&["note", words]);
        assert!(noted.status.success(), "{}", text(&noted.stderr));
    }
    let dead = leader % 3 + 1;
    wait("it to have everything", || {
        let status = cluster.status()?;
        let all = status["coordinators"].as_array()?;
        let applied = |n: usize| all.iter().find(|one| one["id"] == n)?["applied"].as_u64();
        (applied(dead)? >= applied(leader)?).then_some(())
    });
    cluster.kill(dead);
    let files = std::fs::read_dir(cluster.dir.path().join(format!("disk-{dead}/raft"))).unwrap();
    let mut files: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "raftlog"))
        .collect();
    files.sort();
    let file = files.pop().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (cluster, dead, file, end)
}

#[test]
fn a_torn_last_record_is_cut_off_and_what_was_missed_is_fetched() {
    let (mut cluster, dead, file, end) = with_a_dead_follower();
    let mut bytes = std::fs::read(&file).unwrap();
    // What a power cut leaves of a record that was never acknowledged: some of its bytes. One that was
    // acknowledged cannot be lost without losing a vote for what is committed.
    bytes.copy_within(end - 40..end - 5, end);
    std::fs::write(&file, &bytes).unwrap();
    let noted = cluster.understudy(&["note", "away"]);
    assert!(noted.status.success(), "{}", text(&noted.stderr));
    cluster.start(dead);
    wait("it to have everything again", || {
        let status = cluster.status()?;
        let leader = status["leader"].as_u64()?;
        let all = status["coordinators"].as_array()?;
        let one = |n: u64| all.iter().find(|one| one["id"] == n);
        let own = one(dead as u64)?;
        (own["reachable"] == true && own["applied"].as_u64()? >= one(leader)?["applied"].as_u64()?)
            .then_some(())
    });
    let log = cluster.log(dead);
    assert!(log.contains("cut off what a crash left of a record"), "{log}");
    // It has what it fetched: with it and one other alone everything is there.
    let other =
        (1..=3).find(|n| *n != dead && Some(*n as u64) != cluster.status().unwrap()["leader"].as_u64());
    cluster.kill(other.unwrap());
    let noted = cluster.understudy(&["note", "four"]);
    assert!(noted.status.success(), "{}", text(&noted.stderr));
    let events = text(&cluster.understudy(&["events"]).stdout);
    for words in ["one", "two", "three", "away", "four"] {
        assert!(events.contains(words), "{events}");
    }
}

#[test]
fn damage_in_the_middle_stops_the_start_in_plain_words() {
    let (mut cluster, dead, file, end) = with_a_dead_follower();
    let mut bytes = std::fs::read(&file).unwrap();
    // In the first record: a follower that was late may have got half of the log as its last one.
    let early = 90;
    assert!(early < end);
    bytes[early] ^= 0xff;
    std::fs::write(&file, &bytes).unwrap();
    cluster.start(dead);
    assert_eq!(cluster.exit_code(dead), Some(2));
    let log = cluster.log(dead);
    assert!(log.contains("is damaged at byte"), "{log}");
    assert!(log.contains("add it again under a new number"), "{log}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "it is left as it is");
}
