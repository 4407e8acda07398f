//! Endpoints and links.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use understudy_common::identity::{ALPN_NEWCOMER, Certificate, Credentials, Identity, Principal};
use understudy_common::revocation::Revocations;
use understudy_common::wire::{self, CHAIN_MAX, Request, Response, StreamKind};

use crate::frame::{closed, prefix};
use crate::renewal::{RenewalError, chain_in};
use crate::revoked::Watch;
use crate::{FrameReceiver, FrameSender, STREAMS_MAX, TransportError, socket, tls};

/// A peer that is silent for this long is gone. The dialling side keeps the link alive three times as often, and the
/// answers to that do so for the other side: a coordinator need not wake up for each of its hosts.
const IDLE_TIMEOUT: Duration = Duration::from_millis(3_000);
const KEEP_ALIVE: Duration = Duration::from_millis(1_000);
/// How long a coordinator may take to sign a certificate, or to take one in.
const RENEW_MAX: Duration = Duration::from_secs(5);

/// A bound UDP socket that accepts and dials links.
#[derive(Clone, Debug)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    watch: Arc<Watch>,
    /// None: a newcomer's.
    own: Option<Arc<OwnCertificate>>,
}

/// What all clones of one endpoint show and believe.
#[derive(Debug)]
struct OwnCertificate {
    shown: Arc<tls::Own>,
    verifier: Arc<dyn ClientCertVerifier>,
    credentials: watch::Sender<Credentials>,
}

impl Endpoint {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError::Bind`] or [`TransportError::Identity`].
    pub fn bind(addr: SocketAddr, credentials: &Credentials) -> Result<Self, TransportError> {
        Self::open(addr, credentials, false)
    }

    /// Also takes in newcomers, who have no certificate yet: their links are those of
    /// [`Principal::Newcomer`].
    ///
    /// # Errors
    /// [`TransportError::Bind`] or [`TransportError::Identity`].
    pub fn bind_for_newcomers(addr: SocketAddr, credentials: &Credentials) -> Result<Self, TransportError> {
        Self::open(addr, credentials, true)
    }

    fn open(addr: SocketAddr, credentials: &Credentials, newcomers: bool) -> Result<Self, TransportError> {
        let watch = Arc::<Watch>::default();
        let shown = Arc::new(tls::Own::new(credentials)?);
        let verifier = tls::client_verifier(credentials, watch.revoked(), newcomers)?;
        let server = tls::server_config(Arc::clone(&shown), Arc::clone(&verifier), newcomers)?;
        let server =
            QuicServerConfig::try_from(server).map_err(|error| TransportError::Tls(error.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::new(transport_config(None)));
        let client = tls::client_config(credentials, Arc::clone(&shown), watch.revoked())?;
        let client = dialling(client)?;
        let mut endpoint = quic(addr, Some(server))?;
        endpoint.set_default_client_config(client);
        let own = OwnCertificate {
            shown,
            verifier,
            credentials: watch::Sender::new(credentials.clone()),
        };
        Ok(Self {
            endpoint,
            watch,
            own: Some(Arc::new(own)),
        })
    }

    /// For one who has no certificate yet and knows only the fingerprint of the cluster's CA: it can
    /// dial coordinators with [`dial_any`](Self::dial_any), and accepts nobody.
    ///
    /// # Errors
    /// [`TransportError::Bind`] or [`TransportError::Identity`].
    pub fn newcomer(addr: SocketAddr, ca: [u8; 32]) -> Result<Self, TransportError> {
        let mut endpoint = quic(addr, None)?;
        endpoint.set_default_client_config(dialling(tls::newcomer_config(ca)?)?);
        Ok(Self {
            endpoint,
            watch: Arc::default(),
            own: None,
        })
    }

    /// What it shows, now and whenever that is renewed; none for a newcomer.
    pub fn credentials(&self) -> Option<watch::Receiver<Credentials>> {
        self.own.as_ref().map(|own| own.credentials.subscribe())
    }

    /// Shows this certificate in each handshake from now on. Links that are up stay so.
    ///
    /// # Errors
    /// [`TransportError::Renewal`] when it is not another one of this principal, enrolment and key that
    /// counts now; nothing changes then.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), TransportError> {
        let refuse = |why: &str| Err(TransportError::Renewal(why.to_owned()));
        let Some(own) = &self.own else {
            return refuse("a newcomer has no certificate");
        };
        self.check_renewal(credentials)?;
        own.shown.replace(credentials)?;
        own.credentials.send_replace(credentials.clone());
        Ok(())
    }

    /// Whether [`renew`](Self::renew) would take it.
    pub(crate) fn check_renewal(&self, credentials: &Credentials) -> Result<(), TransportError> {
        let refuse = |why: &str| Err(TransportError::Renewal(why.to_owned()));
        let examined = self.examine(credentials.chain())?;
        let Some(known) = self.credentials() else {
            return refuse("a newcomer has no certificate");
        };
        let known = known.borrow();
        if examined.identity != known.identity() {
            return refuse("it is of another principal or enrolment");
        }
        if examined.public_key != known.certificate().public_key {
            return refuse("it is for another key");
        }
        if credentials.chain().first() == known.chain().first() {
            return refuse("it is the one before");
        }
        Ok(())
    }

    /// What a chain of certificates says, if it counts now: it leads to the cluster's CA, is within its
    /// time and not revoked.
    ///
    /// # Errors
    /// [`TransportError::Renewal`] or [`TransportError::Identity`].
    pub fn examine(&self, chain: &[CertificateDer<'static>]) -> Result<Certificate, TransportError> {
        let refuse = |why: String| TransportError::Renewal(why);
        let own = self
            .own
            .as_ref()
            .ok_or_else(|| refuse("a newcomer knows no certificates".to_owned()))?;
        let Some((leaf, rest)) = chain.split_first().filter(|_| chain.len() <= CHAIN_MAX) else {
            return Err(refuse(format!("a chain has 1 to {CHAIN_MAX} certificates")));
        };
        own.verifier
            .verify_client_cert(leaf, rest, UnixTime::now())
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Certificate::read(leaf)?)
    }

    /// Refuses what an earlier program was told to refuse, and keeps what this one is told, in `file`.
    ///
    /// # Errors
    /// [`TransportError::Revocations`] when the file cannot be read.
    pub fn keep_revocations(&self, file: std::path::PathBuf) -> Result<(), TransportError> {
        self.watch.keep_in(file)
    }

    /// Refuses these from now on, and closes the links with them. Waits for the disk.
    ///
    /// # Errors
    /// [`TransportError::Revocations`] when they cannot be kept; they are refused all the same.
    pub fn revoke(&self, list: &Revocations) -> Result<(), TransportError> {
        self.watch.revoke(list)
    }

    /// # Errors
    /// [`TransportError::Bind`] when the socket is gone.
    pub fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        let addr = SocketAddr::from(([0, 0, 0, 0], 0));
        self.endpoint
            .local_addr()
            .map_err(|source| TransportError::Bind { addr, source })
    }

    /// Dials `addr`; the certificate there must be that of `expected`.
    ///
    /// # Errors
    /// [`TransportError::Tls`] when a certificate is refused by either side, [`TransportError::Dial`] otherwise.
    pub async fn dial(&self, addr: SocketAddr, expected: Principal) -> Result<Link, TransportError> {
        self.dial_through(self.endpoint.connect(addr, &expected.dns_name()), addr)
            .await?
            .if_of(expected)
    }

    /// Dials as another principal than the one that the socket was bound for: one socket can carry many.
    ///
    /// # Errors
    /// As [`Self::dial`], and [`TransportError::Identity`].
    pub async fn dial_as(
        &self,
        credentials: &Credentials,
        addr: SocketAddr,
        expected: Principal,
    ) -> Result<Link, TransportError> {
        let shown = Arc::new(tls::Own::new(credentials)?);
        let client = dialling(tls::client_config(credentials, shown, self.watch.revoked())?)?;
        let connecting = self.endpoint.connect_with(client, addr, &expected.dns_name());
        self.dial_through(connecting, addr).await?.if_of(expected)
    }

    /// Dials whichever coordinator is at `addr`, as a newcomer.
    ///
    /// # Errors
    /// [`TransportError::Tls`] when it is none of the known CA, [`TransportError::Dial`] otherwise.
    pub async fn dial_any(&self, addr: SocketAddr) -> Result<Link, TransportError> {
        let connecting = self.endpoint.connect(addr, "coordinator.understudy.internal");
        self.dial_through(connecting, addr).await
    }

    async fn dial_through(
        &self,
        connecting: Result<quinn::Connecting, quinn::ConnectError>,
        addr: SocketAddr,
    ) -> Result<Link, TransportError> {
        let failed = |why| TransportError::Dial { addr, why };
        let connection = connecting
            .map_err(|error| failed(error.to_string()))?
            .await
            .map_err(|error| refused(error, failed))?;
        Link::of(connection, &self.watch)
    }

    /// The next peer that knocks, before its handshake; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        Some(Incoming {
            incoming: self.endpoint.accept().await?,
            watch: Arc::clone(&self.watch),
        })
    }

    pub fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"closing");
    }

    /// Waits until all links have said goodbye. Call after [`close`](Self::close).
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// A peer in front of its handshake, so that a slow one holds up only its own task.
#[derive(Debug)]
pub struct Incoming {
    incoming: quinn::Incoming,
    watch: Arc<Watch>,
}

impl Incoming {
    pub fn remote_addr(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// # Errors
    /// [`TransportError::Tls`] when the certificate is refused or names no principal.
    pub async fn handshake(self) -> Result<Link, TransportError> {
        let connection = self
            .incoming
            .await
            .map_err(|error| refused(error, TransportError::Closed))?;
        Link::of(connection, &self.watch)
    }
}

/// An authenticated connection with one principal.
#[derive(Clone, Debug)]
pub struct Link {
    wire: Arc<Wire>,
}

#[derive(Debug)]
pub(crate) struct Wire {
    connection: quinn::Connection,
    pub(crate) identity: Identity,
}

impl Wire {
    pub(crate) fn close(&self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

impl Link {
    fn of(connection: quinn::Connection, watch: &Watch) -> Result<Self, TransportError> {
        let identity = identity_of(&connection)?;
        let wire = Arc::new(Wire { connection, identity });
        if !watch.add(&wire) {
            wire.close("the certificate is revoked");
            return Err(TransportError::Revoked(identity.principal.to_string()));
        }
        Ok(Self { wire })
    }

    fn if_of(self, expected: Principal) -> Result<Self, TransportError> {
        let found = self.principal();
        if found == expected {
            return Ok(self);
        }
        Err(TransportError::WrongPeer {
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    /// Who is at the other end, by its certificate.
    pub fn principal(&self) -> Principal {
        self.wire.identity.principal
    }

    pub fn remote_addr(&self) -> SocketAddr {
        self.wire.connection.remote_address()
    }

    /// What the certificate says that the peer made this link with; none for a newcomer.
    pub fn certificate(&self) -> Option<Certificate> {
        let chain = peer_chain(&self.wire.connection)?;
        Certificate::read(chain.first()?).ok()
    }

    /// Asks the coordinator at the other end for a new certificate: PEM.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn renewed_certificate(&self) -> Result<String, RenewalError> {
        chain_in(self.call(&Request::RenewCertificate, RENEW_MAX).await?)
    }

    /// Shows each certificate that this side gets while the link is up, which keeps the link's first
    /// one. Ends with the link.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn show_renewals(
        &self,
        credentials: &mut watch::Receiver<Credentials>,
    ) -> Result<(), TransportError> {
        while credentials.changed().await.is_ok() {
            let chain = credentials.borrow_and_update().chain().to_vec();
            let chain = chain.iter().map(|der| der.to_vec()).collect();
            let shown = Request::ShowCertificate(chain);
            loop {
                match self.call(&shown, RENEW_MAX).await {
                    Ok(_) => break,
                    Err(TransportError::Timeout(_)) => {}
                    // An older program closes the stream.
                    Err(_) if self.wire.connection.close_reason().is_none() => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Smoothed round-trip time of the path.
    pub fn rtt(&self) -> Duration {
        self.wire.connection.rtt()
    }

    /// Sends a request and waits for its response, at most `patience`.
    ///
    /// # Errors
    /// [`TransportError::Timeout`], [`TransportError::Closed`], [`TransportError::Decode`].
    pub async fn call(&self, request: &Request, patience: Duration) -> Result<Response, TransportError> {
        tokio::time::timeout(patience, async {
            let frame = wire::encode(request);
            let len = prefix(&frame, StreamKind::Rpc.frame_max())?;
            let (mut sender, receiver) = self.wire.connection.open_bi().await.map_err(closed)?;
            // One write, and so one packet.
            let whole = [&[StreamKind::Rpc as u8], &len[..], &frame].concat();
            sender.write_all(&whole).await.map_err(closed)?;
            // Fails only on a stream that is closed already, which the answer's absence tells.
            let _ = sender.finish();
            let mut receiver = FrameReceiver::new(receiver, StreamKind::Rpc.answer_max());
            let frame = receiver
                .receive()
                .await?
                .ok_or_else(|| TransportError::Closed("no response".to_owned()))?;
            Ok(wire::decode::<Response>(&frame)?)
        })
        .await
        .map_err(|_| TransportError::Timeout(patience))?
        .map_err(|error| self.explain(error))
    }

    /// In TLS 1.3 the accepting side looks at the dialler's certificate after the dialler is done:
    /// its refusal arrives as the end of a link that seemed fine.
    fn explain(&self, error: TransportError) -> TransportError {
        match (error, self.wire.connection.close_reason()) {
            (TransportError::Closed(_), Some(reason)) => refused(reason, TransportError::Closed),
            (other, _) => other,
        }
    }

    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn open_bi(&self, kind: StreamKind) -> Result<(FrameSender, FrameReceiver), TransportError> {
        let (mut sender, receiver) = self.wire.connection.open_bi().await.map_err(closed)?;
        sender.write_all(&[kind as u8]).await.map_err(closed)?;
        Ok((
            FrameSender::new(sender, kind.frame_max()),
            FrameReceiver::new(receiver, kind.answer_max()),
        ))
    }

    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn open_uni(&self, kind: StreamKind) -> Result<FrameSender, TransportError> {
        let mut sender = self.wire.connection.open_uni().await.map_err(closed)?;
        sender.write_all(&[kind as u8]).await.map_err(closed)?;
        Ok(FrameSender::new(sender, kind.frame_max()))
    }

    /// The next two-way stream that the peer opened. Its kind byte is read by
    /// [`PendingStream::kind`], so that a peer that withholds it holds up only that stream.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn accept_bi(&self) -> Result<PendingCall, TransportError> {
        let (sender, receiver) = self.wire.connection.accept_bi().await.map_err(closed)?;
        Ok(PendingStream { sender, receiver })
    }

    /// The next one-way stream that the peer opened.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn accept_uni(&self) -> Result<PendingStream<()>, TransportError> {
        let receiver = self.wire.connection.accept_uni().await.map_err(closed)?;
        Ok(PendingStream { sender: (), receiver })
    }

    /// Resolves with the reason when the link ends.
    pub async fn closed(&self) -> String {
        self.wire.connection.closed().await.to_string()
    }

    pub fn close(&self, reason: &str) {
        self.wire.close(reason);
    }
}

/// A stream of which the kind byte has not been read yet.
#[derive(Debug)]
pub struct PendingStream<S> {
    sender: S,
    receiver: quinn::RecvStream,
}

/// A two-way stream of which the kind byte has not been read yet.
pub type PendingCall = PendingStream<quinn::SendStream>;

impl<S> PendingStream<S> {
    async fn read_kind(&mut self) -> Result<StreamKind, TransportError> {
        let mut kind = [0];
        self.receiver.read_exact(&mut kind).await.map_err(closed)?;
        StreamKind::from_byte(kind[0]).ok_or(TransportError::UnknownStream(kind[0]))
    }
}

impl PendingCall {
    /// # Errors
    /// [`TransportError::UnknownStream`] for a kind byte that is not in [`StreamKind`].
    pub async fn kind(mut self) -> Result<(StreamKind, FrameSender, FrameReceiver), TransportError> {
        let kind = self.read_kind().await?;
        Ok((
            kind,
            FrameSender::new(self.sender, kind.answer_max()),
            FrameReceiver::new(self.receiver, kind.frame_max()),
        ))
    }
}

impl PendingStream<()> {
    /// # Errors
    /// [`TransportError::UnknownStream`] for a kind byte that is not in [`StreamKind`].
    pub async fn kind(mut self) -> Result<(StreamKind, FrameReceiver), TransportError> {
        let kind = self.read_kind().await?;
        Ok((kind, FrameReceiver::new(self.receiver, kind.frame_max())))
    }
}

fn peer_chain(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    let any = connection.peer_identity()?;
    any.downcast().ok().map(|chain| *chain)
}

/// Who is at the other end. Only a newcomer may show no certificate, and what it shows does not count.
fn identity_of(connection: &quinn::Connection) -> Result<Identity, TransportError> {
    let newcomer = connection
        .handshake_data()
        .and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .is_some_and(|data| data.protocol.as_deref() == Some(ALPN_NEWCOMER));
    let chain = peer_chain(connection);
    let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) else {
        if newcomer {
            return Ok(Identity {
                principal: Principal::Newcomer,
                enrolment: 0,
            });
        }
        return Err(TransportError::Tls("the peer sent no certificate".to_owned()));
    };
    let identity = Identity::of_certificate(leaf)?;
    // A coordinator, as a newcomer sees it; nobody else speaks that protocol with a certificate.
    if newcomer && !matches!(identity.principal, Principal::Coordinator(_)) {
        return Err(TransportError::Tls("a newcomer has no certificate".to_owned()));
    }
    Ok(identity)
}

fn quic(addr: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint, TransportError> {
    let runtime = Arc::new(quinn::TokioRuntime);
    socket::bind(addr)
        .and_then(|socket| quinn::Endpoint::new(quinn::EndpointConfig::default(), server, socket, runtime))
        .map_err(|source| TransportError::Bind { addr, source })
}

fn dialling(config: rustls::ClientConfig) -> Result<quinn::ClientConfig, TransportError> {
    let crypto =
        QuicClientConfig::try_from(config).map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(Some(KEEP_ALIVE))));
    Ok(config)
}

fn transport_config(keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("the idle timeout fits a varint"),
        ))
        .keep_alive_interval(keep_alive)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(32 << 20))
        .send_window(32 << 20);
    config
}

fn refused(error: ConnectionError, otherwise: impl FnOnce(String) -> TransportError) -> TransportError {
    let tls = match &error {
        ConnectionError::TransportError(e) => (0x100..0x200).contains(&u64::from(e.code)),
        ConnectionError::ConnectionClosed(e) => (0x100..0x200).contains(&u64::from(e.error_code)),
        _ => false,
    };
    if tls {
        TransportError::Tls(error.to_string())
    } else {
        otherwise(error.to_string())
    }
}
