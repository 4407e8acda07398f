//! Three members of etcd as Debian ships it, with its default settings.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use understudy_testbed::wait_for;

use super::MEMBERS;
use crate::bench::daemon::{Daemon, free_addresses};
use crate::setup;
use crate::shell::{ask, command, in_path};

const PROGRAM: &str = "etcd";
const READY_MAX: Duration = Duration::from_secs(30);

pub(super) struct Etcd {
    pub(super) clients: Vec<SocketAddr>,
    pub(super) version: String,
    _members: Vec<Daemon>,
}

/// Sees to it that the program is there.
pub(super) fn provide(may_install: bool) -> Result<()> {
    if may_install {
        setup::install(&["etcd-server"])?;
    }
    if !in_path(PROGRAM) {
        bail!("etcd is not installed");
    }
    Ok(())
}

impl Etcd {
    pub(super) fn start(directory: &Path) -> Result<Self> {
        let addresses = free_addresses(2 * MEMBERS)?;
        let (clients, peers) = addresses.split_at(MEMBERS);
        let cluster: Vec<_> = (1..)
            .zip(peers)
            .map(|(n, peer)| format!("m{n}=http://{peer}"))
            .collect();
        let mut members = Vec::new();
        for (n, (client, peer)) in (1..).zip(clients.iter().zip(peers)) {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let mut member = Command::new(PROGRAM);
            member
                .args(["--name", &format!("m{n}")])
                .arg("--data-dir")
                .arg(directory.join(format!("etcd-{n}")))
                .args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-state", "new"])
                .args(["--logger", "zap", "--log-level", "warn"]);
            members.push(Daemon::start(
                &mut member,
                &directory.join(format!("etcd-{n}.log")),
            )?);
        }
        wait_for("etcd to listen", READY_MAX, || {
            clients
                .iter()
                .all(|client| std::net::TcpStream::connect(client).is_ok())
                .then_some(())
        })?;
        Ok(Self {
            clients: clients.to_vec(),
            version: version(),
            _members: members,
        })
    }
}

fn version() -> String {
    ask(command(PROGRAM).arg("--version"))
        .and_then(|said| Some(said.lines().next()?.rsplit(' ').next()?.to_owned()))
        .map_or_else(|| "etcd".to_owned(), |version| format!("etcd {version}"))
}
