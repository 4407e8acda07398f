//! Three minutes of the exerciser: real programs under faults that a seed deals.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use understudy_testbed::exercise::{self, Settings};

const SEED: u64 = 3;
const AT_MOST: Duration = Duration::from_secs(180);

#[test]
fn three_minutes_of_faults_leave_one_owner_and_everything_that_was_promised() -> Result<()> {
    if let Some(reason) = exercise::missing() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let settings = Settings {
        seed: SEED,
        at_most: AT_MOST,
        keep_logs: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/exercise/smoke"),
    };
    let report = exercise::run(&settings, &mut |line| println!("{line}"))?;
    ensure!(report.held(), "{:#?}", report.violations);
    ensure!(
        report.rounds >= 6,
        "only {} rounds in three minutes",
        report.rounds
    );
    ensure!(
        report.moves > 0 && report.acknowledged > 0,
        "nothing happened: {report:#?}"
    );
    Ok(())
}
