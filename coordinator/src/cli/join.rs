//! `understudy join`: makes this machine a host of a cluster that runs.
//!
//! Invariants: the private key is made here and never sent. Nothing is sent to a coordinator before
//! it proved that it is of the token's cluster. A token that may have been spent is asked with again
//! only for the same request, which gets the same answer.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use understudy_common::identity::{Credentials, Principal, fingerprint};
use understudy_common::wire::{Admitted, Join, Refusal, Request, Response};
use understudy_transport::{Endpoint, TransportError};

use super::init::{self, HostArg, InitError, NewFile, Written};
use crate::authority::{self, AuthorityError};
use crate::token::{JoinToken, TokenError};

const HOSTNAME: &str = "/proc/sys/kernel/hostname";
const PORT: u16 = 7401;
/// How long to look for a leader: several elections.
const PATIENCE: Duration = Duration::from_secs(15);
const DIAL: Duration = Duration::from_secs(3);
const CALL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct JoinArgs {
    /// What `understudy token` printed.
    token: String,
    /// Where to write; created, or empty.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where other hosts reach this one; port 7401 of the address that faces the coordinators when
    /// not given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// What it is to be called; the machine's own name when not given.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("no coordinator of the token admitted this host: {0}")]
    NoLeader(String),
    #[error("cannot open a socket: {0}")]
    Socket(TransportError),
    #[error("cannot tell which address of this host faces the coordinators: {0}; give it with --listen")]
    Listen(std::io::Error),
    #[error("cannot read this machine's name: {0}; give one with --name")]
    Name(std::io::Error),
    #[error("the coordinator sent a certificate that does not fit: {0}")]
    Certificate(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Write(#[from] InitError),
}

pub(super) async fn run(args: &JoinArgs) -> Result<Written, JoinError> {
    let token = JoinToken::from_text(&args.token)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => own_name()?,
    };
    let listen = match args.listen {
        Some(listen) => listen,
        None => facing(token.coordinators[0])?,
    };
    // Before the token is spent.
    init::prepare(&args.dir)?;
    let (request, key) = authority::request()?;
    let join = Join {
        secret: token.secret,
        name,
        request,
    };
    let admitted = admitted(&token, join).await?;
    let files = files(&token, &admitted, key, listen)?;
    for file in &files {
        init::write(&args.dir, file)?;
    }
    Ok(Written {
        dir: args.dir.clone(),
        files: files.into_iter().map(|file| file.name).collect(),
    })
}

async fn admitted(token: &JoinToken, join: Join) -> Result<Admitted, JoinError> {
    let v6 = token.coordinators.iter().any(SocketAddr::is_ipv6);
    let any: IpAddr = if v6 { [0_u16; 8].into() } else { [0_u8; 4].into() };
    let endpoint = Endpoint::newcomer((any, 0).into(), token.ca).map_err(JoinError::Socket)?;
    let request = Request::Join(join);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (mut excuses, mut strangers) = (Vec::new(), 0);
        for addr in &token.coordinators {
            match ask(&endpoint, *addr, &request).await {
                Ok(Response::Admitted(admitted)) => {
                    endpoint.close();
                    return Ok(admitted);
                }
                Ok(Response::Refused(refusal @ Refusal::Busy(_))) => {
                    excuses.push(format!("{addr}: {refusal}"));
                }
                Ok(Response::Refused(refusal)) => return Err(JoinError::Refused(refusal)),
                Ok(_) => excuses.push(format!("{addr}: does not lead")),
                Err(error) => {
                    strangers += usize::from(matches!(error, TransportError::Tls(_)));
                    excuses.push(format!("{addr}: {error}"));
                }
            }
        }
        // None of them will become one of the token's cluster.
        let hopeless = strangers == token.coordinators.len();
        if hopeless || Instant::now() + PAUSE > deadline {
            return Err(JoinError::NoLeader(excuses.join("; ")));
        }
        sleep(PAUSE).await;
    }
}

async fn ask(endpoint: &Endpoint, addr: SocketAddr, request: &Request) -> Result<Response, TransportError> {
    let link = timeout(DIAL, endpoint.dial_any(addr))
        .await
        .unwrap_or(Err(TransportError::Timeout(DIAL)))?;
    let answer = link.call(request, CALL).await;
    link.close("the newcomer is done");
    answer
}

/// What the coordinator sent is checked before anything of it is written.
fn files(
    token: &JoinToken,
    admitted: &Admitted,
    key: String,
    listen: SocketAddr,
) -> Result<Vec<NewFile>, JoinError> {
    let wrong = |why: &str| JoinError::Certificate(why.to_owned());
    let (ca, certificate) = (admitted.ca.as_bytes(), admitted.certificate.as_bytes());
    let credentials = Credentials::from_pem(ca, certificate, key.as_bytes())
        .map_err(|error| JoinError::Certificate(error.to_string()))?;
    if fingerprint(credentials.ca()) != token.ca {
        return Err(wrong("its CA is not the token's"));
    }
    if credentials.principal() != Principal::Host(admitted.host) {
        return Err(wrong("it names somebody else"));
    }
    let coordinators: Vec<_> = admitted
        .coordinators
        .iter()
        .map(|(id, addr)| (id.0, *addr))
        .collect();
    let host = HostArg {
        name: admitted.name.clone(),
        addr: listen,
    };
    let file = |name: String, text: String, secret| NewFile { name, text, secret };
    let id = admitted.host;
    Ok(vec![
        file(format!("{id}.key"), key, true),
        file(format!("{id}.pem"), admitted.certificate.clone(), false),
        file("ca.pem".to_owned(), admitted.ca.clone(), false),
        file(
            format!("{id}.toml"),
            init::host_toml(id.0, &host, &coordinators),
            false,
        ),
    ])
}

fn own_name() -> Result<String, JoinError> {
    let name = std::fs::read_to_string(HOSTNAME).map_err(JoinError::Name)?;
    let short = name.trim().split('.').next().unwrap_or_default();
    Ok(short.to_ascii_lowercase())
}

/// The address that packets to the coordinator leave from. Nothing is sent.
fn facing(coordinator: SocketAddr) -> Result<SocketAddr, JoinError> {
    let any: IpAddr = if coordinator.is_ipv6() {
        [0_u16; 8].into()
    } else {
        [0_u8; 4].into()
    };
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(coordinator)?;
        socket.local_addr()
    });
    Ok(SocketAddr::new(local.map_err(JoinError::Listen)?.ip(), PORT))
}
