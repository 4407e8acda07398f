//! TLS 1.3 settings: who is asked for a certificate, and whose is refused.
//!
//! Invariants: a certificate counts only when it comes from the cluster's CA, is within its time and
//! is not revoked, on both sides of every link and at each handshake: no session is resumed. The one exception is a newcomer, who shows none and
//! is let in only where newcomers are admitted and only on their own application protocol.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use understudy_common::identity::{
    self, ALPN, ALPN_NEWCOMER, Credentials, Identity, IdentityError, Principal,
};
use understudy_common::revocation::Revocations;

/// What this program knows of revocations, for verifiers that outlive any one list.
pub(crate) type Revoked = Arc<RwLock<Revocations>>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// Believes who shows a certificate of the cluster.
pub(crate) fn client_verifier(
    credentials: &Credentials,
    revoked: Revoked,
    admits_newcomers: bool,
) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    let builder = WebPkiClientVerifier::builder_with_provider(credentials.roots()?, provider());
    let builder = if admits_newcomers {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    let inner = builder.build().map_err(unusable)?;
    Ok(Arc::new(ClientVerifier { inner, revoked }))
}

/// Settings of the accepting side.
pub(crate) fn server_config(
    own: Arc<Own>,
    verifier: Arc<dyn ClientCertVerifier>,
    admits_newcomers: bool,
) -> Result<ServerConfig, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    // A resumed session would pass by the verifier.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    if admits_newcomers {
        config.alpn_protocols.push(ALPN_NEWCOMER.to_vec());
    }
    Ok(config)
}

/// Settings of the dialling side.
pub(crate) fn client_config(
    credentials: &Credentials,
    own: Arc<Own>,
    revoked: Revoked,
) -> Result<ClientConfig, IdentityError> {
    let inner = WebPkiServerVerifier::builder_with_provider(credentials.roots()?, provider())
        .build()
        .map_err(unusable)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { inner, revoked }))
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Settings of a newcomer: it has no certificate, and knows of the CA only the fingerprint.
pub(crate) fn newcomer_config(ca: [u8; 32]) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier {
            ca,
            provider: provider(),
        }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN_NEWCOMER.to_vec()];
    Ok(config)
}

fn certified(
    credentials: &Credentials,
    chain: Vec<CertificateDer<'static>>,
) -> Result<Arc<CertifiedKey>, IdentityError> {
    CertifiedKey::from_der(chain, credentials.key().clone_key(), &provider())
        .map(Arc::new)
        .map_err(unusable)
}

/// What an endpoint shows in each handshake from now on.
#[derive(Debug)]
pub(crate) struct Own(RwLock<Chains>);

impl Own {
    pub(crate) fn new(credentials: &Credentials) -> Result<Self, IdentityError> {
        Ok(Self(RwLock::new(Chains::of(credentials)?)))
    }

    /// Nothing is replaced unless the certificate fits the key.
    pub(crate) fn replace(&self, credentials: &Credentials) -> Result<(), IdentityError> {
        let next = Chains::of(credentials)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn chains(&self) -> Chains {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Newcomers are sent the CA's certificate as well: they know only its fingerprint.
#[derive(Clone, Debug)]
struct Chains {
    own: Arc<CertifiedKey>,
    with_ca: Arc<CertifiedKey>,
}

impl Chains {
    fn of(credentials: &Credentials) -> Result<Self, IdentityError> {
        let with_ca = [credentials.chain(), &[credentials.ca().clone()]].concat();
        Ok(Self {
            own: certified(credentials, credentials.chain().to_vec())?,
            with_ca: certified(credentials, with_ca)?,
        })
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let newcomer = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|protocol| protocol == ALPN_NEWCOMER));
        let chains = self.chains();
        Some(if newcomer { chains.with_ca } else { chains.own })
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let own = self.chains().own;
        // Without a certificate the other side says why it ends the link.
        own.key.choose_scheme(schemes).is_some().then_some(own)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn refuse_revoked(revoked: &Revoked, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let identity = Identity::of_certificate(leaf).map_err(|_| CertificateError::BadEncoding)?;
    if revoked.read().is_ok_and(|revoked| !revoked.refuses(identity)) {
        return Ok(());
    }
    Err(CertificateError::Revoked.into())
}

#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    revoked: Revoked,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(leaf, intermediates, now)?;
        refuse_revoked(&self.revoked, leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    revoked: Revoked,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        refuse_revoked(&self.revoked, leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Believes a coordinator whose chain leads to the CA with the known fingerprint, and nobody else.
#[derive(Debug)]
struct PinnedVerifier {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|cert| identity::fingerprint(cert) == self.ca)
            .ok_or(CertificateError::UnknownIssuer)?;
        let principal = Principal::of_certificate(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if !matches!(principal, Principal::Coordinator(_)) {
            return Err(CertificateError::NotValidForName.into());
        }
        let roots = identity::roots(&ca.clone().into_owned()).map_err(|_| CertificateError::BadEncoding)?;
        let name = ServerName::try_from(principal.dns_name()).map_err(|_| CertificateError::BadEncoding)?;
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(leaf, intermediates, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
