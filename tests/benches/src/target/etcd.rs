//! Commands to etcd's leader: puts by gRPC over plain HTTP/2, as etcd's own clients send them.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::net::TcpStream;

use super::protobuf::{Value, find, put_bytes};
use super::{COMMAND_BYTES, text};

const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const KEY_BYTES: usize = 8;
/// gRPC's prefix of a message: not compressed, and its length.
const PREFIX: usize = 5;

#[derive(Clone)]
pub(crate) struct Etcd {
    requests: SendRequest<Bytes>,
    authority: SocketAddr,
}

/// Finds the member that leads and opens the connections to it: it need not forward anything.
pub(super) async fn leader(members: &[SocketAddr], connections: usize) -> Result<Vec<Etcd>> {
    for member in members {
        let Ok(first) = Etcd::connect(*member).await else {
            continue;
        };
        if !first.leads().await? {
            continue;
        }
        let mut all = vec![first];
        while all.len() < connections {
            all.push(Etcd::connect(*member).await?);
        }
        return Ok(all);
    }
    bail!("no etcd member leads")
}

impl Etcd {
    async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            // Who waits for an answer on it is told.
            let _ = connection.await;
        });
        Ok(Self {
            requests,
            authority: addr,
        })
    }

    /// One put: key and value together are the command's bytes; each client has a key of its own.
    pub(crate) async fn put(&self, client: usize, count: u64) -> Result<()> {
        let mut message = Vec::with_capacity(COMMAND_BYTES + 8);
        put_bytes(&mut message, 1, format!("{client:0KEY_BYTES$}").as_bytes());
        put_bytes(&mut message, 2, &text(client, count).as_bytes()[KEY_BYTES..]);
        self.call(PUT, &message).await.map(drop)
    }

    async fn leads(&self) -> Result<bool> {
        let status = self.call(STATUS, &[]).await?;
        let number = |value| match value {
            Some(Value::Number(number)) => Some(number),
            _ => None,
        };
        let Some(Value::Bytes(header)) = find(&status, 1) else {
            bail!("a status without a header")
        };
        let (own, leader) = (number(find(header, 2)), number(find(&status, 4)));
        Ok(own.is_some() && own == leader)
    }

    async fn call(&self, method: &str, message: &[u8]) -> Result<Bytes> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut frame = Vec::with_capacity(PREFIX + message.len());
        frame.push(0);
        frame.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        frame.extend_from_slice(message);
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut body) = requests.send_request(request, false)?;
        body.send_data(frame.into(), true)?;
        let response = response.await?;
        let refused = status_of(response.headers());
        let mut body = response.into_body();
        let mut answer = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            answer.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?;
        let status = refused.or_else(|| trailers.as_ref().and_then(status_of));
        let status = status.context("an answer without a status")?;
        ensure!(status == "0", "etcd answered with gRPC status {status}");
        ensure!(answer.len() >= PREFIX, "an answer without a message");
        Ok(Bytes::from(answer).slice(PREFIX..))
    }
}

fn status_of(headers: &http::HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}
