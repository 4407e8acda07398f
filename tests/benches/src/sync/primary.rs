//! The primary, and the orders that it obeys.
//!
//! `settle` waits until the shadow has everything; `change FILES CHANGES` overwrites random pages and waits for the
//! acknowledgement of the generation with them; `steady RATE MS FILES` overwrites random pages at a rate and tells how
//! long each waited; `churn OPERATIONS` plays random operations while it cuts, then cuts once more with nobody
//! writing; `newest` tells the newest generation; `figures` what was read; `freezes` how long each lasted since it
//! was last asked; `statistics` makes the kernel time its programs until this process ends, `run_time` tells theirs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use understudy_agent::sync::{Primary, PrimarySettings};
use understudy_agent::workload::Freezer;
use understudy_common::id::{GenerationId, HostId};
use understudy_common::spec::Consistency;
use understudy_common::wire::Peer;
use understudy_transport::Endpoint;

use super::acks::Acks;
use super::churn::Churn;
use super::files::{Dice, change};
use super::freezes::Timed;
use super::steady::Steady;
use super::tracker::{Statistics, Tracker};
use super::{EPOCH, NAME, PRIMARY, SERVICE, SHADOW, Side};

/// The slowest disk takes its first copy within this.
const SETTLE_MAX: Duration = Duration::from_secs(3_600);
const CHANGE_MAX: Duration = Duration::from_secs(120);
const FREEZE_MS_MAX: u32 = 50;

#[derive(Debug, clap::Args)]
pub(super) struct Role {
    /// Where the shadow listens; none: what is cut goes nowhere
    #[arg(long)]
    shadow: Option<SocketAddr>,
    /// The workload's cgroup, which is frozen in each cut; none: cuts are live
    #[arg(long)]
    freeze: Option<PathBuf>,
    /// Of everything that is random
    #[arg(long, default_value_t = 0x5EED)]
    seed: u64,
}

struct Player {
    primary: Primary,
    data: PathBuf,
    shadows: Vec<HostId>,
    begun: Instant,
    seed: u64,
    dice: Dice,
    acks: Acks,
    churn: Arc<Mutex<Churn>>,
    tracker: Tracker,
    statistics: Option<Statistics>,
    freezer: Option<Arc<Timed>>,
}

pub(super) async fn run(side: &Side, role: Role) -> Result<()> {
    let acks = Acks::listen()?;
    let endpoint = Endpoint::bind(side.listen, &side.credentials(PRIMARY)?)?;
    let tracker = Tracker::open(&side.data)?;
    let freezer = role.freeze.map(|cgroup| Arc::new(Timed::new(cgroup)));
    let settings = PrimarySettings {
        service: SERVICE,
        name: NAME.to_owned(),
        epoch: EPOCH,
        host: PRIMARY,
        paths: vec![side.data.clone()],
        state_dir: side.state.clone(),
        consistency: match &freezer {
            Some(_) => Consistency::Freeze,
            None => Consistency::Live,
        },
        freeze_ms_max: FREEZE_MS_MAX,
        // What the marks miss is to be seen.
        scrub_bytes_s: 0,
        freezer: freezer.clone().map(|freezer| freezer as Arc<dyn Freezer>),
        source: Box::new(tracker.clone()),
        start: None,
    };
    let begun = Instant::now();
    let mut primary = Primary::start(settings, endpoint).await?;
    let peers = role.shadow.map(|addr| Peer { host: SHADOW, addr });
    primary.set_shadows(peers.into_iter().collect());
    let mut player = Player {
        primary,
        data: side.data.clone(),
        shadows: role.shadow.map(|_| SHADOW).into_iter().collect(),
        begun,
        seed: role.seed,
        dice: Dice::new(role.seed),
        acks,
        churn: Arc::new(Mutex::new(Churn::new(side.data.clone(), role.seed))),
        tracker,
        statistics: None,
        freezer,
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = player.obey(&line).await;
        println!("{}", answer.with_context(|| line.clone())?);
    }
    player.primary.stop().await;
    Ok(())
}

impl Player {
    async fn obey(&mut self, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["settle"] => {
                self.barrier(SETTLE_MAX).await?;
                json!({ "seconds": self.begun.elapsed().as_secs_f64() })
            }
            ["change", files, changes] => self.change(files.parse()?, changes.parse()?).await?,
            ["steady", rate, ms, files] => {
                let steady = Steady {
                    rate: rate.parse()?,
                    length: Duration::from_millis(ms.parse()?),
                    files: files.parse()?,
                };
                self.seed += 1;
                let waited = steady.run(self.data.clone(), &self.acks, self.seed).await?;
                serde_json::to_value(waited)?
            }
            ["churn", operations] => self.churn(operations.parse()?).await?,
            ["newest"] => {
                let newest = self.primary.status().borrow().generation;
                json!({ "generation": newest.context("nothing was cut yet")?.n })
            }
            ["figures"] => {
                let status = self.primary.status().borrow().clone();
                if let Some(failure) = status.failure {
                    bail!("the engine failed: {failure}");
                }
                serde_json::to_value(status.figures)?
            }
            ["freezes"] => {
                let freezer = self.freezer.as_ref().context("nothing is frozen")?;
                serde_json::to_value(freezer.take())?
            }
            ["statistics"] => {
                self.statistics = Some(Statistics::keep()?);
                json!({})
            }
            ["run_time"] => {
                ensure!(self.statistics.is_some(), "the kernel does not time its programs");
                self.tracker.run_time()?
            }
            _ => bail!("no such order"),
        })
    }

    async fn change(&mut self, files: u64, changes: u64) -> Result<Value> {
        let started = Instant::now();
        change(&self.data, files, changes, &mut self.dice)?;
        let written = started.elapsed();
        self.barrier(CHANGE_MAX).await?;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(json!({ "us": us(started.elapsed()), "write_us": us(written) }))
    }

    /// The first half, then the other half while a generation is cut, then one that nothing races with.
    async fn churn(&mut self, operations: u64) -> Result<Value> {
        let first = operations / 2;
        let mut played = self.play(first, false).await?;
        let (others, raced) = tokio::join!(self.play(operations - first, true), self.barrier(CHANGE_MAX));
        played.extend(others?);
        let raced = raced?;
        let generation = self.barrier(CHANGE_MAX).await?;
        Ok(json!({ "played": played, "raced": raced.n, "generation": generation.n }))
    }

    async fn play(&self, operations: u64, spread: bool) -> Result<Vec<String>> {
        let churn = Arc::clone(&self.churn);
        let play = move || {
            let mut churn = churn.lock().unwrap_or_else(PoisonError::into_inner);
            churn.play(operations, spread)
        };
        tokio::task::spawn_blocking(play).await?
    }

    async fn barrier(&self, limit: Duration) -> Result<GenerationId> {
        let cut = self.primary.barrier(limit).await?;
        ensure!(
            cut.acked_by == self.shadows,
            "the shadow did not acknowledge within {limit:?}"
        );
        Ok(cut.generation)
    }
}
