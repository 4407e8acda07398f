//! Real coordinators whose certificates run out, and a host that renews its own.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, PATIENCE, text, wait};
use serde_json::Value;
use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal, fingerprint};
use understudy_common::wire::{Hello, Inventory, Refusal, Request, Response};
use understudy_coordinator::config::ClusterConfig;
use understudy_transport::{Endpoint, Link, RenewalError};

fn credentials(cluster: &Cluster, name: &str) -> Credentials {
    let read = |file: &str| std::fs::read(cluster.path(file)).unwrap();
    Credentials::from_pem(
        &read("ca.pem"),
        &read(&format!("{name}.pem")),
        &read(&format!("{name}.key")),
    )
    .unwrap()
}

fn certificates(cluster: &Cluster) -> Vec<Value> {
    let output = cluster.understudy(&["certificates", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["certificates"].as_array().unwrap().clone()
}

fn row(cluster: &Cluster, who: &str) -> Value {
    let rows = certificates(cluster);
    let found = rows.iter().find(|row| row["principal"] == who);
    found
        .unwrap_or_else(|| panic!("{who} is not in {rows:?}"))
        .clone()
}

async fn dial(cluster: &Cluster, endpoint: &Endpoint, n: usize) -> Link {
    let member = ClusterConfig::read(&cluster.path("cluster.toml"))
        .unwrap()
        .coordinators[n - 1];
    endpoint
        .dial(member.addr, Principal::Coordinator(member.id))
        .await
        .unwrap()
}

fn hello(host: u32) -> Request {
    Request::Hello(Hello {
        host: HostId(host),
        name: format!("h{host}"),
        boot: 1,
        addr: "127.0.0.1:1".parse().unwrap(),
        version: "test".to_owned(),
        inventory: Inventory::default(),
        domain: Domain::default(),
    })
}

fn refused(answer: Result<String, RenewalError>, expected: &str) {
    let error = answer.unwrap_err();
    assert!(matches!(error, RenewalError::Refused(_)), "{error}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_renews_for_itself_and_the_cluster_knows_when_its_certificate_ends() {
    let mut cluster = Cluster::new(1);
    cluster.append(1, "valid_s = 600\n");
    cluster.shorten("host-1", 300);
    cluster.start(1);
    cluster.leader(None);
    let old = credentials(&cluster, "host-1");
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &old).unwrap();
    let link = dial(&cluster, &endpoint, 1).await;
    // Nobody is a member by its certificate alone.
    refused(
        link.renewed_certificate().await,
        "there is no host-1 in the cluster",
    );
    assert_eq!(link.call(&hello(1), PATIENCE).await.unwrap(), Response::Done);
    let chain = loop {
        match link.renewed_certificate().await {
            Ok(chain) => break chain,
            // One signature a second.
            Err(RenewalError::Refused(Refusal::Busy(_))) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    let new = old.with_chain(chain.as_bytes()).unwrap();
    assert_eq!(new.identity(), old.identity());
    assert_eq!(new.chain().len(), 2);
    refused(link.renewed_certificate().await, "certificates to sign");

    let end = |who: &str| row(&cluster, who)["shown"]["not_after_s"].as_i64();
    assert_eq!(end("host-1"), Some(old.certificate().lifetime.ends_s));
    // It shows the new one on the link that was made with the old one.
    let mut shown = endpoint.credentials().unwrap();
    shown.mark_unchanged();
    endpoint.renew(&new).unwrap();
    let told = link.clone();
    tokio::spawn(async move { told.show_renewals(&mut shown).await });
    let known = wait("the new certificate to be known", || {
        let row = row(&cluster, "host-1");
        let ends = row["shown"]["not_after_s"].as_i64();
        (ends == Some(new.certificate().lifetime.ends_s)).then_some(row)
    });
    assert!(known["shown"]["renewed_at_ms"].is_u64(), "{known}");
    assert_eq!(known["name"], "h1");
    assert_eq!(link.call(&hello(1), PATIENCE).await.unwrap(), Response::Done);

    // It cannot show what is another's, or nobody's.
    let other = credentials(&cluster, "host-2");
    let chain = other.chain().iter().map(|der| der.to_vec()).collect();
    let response = link
        .call(&Request::ShowCertificate(chain), PATIENCE)
        .await
        .unwrap();
    assert!(
        matches!(&response, Response::Refused(Refusal::NotYours { .. })),
        "{response:?}"
    );
    for garbage in [vec![], vec![b"garbage".to_vec()], vec![vec![0x30; 64]; 9]] {
        let response = link
            .call(&Request::ShowCertificate(garbage), PATIENCE)
            .await
            .unwrap();
        assert!(
            matches!(&response, Response::Refused(Refusal::Invalid(_))),
            "{response:?}"
        );
    }

    let table = text(&cluster.understudy(&["certificates"]).stdout);
    let line = table.lines().find(|line| line.starts_with("host-1 "));
    assert!(line.is_some_and(|line| line.contains(" ago")), "{table}");
    assert!(cluster.understudy(&["revoke", "h1"]).status.success());
    wait("the revocation to be in the table", || {
        (row(&cluster, "host-1")["revoked"] == true).then_some(())
    });
    assert_eq!(row(&cluster, "operator")["revoked"], false);
}

#[tokio::test]
async fn operators_and_newcomers_renew_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let operator = credentials(&cluster, "operator");
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &operator).unwrap();
    let link = dial(&cluster, &endpoint, 1).await;
    refused(
        link.renewed_certificate().await,
        "only hosts and coordinators renew",
    );
    let newcomer = Endpoint::newcomer("127.0.0.1:0".parse().unwrap(), fingerprint(operator.ca())).unwrap();
    let addr = ClusterConfig::read(&cluster.path("cluster.toml"))
        .unwrap()
        .coordinators[0]
        .addr;
    let link = newcomer.dial_any(addr).await.unwrap();
    assert_eq!(link.principal(), Principal::Coordinator(CoordinatorId(1)));
    refused(link.renewed_certificate().await, "a newcomer has no certificate");
}

/// The length of the coordinators' first certificates.
const SHORT_S: i64 = 20;

#[test]
fn coordinators_renew_by_the_key_that_they_hold_or_through_another_and_stay_linked() {
    let mut cluster = Cluster::new(3);
    // The first one holds no key.
    let path = cluster.path("coordinator-1.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.split("[issuer]").next().unwrap()).unwrap();
    for n in [2, 3] {
        cluster.append(n, "valid_s = 600\n");
    }
    let names: Vec<_> = (1..=3).map(|n| format!("coordinator-{n}")).collect();
    for name in &names {
        cluster.shorten(name, SHORT_S);
    }
    let first: Vec<_> = names
        .iter()
        .map(|name| credentials(&cluster, name).certificate().lifetime.ends_s)
        .collect();
    for n in 1..=3 {
        cluster.start(n);
    }
    cluster.leader(None);
    wait("the first certificates to be over", || {
        (time::OffsetDateTime::now_utc().unix_timestamp() > *first.iter().max().unwrap() + 2).then_some(())
    });
    for (name, end) in names.iter().zip(&first) {
        let kept = credentials(&cluster, name).certificate().lifetime.ends_s;
        assert!(kept > end + 500, "{name} keeps {kept} after {end}");
        let known = row(&cluster, name);
        assert_eq!(known["shown"]["not_after_s"].as_i64(), Some(kept), "{known}");
        assert!(known["shown"]["renewed_at_ms"].is_u64(), "{known}");
    }
    let status = cluster.status().unwrap();
    let reachable = |one: &&Value| one["reachable"] == true;
    let coordinators = status["coordinators"].as_array().unwrap();
    assert_eq!(coordinators.iter().filter(reachable).count(), 3, "{status}");
    for n in 1..=3 {
        let log = cluster.log(n);
        assert_eq!(log.matches("the certificate is renewed").count(), 1, "{log}");
        assert!(!log.contains("the link ended"), "a link ended:\n{log}");
    }
    // One that starts again reads what it was given.
    cluster.kill(1);
    cluster.start(1);
    wait("all to be linked again", || {
        let status = cluster.status()?;
        let coordinators = status["coordinators"].as_array()?;
        (coordinators.iter().filter(reachable).count() == 3).then_some(())
    });
}
