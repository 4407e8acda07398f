//! Whom the commands go to: the leader of an Understudy cluster or of an etcd cluster.
//!
//! Invariant: both get a command of [`COMMAND_BYTES`] and count it when the answer says that it was applied.

mod etcd;
mod protobuf;
mod understudy;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use etcd::Etcd;
pub(crate) use understudy::Understudy;

/// Key and value of a put, or the text of a note.
pub(crate) const COMMAND_BYTES: usize = 256;
/// How long a leader is looked for.
const LEADER_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Cluster {
    /// A client address of an etcd member; once for each
    #[arg(long = "etcd", value_name = "ADDRESS:PORT")]
    etcd: Vec<SocketAddr>,
    /// `cluster.toml` of an Understudy cluster
    #[arg(long = "cluster", value_name = "FILE")]
    understudy: Option<PathBuf>,
}

/// Connections to the leader, all open.
pub(crate) enum Target {
    Etcd(Vec<Etcd>),
    Understudy(Vec<Understudy>),
}

/// One client's way to commit.
#[derive(Clone)]
pub(crate) enum Client {
    Etcd(Etcd),
    Understudy(Understudy),
}

impl Target {
    pub(crate) async fn connect(cluster: &Cluster, connections: usize) -> Result<Self> {
        let until = tokio::time::Instant::now() + LEADER_MAX;
        loop {
            let found = match &cluster.understudy {
                Some(file) => understudy::leader(file, connections).await.map(Self::Understudy),
                None => etcd::leader(&cluster.etcd, connections).await.map(Self::Etcd),
            };
            match found {
                Ok(target) => return Ok(target),
                Err(why) if tokio::time::Instant::now() >= until => {
                    return Err(why).context("no leader was found");
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// The way of the client with this number; clients share connections evenly.
    pub(crate) fn client(&self, number: usize) -> Client {
        match self {
            Self::Etcd(all) => Client::Etcd(all[number % all.len()].clone()),
            Self::Understudy(all) => Client::Understudy(all[number % all.len()].clone()),
        }
    }
}

impl Client {
    /// One command of this client, committed and applied.
    pub(crate) async fn commit(&self, client: usize, count: u64) -> Result<()> {
        match self {
            Self::Etcd(etcd) => etcd.put(client, count).await,
            Self::Understudy(understudy) => understudy.note(&text(client, count)).await,
        }
    }
}

/// A command's content, different for each client and count.
fn text(client: usize, count: u64) -> String {
    format!("{client:04}-{count:016}-{:.<1$}", "", COMMAND_BYTES - 22)
}

/// What is not an answer to the command.
fn unexpected<T>(answer: impl std::fmt::Debug) -> Result<T> {
    bail!("not committed: {answer:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_its_size_and_differs_from_every_other() {
        assert_eq!(text(1, 2).len(), COMMAND_BYTES);
        assert_eq!(text(9_999, 10_u64.pow(15)).len(), COMMAND_BYTES);
        assert_ne!(text(1, 2), text(2, 1));
    }
}
