//! Real coordinators and real sockets: new hosts, tokens that do not count, and those who are shut out.

mod cluster;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use cluster::{Cluster, PATIENCE, text, wait};
use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{Hello, Inventory, Operate, Refusal, Request, Response};
use understudy_coordinator::config::ClusterConfig;
use understudy_transport::{Endpoint, Link, TransportError};

/// Asks until all coordinators have said that they know the command.
fn ask(cluster: &Cluster, args: &[&str]) -> Output {
    wait("the command to be known to all", || {
        let output = cluster.understudy(args);
        (!text(&output.stderr).contains("needs command version")).then_some(output)
    })
}

fn token(cluster: &Cluster, args: &[&str]) -> String {
    let output = ask(cluster, &[&["token"], args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// On a machine that has nothing but the token.
fn join(cluster: &Cluster, token: &str, dir: &str, name: &str) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["join", token, "--name", name, "--dir"])
        .arg(cluster.dir.path().join(dir))
        .output()
        .unwrap()
}

fn refused(output: &Output, code: i32, expected: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "{said}");
}

fn credentials(dir: &Path, name: &str) -> Credentials {
    let read = |file: String| std::fs::read(dir.join(file)).unwrap();
    Credentials::from_pem(
        &read("ca.pem".into()),
        &read(format!("{name}.pem")),
        &read(format!("{name}.key")),
    )
    .unwrap()
}

/// The reason that the other side gave, not the advice that goes with any.
fn says_revoked(error: &TransportError) -> bool {
    let TransportError::Tls(why) = error else {
        return false;
    };
    why.contains("certificate: Revoked")
}

fn runtime() -> tokio::runtime::Runtime {
    // Links stay alive while the test does something else.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A link to the coordinator, and whether a request on it is taken.
async fn greet(cluster: &Cluster, n: usize, who: &Credentials) -> Result<(Link, Response), TransportError> {
    let member = ClusterConfig::read(&cluster.path("cluster.toml"))
        .unwrap()
        .coordinators[n - 1];
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), who)?;
    let link = endpoint
        .dial(member.addr, Principal::Coordinator(member.id))
        .await?;
    let Principal::Host(host) = who.principal() else {
        let response = link.call(&Request::Operate(Operate::Status), PATIENCE).await?;
        return Ok((link, response));
    };
    let hello = Request::Hello(Hello {
        host,
        name: format!("h{}", host.0),
        boot: 1,
        addr: "127.0.0.1:1".parse().unwrap(),
        version: "test".to_owned(),
        inventory: Inventory::default(),
        domain: Domain::default(),
    });
    let response = link.call(&hello, PATIENCE).await?;
    Ok((link, response))
}

#[test]
fn a_host_joins_with_a_token_that_counts_once() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let good = token(&cluster, &[]);
    let joined = join(&cluster, &good, "new", "h3");
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    let dir = cluster.dir.path().join("new");
    let mode = std::fs::metadata(dir.join("host-3.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = std::fs::read_to_string(dir.join("host-3.toml")).unwrap();
    assert!(
        config.contains("name = \"h3\"") && config.contains("[[coordinators]]"),
        "{config}"
    );
    let who = credentials(&dir, "host-3");
    assert_eq!(who.principal(), Principal::Host(HostId(3)));
    let (_, response) = runtime().block_on(greet(&cluster, 1, &who)).unwrap();
    assert_eq!(response, Response::Done);

    refused(
        &join(&cluster, &good, "again", "h4"),
        1,
        "was used before, by host-3",
    );
    let listed = text(&cluster.understudy(&["token", "list"]).stdout);
    assert!(listed.contains("used") && listed.contains("host-3"), "{listed}");
    refused(&join(&cluster, &good, "new", "h4"), 64, "not empty");
}

#[test]
fn each_token_that_does_not_count_says_why() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let revoked = token(&cluster, &[]);
    assert!(cluster.understudy(&["token", "revoke", "1"]).status.success());
    refused(&join(&cluster, &revoked, "a", "h3"), 1, "token 1 was revoked");

    let short = token(&cluster, &["--ttl", "1s"]);
    wait("the token to expire", || {
        let listed = text(&cluster.understudy(&["token", "list", "--json"]).stdout);
        listed.contains("expired").then_some(())
    });
    refused(&join(&cluster, &short, "b", "h3"), 1, "token 2 has expired");

    let named = token(&cluster, &["--name", "db9"]);
    refused(&join(&cluster, &named, "c", "h3"), 1, "is for a host called db9");

    let mut mistyped = named.clone();
    let last = if mistyped.ends_with('a') { 'b' } else { 'a' };
    mistyped.pop();
    mistyped.push(last);
    refused(&join(&cluster, &mistyped, "d", "h3"), 64, "mistyped or cut off");
    refused(&join(&cluster, "hello", "e", "h3"), 64, "it does not begin with");

    // Its secret is unknown here, though all the rest of it is right.
    let mut unknown = understudy_coordinator::token::JoinToken::from_text(&named).unwrap();
    unknown.secret[0] ^= 1;
    refused(
        &join(&cluster, &unknown.to_text(), "f", "h3"),
        1,
        "does not know this token",
    );
    // Its cluster is another one.
    unknown.ca[0] ^= 1;
    refused(
        &join(&cluster, &unknown.to_text(), "g", "h3"),
        2,
        "TLS refused the connection",
    );
    for spoilt in ["0s", "8d", "1x"] {
        let output = cluster.understudy(&["token", "--ttl", spoilt]);
        assert!(matches!(output.status.code(), Some(1 | 64)), "{spoilt}");
    }
}

#[test]
fn a_token_outlives_the_leader_that_made_it() {
    let mut cluster = Cluster::new(3);
    for n in 1..=3 {
        cluster.start(n);
    }
    let first = cluster.leader(None);
    let token = wait("commands of this version to be known to all", || {
        let output = cluster.understudy(&["token"]);
        output
            .status
            .success()
            .then(|| text(&output.stdout).trim().to_owned())
    });
    cluster.kill(first);
    cluster.leader(Some(first));
    let joined = join(&cluster, &token, "new", "h3");
    assert!(joined.status.success(), "{}", text(&joined.stderr));
}

#[test]
fn who_is_revoked_or_removed_is_shut_out_also_after_a_restart() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let dir = cluster.path("");
    let (one, two) = (credentials(&dir, "host-1"), credentials(&dir, "host-2"));
    let runtime = runtime();
    let (link, response) = runtime.block_on(greet(&cluster, 1, &one)).unwrap();
    assert_eq!(response, Response::Done);
    runtime.block_on(greet(&cluster, 1, &two)).unwrap();

    let output = ask(&cluster, &["revoke", "h1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let why = runtime.block_on(async { tokio::time::timeout(PATIENCE, link.closed()).await.unwrap() });
    assert!(why.contains("revoked"), "{why}");
    let shut_out = |cluster: &Cluster, who: &Credentials| {
        let error = runtime.block_on(greet(cluster, 1, who)).map(|_| ()).unwrap_err();
        assert!(says_revoked(&error), "{error}");
    };
    shut_out(&cluster, &one);
    let output = cluster.understudy(&["hosts", "remove", "h2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    wait("the removed host to be shut out", || {
        runtime.block_on(greet(&cluster, 1, &two)).is_err().then_some(())
    });

    cluster.kill(1);
    cluster.start(1);
    cluster.leader(None);
    shut_out(&cluster, &one);
    shut_out(&cluster, &two);
    refused(
        &cluster.understudy(&["hosts", "remove", "h2"]),
        1,
        "there is no host h2",
    );
    refused(
        &cluster.understudy(&["revoke", "coordinator-1"]),
        1,
        "remove it first",
    );

    // A new enrolment of the same host is let in.
    let token = token(&cluster, &["--name", "h1"]);
    let joined = join(&cluster, &token, "new", "h1");
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    let anew = credentials(&cluster.dir.path().join("new"), "host-1");
    let (_, response) = runtime.block_on(greet(&cluster, 1, &anew)).unwrap();
    assert_eq!(response, Response::Done);
}

#[test]
fn an_operator_replaces_its_own_certificate() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let old = credentials(&cluster.path(""), "operator");
    let output = ask(&cluster, &["revoke", "operator"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(cluster.status().is_some());
    let error = runtime()
        .block_on(greet(&cluster, 1, &old))
        .map(|_| ())
        .unwrap_err();
    assert!(says_revoked(&error), "{error}");
}

#[test]
fn the_issuer_makes_no_operators_and_a_newcomer_may_only_ask_to_join() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.leader(None);
    let read = |name: &str| std::fs::read_to_string(cluster.path(name)).unwrap();
    let issuer = understudy_coordinator::authority::Authority::issuer_from_pair(
        understudy_coordinator::authority::Pair {
            certificate: read("issuer.pem"),
            key: read("issuer.key"),
        },
    )
    .unwrap();
    let validity = understudy_coordinator::authority::Validity::days_from(time::OffsetDateTime::now_utc(), 1);
    let pair = issuer.issue(Principal::Operator, validity).unwrap();
    let forged = Credentials::from_pem(
        read("ca.pem").as_bytes(),
        pair.certificate.as_bytes(),
        pair.key.as_bytes(),
    )
    .unwrap();
    let runtime = runtime();
    let error = runtime
        .block_on(greet(&cluster, 1, &forged))
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, TransportError::Tls(_)), "{error}");

    let pin = understudy_common::identity::fingerprint(forged.ca());
    let addr = ClusterConfig::read(&cluster.path("cluster.toml"))
        .unwrap()
        .coordinators[0]
        .addr;
    let responses = runtime.block_on(async {
        let newcomer = Endpoint::newcomer("127.0.0.1:0".parse().unwrap(), pin).unwrap();
        let link = newcomer.dial_any(addr).await.unwrap();
        assert_eq!(link.principal(), Principal::Coordinator(CoordinatorId(1)));
        let call = |request| {
            let link = link.clone();
            async move { link.call(&request, Duration::from_secs(30)).await.unwrap() }
        };
        [
            call(Request::Operate(Operate::Status)).await,
            call(Request::Revoked(
                understudy_common::revocation::Revocations::default(),
            ))
            .await,
        ]
    });
    for response in responses {
        assert!(
            matches!(
                response,
                Response::Refused(Refusal::NotYours { .. } | Refusal::Invalid(_))
            ),
            "{response:?}"
        );
    }
}
