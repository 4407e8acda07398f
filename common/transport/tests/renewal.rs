//! Certificates that are replaced while links are up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SerialNumber};
use time::OffsetDateTime;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal, serial_number};
use understudy_common::revocation::Revocations;
use understudy_common::wire::{self, Operate, Request, Response};
use understudy_transport::{Endpoint, Link, RenewalError, TransportError, keep_renewed};

const PATIENCE: Duration = Duration::from_secs(30);
const HOST: Principal = Principal::Host(HostId(1));
const COORDINATOR: Principal = Principal::Coordinator(CoordinatorId(1));

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
            key: KeyPair::generate().unwrap(),
        }
    }

    /// PEM. It began so many seconds ago and ends in so many.
    fn certify(&self, who: Principal, key: &KeyPair, enrolment: u32, began: i64, ends: i64) -> String {
        let mut params = CertificateParams::new(vec![who.dns_name()]).unwrap();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::seconds(began);
        params.not_after = now + time::Duration::seconds(ends);
        params.serial_number = Some(SerialNumber::from_slice(&serial_number(
            enrolment,
            &ends.to_le_bytes(),
        )));
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// All with the same key.
    fn credentials(&self, who: Principal, began: i64, ends: i64) -> Credentials {
        let chain = self.certify(who, &self.key, 1, began, ends);
        let key = self.key.serialize_pem();
        Credentials::from_pem(self.pem.as_bytes(), chain.as_bytes(), key.as_bytes()).unwrap()
    }

    fn endpoint(&self, who: Principal, began: i64, ends: i64) -> Endpoint {
        Endpoint::bind(any(), &self.credentials(who, began, ends)).unwrap()
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// The ends of a new link: the dialler's and the other one's.
async fn link(from: &Endpoint, to: &Endpoint, who: Principal) -> (Link, Link) {
    let addr = to.local_addr().unwrap();
    let accept = async { to.accept().await.unwrap().handshake().await.unwrap() };
    let (dialled, accepted) = tokio::join!(from.dial(addr, who), accept);
    (dialled.unwrap(), accepted)
}

async fn answers(from: &Link, to: &Link) {
    let request = Request::Operate(Operate::Status);
    let answer = async {
        let (_, mut sender, mut receiver) = to.accept_bi().await.unwrap().kind().await.unwrap();
        receiver.receive().await.unwrap().unwrap();
        sender.send(&wire::encode(&Response::Done)).await.unwrap();
        sender.finish();
    };
    let (response, ()) = tokio::join!(from.call(&request, PATIENCE), answer);
    assert_eq!(response.unwrap(), Response::Done);
}

fn ends(link: &Link) -> i64 {
    link.certificate().unwrap().lifetime.ends_s
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_then_on_and_links_stay() {
    let ca = Ca::new();
    let host = ca.endpoint(HOST, 60, 600);
    let coordinator = ca.endpoint(COORDINATOR, 60, 600);
    let (first, first_end) = link(&host, &coordinator, COORDINATOR).await;
    let before = ends(&first_end);
    let next = ca.credentials(HOST, 60, 900);
    host.renew(&next).unwrap();
    answers(&first, &first_end).await;
    assert_eq!(ends(&first_end), before, "a link keeps what it was made with");

    let (_second, second_end) = link(&host, &coordinator, COORDINATOR).await;
    assert_eq!(ends(&second_end), next.certificate().lifetime.ends_s);
    let (third, _third_end) = link(&coordinator, &host, HOST).await;
    assert_eq!(ends(&third), next.certificate().lifetime.ends_s);
    answers(&first, &first_end).await;
}

#[tokio::test]
async fn what_is_no_renewal_is_refused_and_nothing_changes() {
    let ca = Ca::new();
    let current = ca.credentials(HOST, 60, 600);
    let host = Endpoint::bind(any(), &current).unwrap();
    let pem = |ca: &Ca, chain: String, key: &KeyPair| {
        Credentials::from_pem(
            ca.pem.as_bytes(),
            chain.as_bytes(),
            key.serialize_pem().as_bytes(),
        )
        .unwrap()
    };
    let stranger = Ca::new();
    let other_key = KeyPair::generate().unwrap();
    let own =
        |who, enrolment, began, ends| pem(&ca, ca.certify(who, &ca.key, enrolment, began, ends), &ca.key);
    for (what, credentials, why) in [
        (
            "another principal",
            own(Principal::Host(HostId(2)), 1, 60, 900),
            "another principal or enrolment",
        ),
        (
            "another enrolment",
            own(HOST, 2, 60, 900),
            "another principal or enrolment",
        ),
        (
            "another key",
            pem(&ca, ca.certify(HOST, &other_key, 1, 60, 900), &other_key),
            "for another key",
        ),
        ("the same again", current.clone(), "the one before"),
        ("one that has ended", own(HOST, 1, 900, -300), "Expired"),
        ("one of the future", own(HOST, 1, -300, 900), "NotValidYet"),
        (
            "another CA's",
            pem(&ca, stranger.certify(HOST, &ca.key, 1, 60, 900), &ca.key),
            "invalid peer certificate",
        ),
    ] {
        let error = host.renew(&credentials).unwrap_err();
        assert!(matches!(error, TransportError::Renewal(_)), "{what}: {error}");
        let said = error.to_string().replace(' ', "").to_lowercase();
        assert!(
            said.contains(&why.replace(' ', "").to_lowercase()),
            "{what}: {error}"
        );
        assert_eq!(
            *host.credentials().unwrap().borrow().certificate(),
            *current.certificate(),
            "{what}"
        );
    }
    assert!(host.examine(&[]).is_err());
    let long = vec![current.chain()[0].clone(); 5];
    assert!(host.examine(&long).is_err());
}

#[tokio::test]
async fn a_revoked_certificate_is_not_taken_as_a_renewal() {
    let ca = Ca::new();
    let host = ca.endpoint(HOST, 60, 600);
    let mut list = Revocations::default();
    list.raise(HOST, 1);
    host.revoke(&list).unwrap();
    let error = host.renew(&ca.credentials(HOST, 60, 900)).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("revoked"), "{error}");
}

#[tokio::test]
async fn a_due_certificate_is_asked_for_until_it_comes_and_kept_before_it_is_shown() {
    let ca = Ca::new();
    let host = ca.endpoint(HOST, 3_000, 100);
    let mut shown = host.credentials().unwrap();
    shown.mark_unchanged();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host-1.pem");
    std::fs::write(&file, "the one before").unwrap();
    let next = ca.certify(HOST, &ca.key, 1, 60, 3_000);
    let (chain, asked) = (next.clone(), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&asked);
    let keeping = tokio::spawn(keep_renewed(host.clone(), file.clone(), move || {
        let (chain, n) = (chain.clone(), count.fetch_add(1, Ordering::Relaxed));
        async move {
            match n {
                0 => Err(RenewalError::Nobody),
                1 => Ok("no certificate".to_owned()),
                _ => Ok(chain),
            }
        }
    }));
    tokio::time::timeout(PATIENCE, shown.changed())
        .await
        .expect("it is renewed")
        .unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), next);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    keeping.abort();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_kept_is_shown_and_asked_for_again() {
    let ca = Ca::new();
    let host = ca.endpoint(HOST, 3_000, 100);
    let mut shown = host.credentials().unwrap();
    shown.mark_unchanged();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("absent").join("host-1.pem");
    let ends = AtomicU32::new(1_000);
    let keeping = tokio::spawn(keep_renewed(host.clone(), file.clone(), move || {
        let ends = i64::from(ends.fetch_add(1_000, Ordering::Relaxed));
        let chain = ca.certify(HOST, &ca.key, 1, 60, ends);
        async move { Ok(chain) }
    }));
    for _ in 0..2 {
        tokio::time::timeout(PATIENCE, shown.changed())
            .await
            .expect("it is shown")
            .unwrap();
        shown.mark_unchanged();
    }
    assert!(!file.exists());
    keeping.abort();
}
