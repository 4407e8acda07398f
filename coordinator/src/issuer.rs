//! Signs the certificates of those whom the replicated state admitted, and renews them.
//!
//! Invariants: the key is this coordinator's own file and goes nowhere else. Nothing is signed that
//! the state has not decided, and what a request says beside its key does not count. A renewal stays
//! in its enrolment: where the revocation is known it is refused like the certificate before, so that
//! a coordinator that has not heard of it yet does no harm by renewing.

use time::{Duration, OffsetDateTime};
use understudy_common::identity::{Certificate, Principal};
use understudy_common::wire::{Admitted, CSR_BYTES_MAX, Join, Refusal, Response};

use crate::authority::{Authority, Validity, key_from_der, requested_key};
use crate::state::State;

#[derive(Debug)]
pub struct Issuer {
    pub authority: Authority,
    /// PEM of the cluster's CA.
    pub ca: String,
    /// How long what it signs is valid, but no longer than its own certificate.
    pub valid: Duration,
    /// When its own certificate ends.
    pub ends: OffsetDateTime,
    /// The lowest number of a host that joins.
    pub first_host: u32,
}

impl Issuer {
    fn validity(&self) -> Validity {
        Validity::from(OffsetDateTime::now_utc(), self.valid).until(self.ends)
    }
}

/// The key that a newcomer asks a certificate for.
pub(crate) type RequestedKey = rcgen::PublicKey;

/// The key of the request, checked before the token is spent.
pub(crate) fn key_of(issuer: Option<&Issuer>, join: &Join) -> Result<RequestedKey, Refusal> {
    if issuer.is_none() {
        return Err(no_issuer());
    }
    if join.request.len() > CSR_BYTES_MAX {
        let rule = format!("a certificate request has at most {CSR_BYTES_MAX} bytes");
        return Err(Refusal::Invalid(rule));
    }
    requested_key(&join.request)
        .map_err(|error| Refusal::Invalid(format!("{error}: it is not a signed PKCS #10 request")))
}

pub(crate) fn sign(issuer: Option<&Issuer>, key: Option<&RequestedKey>, admitted: Admitted) -> Response {
    let (Some(issuer), Some(key)) = (issuer, key) else {
        return Response::Refused(no_issuer());
    };
    let validity = issuer.validity();
    let (host, enrolment) = (Principal::Host(admitted.host), admitted.enrolment);
    match issuer.authority.certify(host, enrolment, validity, key) {
        Ok(certificate) => Response::Admitted(Admitted {
            certificate,
            ca: issuer.ca.clone(),
            ..admitted
        }),
        Err(error) => {
            tracing::error!(%host, %error, "a certificate cannot be signed");
            Response::Refused(Refusal::Busy("certificates to sign".to_owned()))
        }
    }
}

/// A new certificate for the one that `asker` was made for.
pub(crate) fn renew(issuer: Option<&Issuer>, state: &State, asker: &Certificate) -> Response {
    match renewed(issuer, state, asker) {
        Ok(chain) => Response::Certificate(chain),
        Err(refusal) => Response::Refused(refusal),
    }
}

fn renewed(issuer: Option<&Issuer>, state: &State, asker: &Certificate) -> Result<String, Refusal> {
    let identity = asker.identity;
    let who = identity.principal;
    match who {
        Principal::Host(host) if state.hosts.contains_key(&host) => {}
        Principal::Coordinator(id) if state.coordinators.members.contains_key(&id) => {}
        Principal::Host(_) | Principal::Coordinator(_) => {
            return Err(Refusal::Unknown(format!("{who} in the cluster")));
        }
        Principal::Operator | Principal::Newcomer => {
            let why =
                "only hosts and coordinators renew: `understudy revoke operator` replaces the operator's";
            return Err(Refusal::Invalid(why.to_owned()));
        }
    }
    if state.admission.revocations.refuses(identity) {
        return Err(Refusal::Invalid(format!("the certificate of {who} is revoked")));
    }
    let issuer = issuer.ok_or_else(|| {
        Refusal::Invalid("this coordinator holds no issuing key: give it `[issuer]`".to_owned())
    })?;
    let validity = issuer.validity();
    // One that was made for longer than the issuer's are is followed by a shorter one all the same.
    if validity.not_after >= issuer.ends && issuer.ends.unix_timestamp() <= asker.lifetime.ends_s {
        let why = "a new certificate would end no later than this one, because the issuer's own ends";
        return Err(Refusal::Invalid(why.to_owned()));
    }
    key_from_der(&asker.public_key)
        .and_then(|key| issuer.authority.certify(who, identity.enrolment, validity, &key))
        .map_err(|error| {
            tracing::error!(%who, %error, "a certificate cannot be renewed");
            Refusal::Invalid(error.to_string())
        })
}

fn no_issuer() -> Refusal {
    let why = "this coordinator leads and holds no issuing key, so that it admits nobody: give it `[issuer]`, or transfer the leadership";
    Refusal::Invalid(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Change, Command};
    use understudy_common::domain::Domain;
    use understudy_common::id::{CoordinatorId, HostId};
    use understudy_common::identity::Credentials;
    use understudy_common::wire::Inventory;

    const HOST: Principal = Principal::Host(HostId(1));
    const ONE: CoordinatorId = CoordinatorId(1);

    struct Cluster {
        ca: Authority,
        issuer: Issuer,
        state: State,
        index: u64,
    }

    impl Cluster {
        /// Of one host and one coordinator; its issuer goes on for so long.
        fn new(issuer_s: i64) -> Self {
            let now = OffsetDateTime::now_utc();
            let ca = Authority::new(Validity::days_from(now, 1)).unwrap();
            let validity = Validity::from(now, Duration::seconds(issuer_s));
            let issuer = Issuer {
                authority: ca.delegate(validity).unwrap(),
                ca: ca.pair().certificate.clone(),
                valid: Duration::hours(1),
                ends: validity.not_after,
                first_host: 2,
            };
            let mut cluster = Self {
                ca,
                issuer,
                state: State::default(),
                index: 0,
            };
            cluster.state.coordinators = crate::state::Coordinators::first([(ONE, None)], 0);
            cluster.apply(Change::RegisterHost {
                host: HostId(1),
                name: "a".to_owned(),
                boot: 1,
                addr: ([127, 0, 0, 1], 1).into(),
                version: String::new(),
                inventory: Inventory::default(),
                domain: Domain::default(),
            });
            cluster
        }

        fn apply(&mut self, change: Change) {
            self.index += 1;
            self.state.apply(self.index, &Command::new(1, change).encode());
        }

        fn credentials(&self, who: Principal, valid_s: i64) -> Credentials {
            let validity = Validity::from(OffsetDateTime::now_utc(), Duration::seconds(valid_s));
            let pair = self.ca.issue(who, validity).unwrap();
            let ca = self.ca.pair().certificate.as_bytes();
            Credentials::from_pem(ca, pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap()
        }

        fn renew(&self, who: &Credentials) -> Result<Credentials, Refusal> {
            match renew(Some(&self.issuer), &self.state, who.certificate()) {
                Response::Certificate(chain) => Ok(who.with_chain(chain.as_bytes()).unwrap()),
                Response::Refused(refusal) => Err(refusal),
                other => panic!("{other:?}"),
            }
        }

        fn refusal(&self, who: Principal) -> String {
            self.renew(&self.credentials(who, 60)).unwrap_err().to_string()
        }
    }

    #[test]
    fn a_member_gets_a_certificate_of_its_own_name_enrolment_and_key() {
        let cluster = Cluster::new(86_400);
        for who in [HOST, Principal::Coordinator(ONE)] {
            let old = cluster.credentials(who, 60);
            let new = cluster.renew(&old).unwrap();
            assert_eq!(new.identity(), old.identity());
            assert_eq!(new.certificate().public_key, old.certificate().public_key);
            let gained = new.certificate().lifetime.ends_s - old.certificate().lifetime.ends_s;
            assert!((3_500..=3_600).contains(&gained), "{gained}");
        }
    }

    #[test]
    fn who_is_no_member_gets_none() {
        let cluster = Cluster::new(86_400);
        for (who, why) in [
            (Principal::Host(HostId(2)), "there is no host-2"),
            (
                Principal::Coordinator(CoordinatorId(2)),
                "there is no coordinator-2",
            ),
            (Principal::Operator, "only hosts and coordinators"),
        ] {
            let refusal = cluster.refusal(who);
            assert!(refusal.contains(why), "{refusal}");
        }
    }

    #[test]
    fn who_is_revoked_or_removed_gets_none() {
        let mut cluster = Cluster::new(86_400);
        cluster.apply(Change::Revoke { who: HOST });
        let refusal = cluster.refusal(HOST);
        assert!(refusal.contains("revoked"), "{refusal}");
        cluster.apply(Change::RemoveHost {
            host: HostId(1),
            force: false,
        });
        let refusal = cluster.refusal(HOST);
        assert!(refusal.contains("there is no host-1"), "{refusal}");
    }

    #[test]
    fn a_long_certificate_is_followed_by_one_of_the_usual_length() {
        let cluster = Cluster::new(86_400);
        let old = cluster.credentials(HOST, 40_000);
        let new = cluster.renew(&old).unwrap();
        let left = new.certificate().lifetime.ends_s - OffsetDateTime::now_utc().unix_timestamp();
        assert!((3_500..=3_600).contains(&left), "{left}");
    }

    #[test]
    fn nothing_outlives_the_issuers_own_certificate() {
        let cluster = Cluster::new(600);
        let old = cluster.credentials(HOST, 60);
        let new = cluster.renew(&old).unwrap();
        assert_eq!(
            new.certificate().lifetime.ends_s,
            cluster.issuer.ends.unix_timestamp()
        );
        let refusal = cluster.renew(&new).unwrap_err().to_string();
        assert!(refusal.contains("the issuer's own ends"), "{refusal}");
        let without = renew(None, &cluster.state, old.certificate());
        assert!(
            matches!(&without, Response::Refused(refusal) if refusal.to_string().contains("no issuing key")),
            "{without:?}"
        );
    }
}
