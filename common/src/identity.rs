//! Who speaks: principals in certificates, and the TLS settings built from PEM bytes.
//!
//! A certificate names exactly one principal as a DNS subject alternative name. A host may speak
//! only for itself: receivers compare the principal of the connection with the one in each frame.
//! Its serial number says for which *enrolment* of the principal it was made: when a principal is
//! revoked, all certificates of its enrolments so far are, and only a later one is accepted.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;

use crate::id::{CoordinatorId, HostId};

/// Application protocol of every connection; the number is the wire version.
/// 1: first version.
pub const ALPN: &[u8] = b"understudy/1";
/// Application protocol of newcomers, who have no certificate yet.
/// 1: first version.
pub const ALPN_NEWCOMER: &[u8] = b"understudy-newcomer/1";
/// Bytes of a serial number that carries an enrolment: a marker, the enrolment, and what tells the
/// certificates of one enrolment apart.
const SERIAL_BYTES: usize = 16;
const SERIAL_MARKER: u8 = 1;

const DOMAIN: &str = "understudy.internal";

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord))]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    Host(HostId),
    Coordinator(CoordinatorId),
    Operator,
    /// Has no certificate yet and may only ask for one. No certificate names it.
    Newcomer,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(id) => id.fmt(f),
            Self::Coordinator(id) => id.fmt(f),
            Self::Operator => f.write_str("operator"),
            Self::Newcomer => f.write_str("newcomer"),
        }
    }
}

impl Principal {
    /// The DNS name that stands for this principal in its certificate.
    pub fn dns_name(self) -> String {
        format!("{self}.{DOMAIN}")
    }

    pub fn from_dns_name(name: &str) -> Option<Self> {
        let label = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        if label == "operator" {
            return Some(Self::Operator);
        }
        let (kind, number) = label.split_once('-')?;
        match kind {
            "host" => Some(Self::Host(HostId(number.parse().ok()?))),
            "coordinator" => Some(Self::Coordinator(CoordinatorId(number.parse().ok()?))),
            _ => None,
        }
    }

    /// The principal that a verified end-entity certificate names.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] when it cannot be read, [`IdentityError::NoPrincipal`] when
    /// it does not name exactly one principal.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        Ok(Identity::of_certificate(der)?.principal)
    }

    /// Reads `host-7`, `coordinator-2` and `operator`.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::from_dns_name(&format!("{label}.{DOMAIN}"))
    }
}

/// A principal as one of its certificates shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub principal: Principal,
    /// From 1; 0 when the certificate's serial number carries none.
    pub enrolment: u32,
}

impl Identity {
    /// What a verified end-entity certificate says.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] when it cannot be read, [`IdentityError::NoPrincipal`] when
    /// it does not name exactly one principal.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let cert = webpki::EndEntityCert::try_from(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let mut found = cert.valid_dns_names().filter_map(Principal::from_dns_name);
        match (found.next(), found.next()) {
            (Some(principal), None) => Ok(Self {
                principal,
                enrolment: enrolment_in(cert.serial()),
            }),
            _ => Err(IdentityError::NoPrincipal),
        }
    }
}

/// From when to when a certificate counts: seconds of wall clocks since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub begins_s: i64,
    pub ends_s: i64,
}

impl Lifetime {
    /// # Errors
    /// [`IdentityError::Certificate`] when it cannot be read.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        Ok(Self::of(&parse(der)?))
    }

    fn of(parsed: &X509Certificate<'_>) -> Self {
        let validity = parsed.validity();
        Self {
            begins_s: validity.not_before.timestamp(),
            ends_s: validity.not_after.timestamp(),
        }
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let parsed = x509_parser::parse_x509_certificate(der);
    let (_, parsed) = parsed.map_err(|error| IdentityError::Certificate(error.to_string()))?;
    Ok(parsed)
}

/// What an end-entity certificate says, whoever signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub identity: Identity,
    pub lifetime: Lifetime,
    /// DER of its `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// # Errors
    /// As [`Identity::of_certificate`].
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = parse(der)?;
        Ok(Self {
            identity: Identity::of_certificate(der)?,
            lifetime: Lifetime::of(&parsed),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }
}

/// The serial number of a certificate; `salt` tells those of one enrolment apart.
pub fn serial_number(enrolment: u32, salt: &[u8]) -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    serial[0] = SERIAL_MARKER;
    serial[1..5].copy_from_slice(&enrolment.to_be_bytes());
    serial[5..].copy_from_slice(&fingerprint(salt)[..SERIAL_BYTES - 5]);
    serial
}

fn enrolment_in(serial: &[u8]) -> u32 {
    match serial {
        [SERIAL_MARKER, a, b, c, d, rest @ ..] if rest.len() == SERIAL_BYTES - 5 => {
            u32::from_be_bytes([*a, *b, *c, *d])
        }
        _ => 0,
    }
}

/// The BLAKE3 hash by which a newcomer knows the cluster's CA certificate.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    *blake3::hash(der).as_bytes()
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error(
        "the certificate does not name exactly one host, coordinator or operator of an Understudy cluster"
    )]
    NoPrincipal,
    #[error("{what} is not valid PEM: {why}")]
    Pem { what: &'static str, why: String },
    #[error("the certificate and its key cannot be used for TLS: {0}")]
    Tls(String),
}

/// A cluster CA certificate with one principal's certificate chain and key.
#[derive(Debug)]
pub struct Credentials {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    certificate: Certificate,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            ca: self.ca.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            certificate: self.certificate.clone(),
        }
    }
}

impl Credentials {
    /// Reads PEM bytes of the CA certificate, the certificate chain and the private key.
    ///
    /// # Errors
    /// [`IdentityError`] when a part is not PEM or the certificate names no principal.
    pub fn from_pem(ca: &[u8], chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let pem = |what| {
            move |error: rustls::pki_types::pem::Error| IdentityError::Pem {
                what,
                why: error.to_string(),
            }
        };
        let ca = CertificateDer::from_pem_slice(ca).map_err(pem("the CA certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("the private key"))?;
        let (chain, certificate) = read_chain(chain)?;
        Ok(Self {
            ca,
            chain,
            key,
            certificate,
        })
    }

    /// The same CA and key with another certificate chain, PEM.
    ///
    /// # Errors
    /// [`IdentityError`] when it is not PEM or the certificate names no principal.
    pub fn with_chain(&self, chain: &[u8]) -> Result<Self, IdentityError> {
        let (chain, certificate) = read_chain(chain)?;
        Ok(Self {
            chain,
            certificate,
            ..self.clone()
        })
    }

    pub const fn principal(&self) -> Principal {
        self.certificate.identity.principal
    }

    pub const fn identity(&self) -> Identity {
        self.certificate.identity
    }

    /// What its certificate says.
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub const fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The principal's certificate, then those between it and the CA.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub const fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// Trusts the cluster's CA alone.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when the CA certificate cannot be used.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        roots(&self.ca)
    }
}

fn read_chain(pem: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Certificate), IdentityError> {
    let wrong = |why: String| IdentityError::Pem {
        what: "the certificate",
        why,
    };
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    let leaf = chain
        .first()
        .ok_or_else(|| wrong("no certificate in it".to_owned()))?;
    let certificate = Certificate::read(leaf)?;
    Ok((chain, certificate))
}

/// Trusts one CA alone.
///
/// # Errors
/// [`IdentityError::Tls`] when its certificate cannot be used.
pub fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca.clone())
        .map_err(|error| IdentityError::Tls(error.to_string()))?;
    Ok(Arc::new(roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_strangers_are_refused() {
        for principal in [
            Principal::Host(HostId(7)),
            Principal::Coordinator(CoordinatorId(3)),
            Principal::Operator,
        ] {
            assert_eq!(Principal::from_dns_name(&principal.dns_name()), Some(principal));
        }
        for name in [
            "host-1.example.org",
            "host-x.understudy.internal",
            "understudy.internal",
            "db-1.understudy.internal",
            "newcomer.understudy.internal",
        ] {
            assert_eq!(Principal::from_dns_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_serial_number_carries_its_enrolment_and_any_other_carries_none() {
        for enrolment in [1, 7, u32::MAX] {
            assert_eq!(enrolment_in(&serial_number(enrolment, b"key")), enrolment);
        }
        let serial = serial_number(7, b"key");
        for other in [&[][..], &serial[..15], &[2; SERIAL_BYTES], &[1; 20]] {
            assert_eq!(enrolment_in(other), 0, "{other:?}");
        }
    }
}
