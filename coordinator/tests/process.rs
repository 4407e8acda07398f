//! Real coordinator processes: elections, crashes, restarts, and what the CLI says.

mod cluster;

use std::time::Instant;

use cluster::{Cluster, SERVICE, text, wait};
use understudy_common::identity::Principal;
use understudy_common::wire::{Operate, Request, Response};
use understudy_coordinator::config::ClusterConfig;
use understudy_transport::Endpoint;

#[test]
fn a_committed_service_survives_the_leaders_death_and_a_restart_of_all() {
    let mut cluster = Cluster::new(3);
    for n in 1..=3 {
        cluster.start(n);
    }
    let first = cluster.leader(None);
    let file = cluster.write("store.toml", SERVICE);
    let applied = cluster.understudy(&["apply", &file]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));

    let killed = Instant::now();
    cluster.kill(first);
    let second = cluster.leader(Some(first));
    println!(
        "a new leader was known {} ms after kill -9 of the old one",
        killed.elapsed().as_millis()
    );
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["name"], "store", "{status:#}");

    cluster.start(first);
    wait("the old leader to catch up", || {
        let status = cluster.status()?;
        let coordinators = status["coordinators"].as_array()?;
        let leaders = coordinators.iter().find(|c| c["id"] == second)?["applied"].as_u64()?;
        let own = coordinators.iter().find(|c| c["id"] == first)?;
        (own["reachable"] == true && own["applied"].as_u64()? >= leaders).then_some(())
    });

    for n in 1..=3 {
        cluster.kill(n);
    }
    for n in 1..=3 {
        cluster.start(n);
    }
    cluster.leader(None);
    let status = cluster.status().unwrap();
    assert_eq!(status["services"][0]["name"], "store", "{status:#}");
    for n in 1..=3 {
        assert!(!cluster.log(n).contains("ERROR"), "{}", cluster.log(n));
        assert!(!cluster.log(n).contains("panicked"), "{}", cluster.log(n));
    }
}

#[test]
fn a_coordinator_told_to_stop_stops_cleanly() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    cluster.stop(1);
    assert_eq!(cluster.exit_code(1), Some(0));
}

#[test]
fn the_cli_says_in_plain_words_what_is_wrong() {
    let mut cluster = Cluster::new(1);
    let check = |cluster: &Cluster, args: &[&str], code: i32, expected: &str| {
        let output = cluster.understudy(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    };
    check(&cluster, &["status"], 2, "no coordinator leads or can be reached");
    cluster.start(1);
    cluster.leader(None);
    let bad = cluster.write("bad.toml", &SERVICE.replace("/srv/store", "srv/store"));
    let unknown = cluster.write("unknown.toml", &format!("colour = 1\n{SERVICE}"));
    check(
        &cluster,
        &["apply", &bad],
        1,
        "paths: `srv/store` is not a plain absolute directory",
    );
    check(&cluster, &["apply", &unknown], 1, "unknown field `colour`");
    check(
        &cluster,
        &["apply", "/nowhere.toml"],
        64,
        "cannot read /nowhere.toml",
    );
    check(
        &cluster,
        &["handover", "nothing"],
        1,
        "there is no service nothing",
    );
    check(&cluster, &["restore", "z"], 1, "there is no host z");
    check(&cluster, &["note", &"x".repeat(257)], 1, "1 to 256 bytes");
    let noted = cluster.understudy(&["note", "the fan of db2 was replaced"]);
    assert!(noted.status.success(), "{}", text(&noted.stderr));
    let events = text(&cluster.understudy(&["events"]).stdout);
    assert!(events.contains("the fan of db2 was replaced"), "{events}");
    check(&cluster, &["dance"], 64, "dance");
    for args in [
        &["status"][..],
        &["hosts"],
        &["services"],
        &["events"],
        &["events", "--json"],
    ] {
        let output = cluster.understudy(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
    std::fs::remove_file(cluster.path("cluster.toml")).unwrap();
    check(&cluster, &["status"], 64, "cluster.toml");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_touches_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let file = cluster.write("store.toml", SERVICE);
    assert!(cluster.understudy(&["apply", &file]).status.success());
    let plan = |args: &[&str]| {
        let output = cluster.understudy(&[&["plan"], args].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let first = plan(&[]);
    assert_eq!(
        first.1, "would:\n  nothing\nwould not:\n  store: none of its hosts is alive and out of safe mode\n",
        "{first:?}"
    );
    assert_eq!(plan(&[]), first);
    let json: serde_json::Value = serde_json::from_str(&plan(&["--json"]).1).unwrap();
    assert_eq!(json["would_not"][0]["subject"], "store", "{json:#}");
    assert_eq!(plan(&["--if", "z=dead"]).0, Some(1));
    assert_eq!(plan(&["--if", "a=soon"]).0, Some(64));
    assert_eq!(plan(&[]), first);
}

#[test]
fn a_bad_configuration_is_refused_by_the_keys_path() {
    let mut cluster = Cluster::new(1);
    let path = cluster.path("coordinator-1.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("[identity]", "[identity]\ncolour = \"red\"")).unwrap();
    cluster.start(1);
    assert_eq!(cluster.exit_code(1), Some(64));
    assert!(
        cluster.log(1).contains("identity.colour: unknown field"),
        "{}",
        cluster.log(1)
    );
}

#[test]
fn a_log_full_of_garbage_is_refused_since_it_lost_a_vote() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    cluster.kill(1);
    let raft = cluster.dir.path().join("disk-1/raft");
    let file = std::fs::read_dir(&raft)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "raftlog"))
        .unwrap();
    std::fs::write(&file, vec![0xA5; 4096]).unwrap();
    cluster.start(1);
    assert_eq!(cluster.exit_code(1), Some(2));
    assert!(cluster.log(1).contains("has voted in term"), "{}", cluster.log(1));
}

/// Requests in flight at once while commits are counted.
const CALLERS: usize = 64;

#[test]
fn many_operators_at_once_share_the_waits_for_the_disk() {
    let mut cluster = Cluster::new(3);
    for n in 1..=3 {
        cluster.start(n);
    }
    let leader = cluster.leader(None);
    let config = ClusterConfig::read(&cluster.path("cluster.toml")).unwrap();
    let member = config.coordinators[leader - 1];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (done, elapsed) = runtime.block_on(async {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &config.credentials).unwrap();
        let link = endpoint
            .dial(member.addr, Principal::Coordinator(member.id))
            .await
            .unwrap();
        let began = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..CALLERS {
            let link = link.clone();
            callers.spawn(async move {
                let mut done = 0_u64;
                while began.elapsed() < std::time::Duration::from_secs(2) {
                    let request = Request::Operate(Operate::Pause {
                        on: done.is_multiple_of(2),
                    });
                    match link.call(&request, cluster::PATIENCE).await {
                        Ok(Response::Document(_)) => done += 1,
                        // The leadership may move on a busy machine.
                        Ok(Response::NotLeader(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
                done
            });
        }
        (callers.join_all().await.into_iter().sum::<u64>(), began.elapsed())
    });
    println!(
        "{done} commits in {elapsed:?}: {:.0}/s",
        done as f64 / elapsed.as_secs_f64()
    );
    assert!(done > 0);
}
