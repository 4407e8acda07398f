//! What a wait for the disk costs where the logs are.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::report::{Better, Judged, Kind};

const APPENDS: usize = 1_000;
const APPEND: [u8; 256] = [7; 256];

pub(super) const ROW: Kind = Kind {
    id: "fsync_us",
    unit: "us",
    better: Better::Lower,
    judged: Judged::Ours,
    must: None,
    goal: None,
};

/// Microseconds of one append of 256 bytes with fdatasync, median of a thousand.
pub(super) fn median_us(directory: &Path) -> Result<f64> {
    let path = directory.join("fsync");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    let mut micros = Vec::with_capacity(APPENDS);
    for _ in 0..APPENDS {
        let began = Instant::now();
        file.write_all(&APPEND)?;
        file.sync_data()?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(&path)?;
    super::report::median(&micros).context("appends were timed")
}
