//! Endpoints and links.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{self, Request, Response, StreamKind};

use crate::frame::closed;
use crate::{FrameReceiver, FrameSender, STREAMS_MAX, TransportError};

/// A peer that is silent for this long is gone; keep-alives go out three times as often.
const IDLE_TIMEOUT: Duration = Duration::from_millis(3_000);
const KEEP_ALIVE: Duration = Duration::from_millis(1_000);

/// A bound UDP socket that accepts and dials links.
#[derive(Clone, Debug)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
}

impl Endpoint {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError::Bind`] or [`TransportError::Identity`].
    pub fn bind(addr: SocketAddr, credentials: &Credentials) -> Result<Self, TransportError> {
        let tls = |error: quinn::crypto::rustls::NoInitialCipherSuite| TransportError::Tls(error.to_string());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(
            QuicServerConfig::try_from(credentials.server_config()?).map_err(tls)?,
        ));
        server.transport_config(Arc::new(transport_config()));
        let mut client = quinn::ClientConfig::new(Arc::new(
            QuicClientConfig::try_from(credentials.client_config()?).map_err(tls)?,
        ));
        client.transport_config(Arc::new(transport_config()));
        let mut endpoint =
            quinn::Endpoint::server(server, addr).map_err(|source| TransportError::Bind { addr, source })?;
        endpoint.set_default_client_config(client);
        Ok(Self { endpoint })
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
        let connection = self
            .endpoint
            .connect(addr, &expected.dns_name())
            .map_err(|error| TransportError::Dial {
                addr,
                why: error.to_string(),
            })?
            .await
            .map_err(|error| refused(error, |why| TransportError::Dial { addr, why }))?;
        let link = Link::of(connection)?;
        if link.principal != expected {
            return Err(TransportError::WrongPeer {
                expected: expected.to_string(),
                found: link.principal.to_string(),
            });
        }
        Ok(link)
    }

    /// The next peer that knocks, before its handshake; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        Some(Incoming {
            incoming: self.endpoint.accept().await?,
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
        Link::of(connection)
    }
}

/// An authenticated connection with one principal.
#[derive(Clone, Debug)]
pub struct Link {
    connection: quinn::Connection,
    principal: Principal,
}

impl Link {
    fn of(connection: quinn::Connection) -> Result<Self, TransportError> {
        let identity = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or_else(|| TransportError::Tls("the peer sent no certificate".to_owned()))?;
        let leaf = identity
            .first()
            .ok_or_else(|| TransportError::Tls("the peer sent no certificate".to_owned()))?;
        let principal = Principal::of_certificate(leaf)?;
        Ok(Self {
            connection,
            principal,
        })
    }

    /// Who is at the other end, by its certificate.
    pub const fn principal(&self) -> Principal {
        self.principal
    }

    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Smoothed round-trip time of the path.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Sends a request and waits for its response, at most `patience`.
    ///
    /// # Errors
    /// [`TransportError::Timeout`], [`TransportError::Closed`], [`TransportError::Decode`].
    pub async fn call(&self, request: &Request, patience: Duration) -> Result<Response, TransportError> {
        tokio::time::timeout(patience, async {
            let (mut sender, mut receiver) = self.open_bi(StreamKind::Rpc).await?;
            sender.send(&wire::encode(request)).await?;
            sender.finish();
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
        match (error, self.connection.close_reason()) {
            (TransportError::Closed(_), Some(reason)) => refused(reason, TransportError::Closed),
            (other, _) => other,
        }
    }

    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn open_bi(&self, kind: StreamKind) -> Result<(FrameSender, FrameReceiver), TransportError> {
        let (mut sender, receiver) = self.connection.open_bi().await.map_err(closed)?;
        sender.write_all(&[kind as u8]).await.map_err(closed)?;
        Ok((FrameSender::new(sender, kind), FrameReceiver::new(receiver, kind)))
    }

    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn open_uni(&self, kind: StreamKind) -> Result<FrameSender, TransportError> {
        let mut sender = self.connection.open_uni().await.map_err(closed)?;
        sender.write_all(&[kind as u8]).await.map_err(closed)?;
        Ok(FrameSender::new(sender, kind))
    }

    /// The next two-way stream that the peer opened. Its kind byte is read by
    /// [`PendingStream::kind`], so that a peer that withholds it holds up only that stream.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn accept_bi(&self) -> Result<PendingCall, TransportError> {
        let (sender, receiver) = self.connection.accept_bi().await.map_err(closed)?;
        Ok(PendingStream { sender, receiver })
    }

    /// The next one-way stream that the peer opened.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the link ended.
    pub async fn accept_uni(&self) -> Result<PendingStream<()>, TransportError> {
        let receiver = self.connection.accept_uni().await.map_err(closed)?;
        Ok(PendingStream { sender: (), receiver })
    }

    /// Resolves with the reason when the link ends.
    pub async fn closed(&self) -> String {
        self.connection.closed().await.to_string()
    }

    pub fn close(&self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
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
            FrameSender::new(self.sender, kind),
            FrameReceiver::new(self.receiver, kind),
        ))
    }
}

impl PendingStream<()> {
    /// # Errors
    /// [`TransportError::UnknownStream`] for a kind byte that is not in [`StreamKind`].
    pub async fn kind(mut self) -> Result<(StreamKind, FrameReceiver), TransportError> {
        let kind = self.read_kind().await?;
        Ok((kind, FrameReceiver::new(self.receiver, kind)))
    }
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("the idle timeout fits a varint"),
        ))
        .keep_alive_interval(Some(KEEP_ALIVE))
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
