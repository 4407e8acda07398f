//! One service between two hosts: a primary and a shadow, a process each, with no coordinator beside them.
//!
//! `keys` writes certificates for both, `make` writes files of random bytes, `shadow` serves a copy until it is
//! stopped, `primary` cuts and ships and obeys lines on standard input; each answer is one JSON line.

mod acks;
mod churn;
mod files;
mod freezes;
mod primary;
mod shadow;
mod steady;
mod tracker;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use time::OffsetDateTime;
use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::identity::{Credentials, Principal};
use understudy_coordinator::authority::{Authority, CA_DAYS_MIN, Pair, Validity};

pub(super) const SERVICE: ServiceId = ServiceId(1);
pub(super) const NAME: &str = "bench";
pub(super) const EPOCH: Epoch = Epoch(1);
pub(super) const PRIMARY: HostId = HostId(1);
pub(super) const SHADOW: HostId = HostId(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Certificates of both hosts
    Keys {
        /// Where to write them
        #[arg(long)]
        dir: PathBuf,
    },
    /// Files of random bytes
    Make(files::Make),
    Shadow(Side),
    Primary {
        #[command(flatten)]
        side: Side,
        #[command(flatten)]
        role: primary::Role,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Side {
    /// Where the certificates are
    #[arg(long)]
    keys: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    /// The service's path
    #[arg(long)]
    data: PathBuf,
    /// For the agent's own files
    #[arg(long)]
    state: PathBuf,
}

impl Side {
    fn credentials(&self, host: HostId) -> Result<Credentials> {
        let read = |name: &str| {
            let path = self.keys.join(name);
            fs::read(&path).with_context(|| path.display().to_string())
        };
        let name = Principal::Host(host);
        let (ca, certificate, key) = (
            read("ca.pem")?,
            read(&format!("{name}.pem"))?,
            read(&format!("{name}.key"))?,
        );
        Ok(Credentials::from_pem(&ca, &certificate, &key)?)
    }
}

pub(crate) async fn run(args: Args) -> Result<()> {
    match args.role {
        Role::Keys { dir } => keys(&dir),
        Role::Make(make) => make.run(),
        Role::Shadow(side) => shadow::run(&side).await,
        Role::Primary { side, role } => primary::run(&side, role).await,
    }
}

fn keys(dir: &Path) -> Result<()> {
    let validity = Validity::days_from(OffsetDateTime::now_utc(), CA_DAYS_MIN);
    let authority = Authority::new(validity)?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    fs::write(dir.join("ca.pem"), &authority.pair().certificate)?;
    for host in [PRIMARY, SHADOW].map(Principal::Host) {
        let Pair { certificate, key } = authority.issue(host, validity)?;
        fs::write(dir.join(format!("{host}.pem")), certificate)?;
        fs::write(dir.join(format!("{host}.key")), key)?;
    }
    Ok(())
}
