//! Coordinator processes that come, go and give the leadership away.

mod cluster;

use std::net::UdpSocket;
use std::time::Instant;

use cluster::{Cluster, text, wait};
use serde_json::Value;
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{self, CoordinatorList, Request, Response, StreamKind};
use understudy_coordinator::config::ClusterConfig;
use understudy_transport::Endpoint;

fn running(size: usize) -> Cluster {
    let mut cluster = Cluster::new(size);
    for n in 1..=size {
        cluster.start(n);
    }
    cluster.leader(None);
    cluster
}

fn members(cluster: &Cluster) -> Option<Vec<Value>> {
    let output = cluster.understudy(&["coordinators", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(document["coordinators"].as_array()?.clone())
}

fn await_voters(cluster: &Cluster, expected: &[u64]) {
    wait(&format!("the voters {expected:?}"), || {
        let members = members(cluster)?;
        let ids: Vec<_> = members
            .iter()
            .filter_map(|member| member["id"].as_u64())
            .collect();
        let vote = members.iter().all(|member| member["standing"] == "voter");
        (vote && ids == expected).then_some(())
    });
}

/// What a coordinator tells a host that connects.
fn told_to_a_host(cluster: &Cluster, n: usize) -> CoordinatorList {
    let read = |name: &str| std::fs::read(cluster.path(name)).unwrap();
    let credentials =
        Credentials::from_pem(&read("ca.pem"), &read("host-1.pem"), &read("host-1.key")).unwrap();
    let config = ClusterConfig::read(&cluster.path("cluster.toml")).unwrap();
    let member = config.coordinators[n - 1];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &credentials).unwrap();
        let link = endpoint
            .dial(member.addr, Principal::Coordinator(member.id))
            .await
            .unwrap();
        let stream = tokio::time::timeout(cluster::PATIENCE, link.accept_bi())
            .await
            .unwrap();
        let (kind, mut sender, mut receiver) = stream.unwrap().kind().await.unwrap();
        assert_eq!(kind, StreamKind::Rpc);
        let request = wire::decode::<Request>(&receiver.receive().await.unwrap().unwrap()).unwrap();
        sender.send(&wire::encode(&Response::Done)).await.unwrap();
        match request {
            Request::Coordinators(list) => list,
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn a_coordinator_is_added_while_the_others_run_and_the_leader_can_be_removed() {
    let mut cluster = running(3);
    let addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let added = cluster.understudy(&["coordinators", "add", &format!("4={addr}")]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    cluster.place(4);
    cluster.start(4);
    await_voters(&cluster, &[1, 2, 3, 4]);
    let told = told_to_a_host(&cluster, 4);
    assert_eq!(told.members.len(), 4);
    assert!(
        told.members.iter().any(|(id, at)| id.0 == 4 && *at == addr),
        "{told:?}"
    );

    let leader = cluster.leader(None);
    let removed = cluster.understudy(&["coordinators", "remove", &leader.to_string()]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    let left: Vec<_> = (1..=4).filter(|n| *n != leader as u64).collect();
    await_voters(&cluster, &left);
    cluster.kill(leader);
    // Two of three are a majority; with the one that left they would be two of four.
    let other = left.iter().find(|n| **n != 4).copied().unwrap() as usize;
    cluster.kill(other);
    let noted = cluster.understudy(&["note", "two of three"]);
    assert!(noted.status.success(), "{}", text(&noted.stderr));

    cluster.start(other);
    cluster.kill(4);
    cluster.start(4);
    await_voters(&cluster, &left);
    for n in 1..=4 {
        assert!(!cluster.log(n).contains("ERROR"), "{}", cluster.log(n));
    }
}

#[test]
fn what_is_refused_leaves_no_certificate_behind() {
    let cluster = running(1);
    for (args, code, expected) in [
        (
            &["coordinators", "remove", "1"][..],
            1,
            "coordinator-1 is the only voter",
        ),
        (&["coordinators", "add", "1=127.0.0.1:9"], 2, "coordinator-1.pem"),
        (
            &["coordinators", "add", "x=127.0.0.1:9"],
            64,
            "not a coordinator's number",
        ),
        (&["coordinators", "add", "4"], 64, "expected ID=ADDRESS:PORT"),
        (
            &["coordinators", "transfer", "7"],
            1,
            "coordinator-7 is no member",
        ),
    ] {
        let output = cluster.understudy(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let taken = ClusterConfig::read(&cluster.path("cluster.toml"))
        .unwrap()
        .coordinators[0]
        .addr;
    let refused = cluster.understudy(&["coordinators", "add", &format!("2={taken}")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!cluster.path("coordinator-2.pem").exists());
    let table = text(&cluster.understudy(&["coordinators"]).stdout);
    assert!(
        table.contains("COORDINATOR") && table.contains("leader"),
        "{table}"
    );
}

#[test]
fn a_leader_that_is_told_to_stop_gives_the_leadership_away_first() {
    let mut cluster = running(3);
    for _ in 0..3 {
        let leader = cluster.leader(None);
        let told = Instant::now();
        cluster.stop(leader);
        assert_eq!(cluster.exit_code(leader), Some(0));
        let stopped = told.elapsed();
        let next = cluster.leader(Some(leader));
        println!(
            "stopped after {stopped:?}; {next} was seen to lead after {:?}",
            told.elapsed()
        );
        let log = cluster.log(leader);
        assert!(log.contains("gives the leadership away"), "{log}");
        assert!(log.contains("no longer the leader"), "{log}");
        cluster.start(leader);
        wait("it to catch up", || {
            let status = cluster.status()?;
            let all = status["coordinators"].as_array()?;
            all.iter().all(|one| one["reachable"] == true).then_some(())
        });
    }
}

#[test]
fn the_leadership_goes_to_the_coordinator_that_is_named() {
    let cluster = running(3);
    let leader = cluster.leader(None);
    let to = leader % 3 + 1;
    // A leader that was elected by one of them has not heard the other yet.
    wait("all of them to be heard", || {
        let heard = |member: &Value| member["reachable"] == true;
        members(&cluster)?.iter().all(heard).then_some(())
    });
    let done = cluster.understudy(&["coordinators", "transfer", &format!("coordinator-{to}")]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(cluster.leader(None), to);
}
