//! Signs the certificates of those whom the replicated state admitted.
//!
//! Invariants: the key is this coordinator's own file and goes nowhere else. Nothing is signed that
//! the state has not decided, and what a request says beside its key does not count.

use time::OffsetDateTime;
use understudy_common::identity::Principal;
use understudy_common::wire::{Admitted, CSR_BYTES_MAX, Join, Refusal, Response};

use crate::authority::{Authority, Validity, requested_key};

#[derive(Debug)]
pub struct Issuer {
    pub authority: Authority,
    /// PEM of the cluster's CA.
    pub ca: String,
    pub valid_days: u32,
    /// The lowest number of a host that joins.
    pub first_host: u32,
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
    let validity = Validity::days_from(OffsetDateTime::now_utc(), issuer.valid_days);
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

fn no_issuer() -> Refusal {
    let why = "this coordinator leads and holds no issuing key, so that it admits nobody: give it `[issuer]`, or transfer the leadership";
    Refusal::Invalid(why.to_owned())
}
