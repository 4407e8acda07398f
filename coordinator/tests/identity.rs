//! Who may say what: wrong certificates, hosts that speak for others, streams and bytes that make no sense.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use understudy_common::beacon::{Beacon, BeaconEncoder};
use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{
    Hello, HostReport, Inventory, Operate, Refusal, Renew, Request, Response, StreamKind,
};
use understudy_coordinator::authority::{Authority, Validity};
use understudy_coordinator::config::{CoordinatorConfig, Member};
use understudy_coordinator::run;
use understudy_transport::{Endpoint, Link, TransportError};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
const ONE: CoordinatorId = CoordinatorId(1);

fn valid() -> Validity {
    Validity::days_from(OffsetDateTime::now_utc(), 1)
}

fn expired() -> Validity {
    let now = OffsetDateTime::now_utc();
    Validity {
        not_before: now - time::Duration::days(9),
        not_after: now - time::Duration::days(2),
    }
}

fn credentials(authority: &Authority, principal: Principal, validity: Validity) -> Credentials {
    let pair = authority.issue(principal, validity).unwrap();
    let ca = authority.pair().certificate.as_bytes();
    Credentials::from_pem(ca, pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap()
}

/// A coordinator of one in this process.
struct Coordinator {
    authority: Authority,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Coordinator {
    fn start(validity: Validity) -> Self {
        let authority = Authority::new(valid()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let credentials = credentials(&authority, Principal::Coordinator(ONE), validity);
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &credentials).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let config = CoordinatorConfig {
            id: ONE,
            data_dir: dir.path().to_owned(),
            listen: addr,
            credentials,
            certificate: dir.path().join("coordinator-1.pem"),
            members: vec![Member { id: ONE, addr }],
            joins: false,
            prediction: None,
            issuer: None,
        };
        tokio::spawn(run(config, endpoint, std::future::pending()));
        Self {
            authority,
            addr,
            _dir: dir,
        }
    }

    async fn dial_with(&self, credentials: &Credentials) -> Result<Link, TransportError> {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), credentials).unwrap();
        endpoint.dial(self.addr, Principal::Coordinator(ONE)).await
    }

    async fn dial(&self, principal: Principal) -> Link {
        self.dial_with(&credentials(&self.authority, principal, valid()))
            .await
            .unwrap()
    }
}

/// Asks until the coordinator leads.
async fn ask(link: &Link, request: Request) -> Response {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let response = link.call(&request, PATIENCE).await.unwrap();
        if !matches!(response, Response::NotLeader(_)) || Instant::now() > deadline {
            return response;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

fn renew(host: u32) -> Request {
    Request::Renew(Renew {
        host: HostId(host),
        sequence: 1,
        leases: Vec::new(),
    })
}

fn report(host: u32) -> Request {
    Request::Report(HostReport {
        host: HostId(host),
        boot: 1,
        ..HostReport::default()
    })
}

fn refused_as_not_its_own(response: &Response) -> bool {
    matches!(response, Response::Refused(Refusal::NotYours { .. }))
}

#[tokio::test]
async fn a_host_speaks_for_itself_and_for_no_other() {
    let coordinator = Coordinator::start(valid());
    let link = coordinator.dial(Principal::Host(HostId(1))).await;
    assert_eq!(ask(&link, hello(1)).await, Response::Done);
    assert!(matches!(ask(&link, renew(1)).await, Response::Renewed(_)));
    assert_eq!(ask(&link, report(1)).await, Response::Done);
    for request in [hello(2), renew(2), report(2), Request::Operate(Operate::Status)] {
        let response = ask(&link, request.clone()).await;
        assert!(refused_as_not_its_own(&response), "{request:?}: {response:?}");
    }
}

#[tokio::test]
async fn another_hosts_beacon_ends_the_stream_and_the_hosts_own_goes_on() {
    let coordinator = Coordinator::start(valid());
    let link = coordinator.dial(Principal::Host(HostId(1))).await;
    let mut own = link.open_uni(StreamKind::Beacon).await.unwrap();
    let mut other = link.open_uni(StreamKind::Beacon).await.unwrap();
    let (mut own_encoder, mut other_encoder) = (BeaconEncoder::default(), BeaconEncoder::default());
    let deadline = Instant::now() + PATIENCE;
    for tick in 1.. {
        own.send(&own_encoder.encode(&Beacon::new(HostId(1), tick, tick)))
            .await
            .unwrap();
        if other
            .send(&other_encoder.encode(&Beacon::new(HostId(2), tick, tick)))
            .await
            .is_err()
        {
            break;
        }
        assert!(Instant::now() < deadline, "another host's beacons are taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    own.send(&own_encoder.encode(&Beacon::new(HostId(1), u64::MAX, 9)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_with_a_clear_error() {
    let coordinator = Coordinator::start(valid());
    let stranger = Authority::new(valid()).unwrap();
    let credentials = credentials(&stranger, Principal::Host(HostId(1)), valid());
    let error = coordinator.dial_with(&credentials).await.unwrap_err();
    assert!(matches!(error, TransportError::Tls(_)), "{error}");
    assert!(error.to_string().contains("this cluster's CA"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_an_error_that_says_so() {
    let coordinator = Coordinator::start(valid());
    let credentials = credentials(&coordinator.authority, Principal::Host(HostId(1)), expired());
    // The dialler is done before the other side has looked at its certificate.
    let error = match coordinator.dial_with(&credentials).await {
        Ok(link) => link.call(&hello(1), PATIENCE).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, TransportError::Tls(_)), "{error}");
    assert!(error.to_string().contains("certificate expired"), "{error}");
}

#[tokio::test]
async fn a_coordinator_with_an_expired_certificate_is_not_believed() {
    let coordinator = Coordinator::start(expired());
    let credentials = credentials(&coordinator.authority, Principal::Host(HostId(1)), valid());
    let error = coordinator.dial_with(&credentials).await.unwrap_err();
    assert!(matches!(error, TransportError::Tls(_)), "{error}");
    assert!(error.to_string().contains("certificate expired"), "{error}");
}

#[tokio::test]
async fn bytes_that_make_no_sense_cost_their_stream_and_nothing_else() {
    let coordinator = Coordinator::start(valid());
    let link = coordinator.dial(Principal::Host(HostId(1))).await;
    assert_eq!(ask(&link, hello(1)).await, Response::Done);
    // A stream kind that is not for hosts, garbage instead of a request, and no request at all.
    for (kind, bytes) in [
        (StreamKind::Sync, &b"x"[..]),
        (StreamKind::Rpc, b"garbage"),
        (StreamKind::Rpc, b""),
    ] {
        let (mut sender, mut receiver) = link.open_bi(kind).await.unwrap();
        // May fail: the stream may be refused already.
        let _ = sender.send(bytes).await;
        sender.finish();
        let answer = tokio::time::timeout(PATIENCE, receiver.receive()).await.unwrap();
        assert!(!matches!(answer, Ok(Some(_))), "{kind:?}: {answer:?}");
    }
    for kind in [StreamKind::Raft, StreamKind::Beacon] {
        let mut sender = link.open_uni(kind).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while sender.send(b"garbage").await.is_ok() {
            assert!(Instant::now() < deadline, "{kind:?} garbage is taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(ask(&link, report(1)).await, Response::Done);
}
