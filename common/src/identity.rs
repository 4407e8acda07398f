//! Who speaks: principals in certificates, and the TLS settings built from PEM bytes.
//!
//! A certificate names exactly one principal as a DNS subject alternative name. A host may speak
//! only for itself: receivers compare the principal of the connection with the one in each frame.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::id::{CoordinatorId, HostId};

/// Application protocol of every connection; the number is the wire version.
/// 1: first version.
pub const ALPN: &[u8] = b"understudy/1";

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
#[serde(rename_all = "snake_case")]
pub enum Principal {
    Host(HostId),
    Coordinator(CoordinatorId),
    Operator,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(id) => id.fmt(f),
            Self::Coordinator(id) => id.fmt(f),
            Self::Operator => f.write_str("operator"),
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
        let cert = webpki::EndEntityCert::try_from(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let mut found = cert.valid_dns_names().filter_map(Self::from_dns_name);
        match (found.next(), found.next()) {
            (Some(principal), None) => Ok(principal),
            _ => Err(IdentityError::NoPrincipal),
        }
    }
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
    principal: Principal,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            ca: self.ca.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            principal: self.principal,
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
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(pem("the certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("the private key"))?;
        let leaf = chain.first().ok_or(IdentityError::Pem {
            what: "the certificate",
            why: "no certificate in it".to_owned(),
        })?;
        let principal = Principal::of_certificate(leaf)?;
        Ok(Self {
            ca,
            chain,
            key,
            principal,
        })
    }

    pub const fn principal(&self) -> Principal {
        self.principal
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(tls)?;
        Ok(Arc::new(roots))
    }

    /// TLS 1.3 settings of the accepting side; a client certificate of this CA is required.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when the key does not fit the certificate.
    pub fn server_config(&self) -> Result<ServerConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }

    /// TLS 1.3 settings of the dialling side.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when the key does not fit the certificate.
    pub fn client_config(&self) -> Result<ClientConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

fn tls(error: rustls::Error) -> IdentityError {
    IdentityError::Tls(error.to_string())
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
        ] {
            assert_eq!(Principal::from_dns_name(name), None, "{name}");
        }
    }
}
