//! The row about syncthing: a small change in 1 GiB, ours and then its own, on the same files and hosts.
//!
//! Both sides run one, over the cable of the bed. Each change is followed by a rescan that it is asked for, so that
//! no time of its watcher counts.

mod instance;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use self::instance::{Instance, identity};
use super::stage::Stage;
use super::{DELTA, beside, progress};
use crate::bench::Wanted;
use crate::bench::report::{Kind, Row};
use crate::setup;
use crate::shell::{ask, command, in_path, say};

pub(super) const KIND: Kind = Kind {
    id: "delta_vs_syncthing_1_gib",
    must: None,
    goal: None,
    ..DELTA
};

const LABEL: &str = "syncthing";
/// The slowest disk takes its first copy within this.
const COPIED_MAX: Duration = Duration::from_secs(1_800);
const COPIED_POLL: Duration = Duration::from_millis(5);

struct Scale {
    bytes: u64,
    rounds: usize,
    /// Of ours for each of syncthing's.
    changes: usize,
}

const FULL: Scale = Scale {
    bytes: 1 << 30,
    rounds: 5,
    changes: 5,
};
const QUICK: Scale = Scale {
    bytes: 8 << 20,
    rounds: 1,
    changes: 1,
};

pub(super) fn row(wanted: &Wanted) -> Row {
    measure(wanted).unwrap_or_else(|why| Row::missing(KIND, format!("{why:#}")))
}

fn measure(wanted: &Wanted) -> Result<Row> {
    let peer = provide(wanted.installs);
    let scale = if wanted.quick { &QUICK } else { &FULL };
    let mut stage = Stage::open(wanted, scale.bytes, 1)?;
    let pair = peer.as_ref().ok().map(|_| Pair::start(&stage)).transpose()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        for _ in 0..scale.changes {
            ours.push(stage.change(1, 1)?.0);
        }
        if let Some(pair) = &pair {
            theirs.push(pair.copy(COPIED_MAX)?);
        }
        say(LABEL, progress(&ours, LABEL, &theirs));
    }
    if let Some(pair) = &pair {
        pair.check(&stage)?;
    }
    Ok(beside(KIND, &peer, ours, theirs))
}

/// The name of the peer, which is there.
fn provide(may_install: bool) -> Result<String> {
    if may_install {
        setup::install(&["syncthing"])?;
    }
    ensure!(in_path("syncthing"), "syncthing is not installed");
    let version = ask(command("syncthing").arg("--version")).unwrap_or_default();
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    Ok(format!("syncthing {number}").trim().to_owned())
}

/// One on each host.
struct Pair {
    primary: Instance,
    shadow: Instance,
    copy: std::path::PathBuf,
}

impl Pair {
    /// The shadow's has the first copy when this returns.
    fn start(stage: &Stage) -> Result<Self> {
        let [ours, theirs] = stage.hosts();
        let disk = theirs.disk().context("the shadow has a disk")?.mount_point();
        let (home, copy) = (disk.join("syncthing-home"), disk.join("syncthing"));
        let own_home = stage.beside("syncthing");
        let devices = [identity(ours, &own_home)?, identity(theirs, &home)?];
        let both = [(&devices[0], ours.address()), (&devices[1], theirs.address())];
        let pair = Self {
            primary: Instance::start(ours, &own_home, &stage.data(), &both)?,
            shadow: Instance::start(theirs, &home, &copy, &both)?,
            copy: theirs.path(&copy),
        };
        let ms = pair.copy(COPIED_MAX)?;
        say(LABEL, format!("the first copy in {:.1} s", ms / 1e3));
        Ok(pair)
    }

    /// Milliseconds until the shadow's has everything that is there now.
    fn copy(&self, limit: Duration) -> Result<f64> {
        let begun = Instant::now();
        self.primary.scan()?;
        while !self.primary.is_complete(self.shadow.device())? {
            ensure!(begun.elapsed() < limit, "syncthing did not copy within {limit:?}");
            std::thread::sleep(COPIED_POLL);
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Whether its last copy is one.
    fn check(&self, stage: &Stage) -> Result<()> {
        let file = Path::new("0/0");
        let status = Command::new("cmp")
            .arg("--silent")
            .args([stage.trees()[0].join(file), self.copy.join(file)])
            .status()
            .context("starting cmp")?;
        ensure!(status.success(), "the copy of syncthing is another");
        Ok(())
    }
}
