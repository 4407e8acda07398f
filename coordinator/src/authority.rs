//! The cluster's certificate authority: makes the CA and one certificate for each principal.
//!
//! Invariants: a leaf names exactly one principal; the CA can sign leaves only, no further CAs.
//! Nothing here touches the disk.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use understudy_common::identity::Principal;

/// The CA outlives every leaf that it is asked for at the start, and at least this long.
pub const CA_DAYS_MIN: u32 = 3_650;
const CA_NAME: &str = "Understudy cluster CA";
/// Certificates begin this much earlier than asked, so that hosts whose wall clocks lag accept them.
const BACKDATE: Duration = Duration::hours(24);

#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate for {subject}")]
pub struct AuthorityError {
    subject: String,
    source: rcgen::Error,
}

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// From when to when certificates are valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Validity {
    pub fn days_from(now: OffsetDateTime, days: u32) -> Self {
        Self {
            not_before: now - BACKDATE,
            not_after: now + Duration::days(i64::from(days)),
        }
    }
}

#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA.
    ///
    /// # Errors
    /// [`AuthorityError`] when the system gives no randomness.
    pub fn new(validity: Validity) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError {
            subject: "the cluster CA".to_owned(),
            source,
        };
        let mut params = params(CA_NAME, validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pair = Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        Ok(Self {
            pair,
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA that was made before, from its certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError`] when the key cannot be read.
    pub fn from_pair(pair: Pair) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&pair.key).map_err(|source| AuthorityError {
            subject: "anybody: the key of the cluster CA cannot be read".to_owned(),
            source,
        })?;
        // Of the issuer a leaf holds the name and the key alone.
        let now = OffsetDateTime::UNIX_EPOCH;
        let params = params(
            CA_NAME,
            Validity {
                not_before: now,
                not_after: now,
            },
        );
        Ok(Self {
            pair,
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA's own certificate and key.
    pub const fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Makes a key and a certificate that names `principal`, for both ends of a connection.
    ///
    /// # Errors
    /// [`AuthorityError`] when the system gives no randomness.
    pub fn issue(&self, principal: Principal, validity: Validity) -> Result<Pair, AuthorityError> {
        let failed = |source| AuthorityError {
            subject: principal.to_string(),
            source,
        };
        let mut params = params(&principal.to_string(), validity);
        let name = principal.dns_name().try_into().map_err(failed)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_common::id::HostId;
    use understudy_common::identity::Credentials;

    #[test]
    fn a_leaf_names_its_principal_and_fits_its_key() {
        let validity = Validity::days_from(OffsetDateTime::now_utc(), 1);
        let authority = Authority::new(validity).unwrap();
        let principal = Principal::Host(HostId(7));
        let pair = authority.issue(principal, validity).unwrap();
        let credentials = Credentials::from_pem(
            authority.pair().certificate.as_bytes(),
            pair.certificate.as_bytes(),
            pair.key.as_bytes(),
        )
        .unwrap();
        assert_eq!(credentials.principal(), principal);
        credentials.server_config().unwrap();
        credentials.client_config().unwrap();
    }
}
