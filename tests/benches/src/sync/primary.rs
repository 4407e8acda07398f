//! The primary: `settle` waits until the shadow has everything, `change FILES CHANGES` overwrites random pages
//! and waits for the shadow to acknowledge the generation with them, `figures` tells what was read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use understudy_agent::sync::tracker::{KernelTracker, TrackerLimits};
use understudy_agent::sync::{Primary, PrimarySettings};
use understudy_common::spec::Consistency;
use understudy_common::wire::Peer;
use understudy_transport::Endpoint;

use super::files::{Dice, change};
use super::{EPOCH, NAME, PRIMARY, SERVICE, SHADOW, Side};

/// The slowest disk takes its first copy within this.
const SETTLE_MAX: Duration = Duration::from_secs(3_600);
const CHANGE_MAX: Duration = Duration::from_secs(120);
/// More than any bench makes.
const FILES_MAX: u32 = 1 << 18;

pub(super) async fn run(side: &Side, shadow: SocketAddr) -> Result<()> {
    let endpoint = Endpoint::bind(side.listen, &side.credentials(PRIMARY)?)?;
    let limits = TrackerLimits {
        files_max: FILES_MAX,
        ..TrackerLimits::default()
    };
    let source = KernelTracker::open(std::slice::from_ref(&side.data), limits)?;
    let settings = PrimarySettings {
        service: SERVICE,
        name: NAME.to_owned(),
        epoch: EPOCH,
        host: PRIMARY,
        paths: vec![side.data.clone()],
        state_dir: side.state.clone(),
        consistency: Consistency::Live,
        freeze_ms_max: 50,
        // What the marks miss is to be seen.
        scrub_bytes_s: 0,
        freezer: None,
        source: Box::new(source),
        start: None,
    };
    let begun = Instant::now();
    let mut primary = Primary::start(settings, endpoint).await?;
    primary.set_shadows(vec![Peer {
        host: SHADOW,
        addr: shadow,
    }]);
    let mut dice = Dice::new(0x5EED);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = obey(&line, &primary, side, begun, &mut dice).await;
        println!("{}", answer.with_context(|| line.clone())?);
    }
    primary.stop().await;
    Ok(())
}

async fn obey(line: &str, primary: &Primary, side: &Side, begun: Instant, dice: &mut Dice) -> Result<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(match words[..] {
        ["settle"] => {
            barrier(primary, SETTLE_MAX).await?;
            json!({ "seconds": begun.elapsed().as_secs_f64() })
        }
        ["change", files, changes] => {
            let (files, changes) = (files.parse()?, changes.parse()?);
            let started = Instant::now();
            change(&side.data, files, changes, dice)?;
            let written = started.elapsed();
            barrier(primary, CHANGE_MAX).await?;
            let us = |time: Duration| time.as_secs_f64() * 1e6;
            json!({ "us": us(started.elapsed()), "write_us": us(written) })
        }
        ["figures"] => {
            let status = primary.status().borrow().clone();
            if let Some(failure) = status.failure {
                bail!("the engine failed: {failure}");
            }
            serde_json::to_value(status.figures)?
        }
        _ => bail!("orders are `settle`, `change FILES CHANGES`, `figures`"),
    })
}

async fn barrier(primary: &Primary, limit: Duration) -> Result<()> {
    let cut = primary.barrier(limit).await?;
    ensure!(
        cut.acked_by == [SHADOW],
        "the shadow did not acknowledge within {limit:?}"
    );
    Ok(())
}
