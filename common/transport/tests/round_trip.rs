//! Links between two endpoints of this process: requests, streams, limits, and bytes that make no sense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{ALPN, Credentials, Principal, fingerprint, serial_number};
use understudy_common::revocation::Revocations;
use understudy_common::wire::{self, CONTROL_FRAME_MAX, Operate, Request, Response, StreamKind};
use understudy_transport::{Endpoint, Link, TransportError};

const PATIENCE: Duration = Duration::from_secs(30);
const HOST: Principal = Principal::Host(HostId(1));
const COORDINATOR: Principal = Principal::Coordinator(CoordinatorId(1));

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn credentials(&self, principal: Principal) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![principal.dns_name()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let key = key.serialize_pem();
        Credentials::from_pem(self.pem.as_bytes(), cert.pem().as_bytes(), key.as_bytes()).unwrap()
    }

    fn endpoint(&self, principal: Principal) -> Endpoint {
        Endpoint::bind(any(), &self.credentials(principal)).unwrap()
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// The host's end and the coordinator's end of one link.
async fn pair() -> (Link, Link) {
    let ca = Ca::new();
    let (host, coordinator) = (ca.endpoint(HOST), ca.endpoint(COORDINATOR));
    let addr = coordinator.local_addr().unwrap();
    let accept = async { coordinator.accept().await.unwrap().handshake().await.unwrap() };
    let (dialled, accepted) = tokio::join!(host.dial(addr, COORDINATOR), accept);
    (dialled.unwrap(), accepted)
}

#[tokio::test]
async fn both_ends_know_each_other_and_requests_are_answered() {
    let (host, coordinator) = pair().await;
    assert_eq!((host.principal(), coordinator.principal()), (COORDINATOR, HOST));
    let request = Request::Operate(Operate::Status);
    let answer = async {
        let (kind, mut sender, mut receiver) = coordinator.accept_bi().await.unwrap().kind().await.unwrap();
        assert_eq!(kind, StreamKind::Rpc);
        let frame = receiver.receive().await.unwrap().unwrap();
        assert_eq!(
            wire::decode::<Request>(&frame).unwrap(),
            Request::Operate(Operate::Status)
        );
        sender.send(&wire::encode(&Response::Done)).await.unwrap();
        sender.finish();
    };
    let (response, ()) = tokio::join!(host.call(&request, PATIENCE), answer);
    assert_eq!(response.unwrap(), Response::Done);
}

#[tokio::test]
async fn frames_arrive_in_order_and_the_end_is_seen() {
    let (host, coordinator) = pair().await;
    let mut sender = host.open_uni(StreamKind::Beacon).await.unwrap();
    for n in 0..100_u8 {
        sender.send(&vec![n; usize::from(n)]).await.unwrap();
    }
    sender.finish();
    let (kind, mut receiver) = coordinator.accept_uni().await.unwrap().kind().await.unwrap();
    assert_eq!(kind, StreamKind::Beacon);
    for n in 0..100_u8 {
        assert_eq!(
            receiver.receive().await.unwrap().unwrap(),
            vec![n; usize::from(n)]
        );
    }
    assert!(receiver.receive().await.unwrap().is_none());
}

#[tokio::test]
async fn nobody_poses_as_another_coordinator() {
    let ca = Ca::new();
    let (host, second) = (
        ca.endpoint(HOST),
        ca.endpoint(Principal::Coordinator(CoordinatorId(2))),
    );
    let addr = second.local_addr().unwrap();
    let accept = async { second.accept().await.unwrap().handshake().await };
    let (dialled, _) = tokio::join!(host.dial(addr, COORDINATOR), accept);
    assert!(matches!(dialled, Err(TransportError::Tls(_))), "{dialled:?}");
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let (host, _coordinator) = pair().await;
    let mut sender = host.open_uni(StreamKind::Raft).await.unwrap();
    let error = sender.send(&vec![0; CONTROL_FRAME_MAX + 1]).await.unwrap_err();
    assert!(matches!(error, TransportError::FrameTooLong { .. }), "{error}");
    sender.send(&vec![0; CONTROL_FRAME_MAX]).await.unwrap();
}

#[tokio::test]
async fn a_silent_peer_is_a_timeout_and_a_closed_link_says_why() {
    let (host, coordinator) = pair().await;
    let request = Request::Operate(Operate::Status);
    let error = host.call(&request, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout(_)), "{error}");
    coordinator.close("maintenance");
    let error = host.call(&request, PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("maintenance"), "{error}");
}

/// A peer with a valid certificate that does not keep to the protocol.
async fn raw_peer() -> (quinn::Connection, Link) {
    let ca = Ca::new();
    let coordinator = ca.endpoint(COORDINATOR);
    let addr = coordinator.local_addr().unwrap();
    let credentials = ca.credentials(HOST);
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(credentials.roots().unwrap())
            .with_client_auth_cert(credentials.chain().to_vec(), credentials.key().clone_key())
            .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut raw = quinn::Endpoint::client(any()).unwrap();
    raw.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    let dial = async { raw.connect(addr, &COORDINATOR.dns_name()).unwrap().await.unwrap() };
    let accept = async { coordinator.accept().await.unwrap().handshake().await.unwrap() };
    tokio::join!(dial, accept)
}

#[tokio::test]
async fn an_unknown_stream_kind_is_named() {
    let (raw, link) = raw_peer().await;
    let mut stream = raw.open_uni().await.unwrap();
    stream.write_all(&[9]).await.unwrap();
    let error = link.accept_uni().await.unwrap().kind().await.unwrap_err();
    assert!(matches!(error, TransportError::UnknownStream(9)), "{error}");
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_memory_is_taken() {
    let (raw, link) = raw_peer().await;
    let mut stream = raw.open_uni().await.unwrap();
    stream.write_all(&[StreamKind::Raft as u8]).await.unwrap();
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let (_, mut receiver) = link.accept_uni().await.unwrap().kind().await.unwrap();
    let error = receiver.receive().await.unwrap_err();
    assert!(
        matches!(error, TransportError::FrameTooLong { len, .. } if len == u32::MAX as usize),
        "{error}"
    );
}

#[tokio::test]
async fn a_stream_that_ends_in_mid_frame_is_an_error() {
    let (raw, link) = raw_peer().await;
    let mut stream = raw.open_uni().await.unwrap();
    stream
        .write_all(&[StreamKind::Beacon as u8, 10, 0, 0, 0, 1, 2])
        .await
        .unwrap();
    stream.finish().unwrap();
    let (_, mut receiver) = link.accept_uni().await.unwrap().kind().await.unwrap();
    let error = receiver.receive().await.unwrap_err();
    assert!(matches!(error, TransportError::Closed(_)), "{error}");
}

/// Credentials of the host in its first enrolment.
fn enrolled(ca: &Ca, principal: Principal) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![principal.dns_name()]).unwrap();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial_number(1, b"salt")));
    let cert = params.signed_by(&key, &ca.issuer).unwrap();
    let key = key.serialize_pem();
    Credentials::from_pem(ca.pem.as_bytes(), cert.pem().as_bytes(), key.as_bytes()).unwrap()
}

fn revoked(principal: Principal) -> Revocations {
    let mut list = Revocations::default();
    list.raise(principal, 1);
    list
}

#[tokio::test]
async fn a_revoked_peers_links_are_closed_and_it_is_refused_from_then_on() {
    let ca = Ca::new();
    let other = Principal::Host(HostId(2));
    let (one, two) = (
        Endpoint::bind(any(), &enrolled(&ca, HOST)).unwrap(),
        Endpoint::bind(any(), &enrolled(&ca, other)).unwrap(),
    );
    let file = std::env::temp_dir().join(format!("understudy-revoked-{}", std::process::id()));
    one.keep_revocations(file.clone()).unwrap();
    let (addr_one, addr_two) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let accept = async { two.accept().await.unwrap().handshake().await.unwrap() };
    let (link, theirs) = tokio::join!(one.dial(addr_two, other), accept);
    let link = link.unwrap();

    one.revoke(&revoked(other)).unwrap();
    assert!(theirs.closed().await.contains("revoked"));
    assert!(link.open_bi(StreamKind::Rpc).await.is_err());
    // As the dialler, and as the one who is dialled.
    let dialled = async {
        let incoming = two.accept().await.unwrap();
        let _ = incoming.handshake().await;
    };
    let (refused, ()) = tokio::join!(one.dial(addr_two, other), dialled);
    assert!(matches!(refused, Err(TransportError::Tls(_))), "{refused:?}");
    let dial = async {
        let link = two.dial(addr_one, HOST).await;
        match link {
            Ok(link) => link
                .call(&Request::Operate(Operate::Status), PATIENCE)
                .await
                .unwrap_err(),
            Err(error) => error,
        }
    };
    let accept = async { one.accept().await.unwrap().handshake().await };
    let (error, accepted) = tokio::join!(dial, accept);
    assert!(accepted.is_err());
    let TransportError::Tls(why) = &error else {
        panic!("{error}")
    };
    assert!(why.contains("certificate: Revoked"), "{why}");

    // Another program on the same file refuses it, too.
    let again = Endpoint::bind(any(), &enrolled(&ca, HOST)).unwrap();
    again.keep_revocations(file.clone()).unwrap();
    let dialled = async {
        let incoming = two.accept().await.unwrap();
        let _ = incoming.handshake().await;
    };
    let (refused, ()) = tokio::join!(again.dial(addr_two, other), dialled);
    assert!(matches!(refused, Err(TransportError::Tls(_))), "{refused:?}");
    std::fs::write(&file, b"damaged").unwrap();
    let error = again.keep_revocations(file.clone()).unwrap_err();
    assert!(error.to_string().contains("cannot be used"), "{error}");
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_newcomer_is_let_in_only_where_it_may_and_believes_only_the_ca_that_it_knows() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let open = Endpoint::bind_for_newcomers(any(), &ca.credentials(COORDINATOR)).unwrap();
    let addr = open.local_addr().unwrap();
    let pin = |ca: &Ca| fingerprint(ca.credentials(HOST).ca());
    let newcomer = Endpoint::newcomer(any(), pin(&ca)).unwrap();
    let accept = async { open.accept().await.unwrap().handshake().await };
    let (link, seen) = tokio::join!(newcomer.dial_any(addr), accept);
    assert_eq!(link.unwrap().principal(), COORDINATOR);
    assert_eq!(seen.unwrap().principal(), Principal::Newcomer);

    let misled = Endpoint::newcomer(any(), pin(&stranger)).unwrap();
    let accept = async { open.accept().await.unwrap().handshake().await };
    let (link, _) = tokio::join!(misled.dial_any(addr), accept);
    assert!(matches!(link, Err(TransportError::Tls(_))), "{link:?}");

    // A host is no coordinator, and a closed door stays closed.
    let host = Endpoint::bind_for_newcomers(any(), &ca.credentials(HOST)).unwrap();
    let closed = ca.endpoint(COORDINATOR);
    for endpoint in [host, closed] {
        let addr = endpoint.local_addr().unwrap();
        let accept = async { endpoint.accept().await.unwrap().handshake().await };
        let (link, _) = tokio::join!(newcomer.dial_any(addr), accept);
        assert!(link.is_err(), "{link:?}");
    }
}
