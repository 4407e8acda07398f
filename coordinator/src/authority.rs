//! The cluster's certificate authority: makes the CA and one certificate for each principal.
//!
//! The CA's key stays with the operators. It signs one *issuer*, whose key the coordinators hold as
//! a file, so that whichever of them leads can admit a host. Who gets hold of the issuer's key can
//! pose as any host or coordinator, which is what a coordinator can do to the cluster anyway; it
//! cannot make an operator's certificate, since the issuer's own certificate forbids that name, nor
//! a further issuer. No private key is ever in the replicated log.
//!
//! Invariants: a leaf names exactly one principal; an issuer can sign leaves only, no further CAs.
//! Nothing here touches the disk.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKey, PublicKeyData,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use understudy_common::identity::{Lifetime, Principal, serial_number};

/// The CA outlives every leaf that it is asked for at the start, and at least this long.
pub const CA_DAYS_MIN: u32 = 3_650;
const CA_NAME: &str = "Understudy cluster CA";
const ISSUER_NAME: &str = "Understudy cluster issuer";
/// The enrolment of certificates that are made without asking the cluster.
const FIRST_ENROLMENT: u32 = 1;
/// Certificates begin this much earlier than asked, so that hosts whose wall clocks lag accept them; those
/// that are valid for less than twice as long, by half of that.
const BACKDATE_MAX: Duration = Duration::hours(24);

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
        Self::from(now, Duration::days(i64::from(days)))
    }

    pub fn from(now: OffsetDateTime, valid: Duration) -> Self {
        let half: Duration = valid / 2;
        Self {
            not_before: now - half.min(BACKDATE_MAX),
            not_after: now + valid,
        }
    }

    /// No longer than until `end`: a certificate is worth nothing after the one that vouches for it.
    #[must_use]
    pub fn until(self, end: OffsetDateTime) -> Self {
        Self {
            not_after: self.not_after.min(end),
            ..self
        }
    }
}

#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    /// PEM of what stands between a leaf and the CA.
    chain: String,
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
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pair = Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        Ok(Self {
            pair,
            chain: String::new(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Makes an issuer, which signs on behalf of this CA, but not for operators.
    ///
    /// # Errors
    /// [`AuthorityError`] when the system gives no randomness.
    pub fn delegate(&self, validity: Validity) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError {
            subject: "the issuer".to_owned(),
            source,
        };
        let mut params = params(ISSUER_NAME, validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: Vec::new(),
            excluded_subtrees: vec![GeneralSubtree::DnsName(Principal::Operator.dns_name())],
        });
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let pair = Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        Ok(Self {
            chain: pair.certificate.clone(),
            pair,
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA that was made before, from its certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError`] when they cannot be read.
    pub fn from_pair(pair: Pair) -> Result<Self, AuthorityError> {
        let issuer = read_issuer(&pair, "the cluster CA")?;
        Ok(Self {
            pair,
            chain: String::new(),
            issuer,
        })
    }

    /// The issuer that was made before, from its certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError`] when they cannot be read.
    pub fn issuer_from_pair(pair: Pair) -> Result<Self, AuthorityError> {
        let issuer = read_issuer(&pair, "the issuer")?;
        Ok(Self {
            chain: pair.certificate.clone(),
            pair,
            issuer,
        })
    }

    /// The CA's own certificate and key.
    pub const fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Makes a key and a certificate that names `principal`, for both ends of a connection, in the
    /// first enrolment.
    ///
    /// # Errors
    /// [`AuthorityError`] when the system gives no randomness.
    pub fn issue(&self, principal: Principal, validity: Validity) -> Result<Pair, AuthorityError> {
        self.enrol(principal, FIRST_ENROLMENT, validity)
    }

    /// The same in a given enrolment.
    ///
    /// # Errors
    /// [`AuthorityError`] when the system gives no randomness.
    pub fn enrol(
        &self,
        principal: Principal,
        enrolment: u32,
        validity: Validity,
    ) -> Result<Pair, AuthorityError> {
        let key = KeyPair::generate().map_err(|source| AuthorityError {
            subject: principal.to_string(),
            source,
        })?;
        Ok(Pair {
            certificate: self.certify(principal, enrolment, validity, &key)?,
            key: key.serialize_pem(),
        })
    }

    /// Makes a certificate for a key that is somebody else's: PEM, with all up to the CA.
    ///
    /// # Errors
    /// [`AuthorityError`] when the certificate cannot be made.
    pub fn certify(
        &self,
        principal: Principal,
        enrolment: u32,
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<String, AuthorityError> {
        let failed = |source| AuthorityError {
            subject: principal.to_string(),
            source,
        };
        let mut params = params(&principal.to_string(), validity);
        let name = principal.dns_name().try_into().map_err(failed)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        let salt = [
            key.der_bytes(),
            &validity.not_after.unix_timestamp().to_le_bytes(),
        ]
        .concat();
        params.serial_number = Some(SerialNumber::from_slice(&serial_number(enrolment, &salt)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok(certificate.pem() + self.chain.as_str())
    }
}

/// The key of somebody who has a certificate, from its DER.
///
/// # Errors
/// [`AuthorityError`] when it is none that certificates are made for.
pub fn key_from_der(public_key: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    SubjectPublicKeyInfo::from_der(public_key).map_err(|source| AuthorityError {
        subject: "this key".to_owned(),
        source,
    })
}

/// When a certificate ends, from its PEM.
///
/// # Errors
/// Why it cannot be read, in plain words.
pub fn end_of(certificate: &str) -> Result<OffsetDateTime, String> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| error.to_string())?;
    let lifetime = Lifetime::of_certificate(&der).map_err(|error| error.to_string())?;
    OffsetDateTime::from_unix_timestamp(lifetime.ends_s).map_err(|error| error.to_string())
}

/// The key in a certificate request. What else the request says does not count: the cluster decides
/// who its holder is.
///
/// # Errors
/// [`AuthorityError`] when it is no request, or not signed with its key.
pub fn requested_key(request: &[u8]) -> Result<PublicKey, AuthorityError> {
    CertificateSigningRequestParams::from_der(&request.into())
        .map(|request| request.public_key)
        .map_err(|source| AuthorityError {
            subject: "this request".to_owned(),
            source,
        })
}

/// A request for a certificate, DER, and the key that it is for, PEM.
///
/// # Errors
/// [`AuthorityError`] when the system gives no randomness.
pub fn request() -> Result<(Vec<u8>, String), AuthorityError> {
    let failed = |source| AuthorityError {
        subject: "this host".to_owned(),
        source,
    };
    let key = KeyPair::generate().map_err(failed)?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .map_err(failed)?;
    Ok((request.der().to_vec(), key.serialize_pem()))
}

fn read_issuer(pair: &Pair, subject: &str) -> Result<Issuer<'static, KeyPair>, AuthorityError> {
    KeyPair::from_pem(&pair.key)
        .and_then(|key| Issuer::from_ca_cert_pem(&pair.certificate, key))
        .map_err(|source| AuthorityError {
            subject: format!("anybody: the certificate or key of {subject} cannot be read"),
            source,
        })
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
        assert_eq!(credentials.identity().enrolment, 1);
    }

    #[test]
    fn an_issuer_signs_for_a_key_that_it_never_sees() {
        let validity = Validity::days_from(OffsetDateTime::now_utc(), 1);
        let ca = Authority::new(validity).unwrap();
        let made = ca.delegate(validity).unwrap();
        let issuer = Authority::issuer_from_pair(made.pair().clone()).unwrap();
        let (request, key) = request().unwrap();
        let principal = Principal::Host(HostId(7));
        let requested = requested_key(&request).unwrap();
        let chain = issuer.certify(principal, 3, validity, &requested).unwrap();
        let ca = ca.pair().certificate.as_bytes();
        let credentials = Credentials::from_pem(ca, chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(credentials.principal(), principal);
        assert_eq!(credentials.identity().enrolment, 3);
        assert_eq!(credentials.chain().len(), 2);
    }

    #[test]
    fn a_renewed_certificate_has_the_key_of_the_one_before() {
        let now = OffsetDateTime::now_utc();
        let validity = Validity::from(now, Duration::seconds(20));
        let ca = Authority::new(Validity::days_from(now, 1)).unwrap();
        let pem = ca.pair().certificate.as_bytes();
        let principal = Principal::Host(HostId(7));
        let pair = ca.issue(principal, validity).unwrap();
        let old = Credentials::from_pem(pem, pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
        let key = key_from_der(&old.certificate().public_key).unwrap();
        let later = Validity::from(now, Duration::seconds(90));
        let chain = ca.certify(principal, 1, later, &key).unwrap();
        let new = old.with_chain(chain.as_bytes()).unwrap();
        assert_eq!(new.certificate().public_key, old.certificate().public_key);
        assert_eq!(new.identity(), old.identity());
        let (old, new) = (old.certificate().lifetime, new.certificate().lifetime);
        assert_eq!(new.ends_s - old.ends_s, 70);
        assert_eq!(old.ends_s - old.begins_s, 30);
        assert!(key_from_der(b"no key").is_err());
    }

    #[test]
    fn a_request_with_a_broken_signature_is_refused() {
        let (mut request, _) = request().unwrap();
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(requested_key(&request).is_err());
        assert!(requested_key(b"no request").is_err());
    }
}
