//! fio in the primary's host: 4 KiB written to random places.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::stage::Stage;
use crate::setup;
use crate::shell::in_path;

/// Into the cgroup that its first argument names, then whatever the others say.
const ENTER: &str = "echo 0 > \"$0/cgroup.procs\" && exec \"$@\"";

/// It is there.
pub(super) fn provide(may_install: bool) -> Result<()> {
    if may_install {
        setup::install(&["fio"])?;
    }
    ensure!(in_path("fio"), "fio is not installed");
    Ok(())
}

/// One writer, with a file of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) name: &'static str,
    pub(super) words: &'static [&'static str],
    /// Bytes a second; none: as many as it can.
    pub(super) rate: Option<u64>,
}

/// All jobs together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) writes: u64,
    pub(super) bytes: u64,
    pub(super) per_s: f64,
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Ran>,
}

#[derive(Deserialize)]
struct Ran {
    error: i32,
    write: Writes,
}

#[derive(Deserialize)]
struct Writes {
    io_bytes: u64,
    total_ios: u64,
    iops: f64,
}

/// The n-th job writes to the n-th of the stage's files, which have `bytes` each. With `workload` they live in its
/// cgroup. The files leave the page cache first, which is fio's default and matters: what was read or written in large
/// pieces lies there in large folios, and ext4 takes twenty times as long for a page of one.
pub(super) fn run(stage: &Stage, jobs: &[Job], bytes: u64, seconds: u64, workload: bool) -> Result<Written> {
    let data = stage.data();
    let mut command = if workload {
        let mut shell = stage.hosts()[0].command("sh")?;
        shell.args(["-c", ENTER]).arg(stage.workload()).arg("fio");
        shell
    } else {
        stage.hosts()[0].command("fio")?
    };
    command.args([
        "--output-format=json",
        "--rw=randwrite",
        "--bs=4k",
        "--time_based",
        "--norandommap",
        "--randrepeat=0",
        "--fallocate=none",
        "--allow_file_create=0",
    ]);
    command.args([format!("--runtime={seconds}"), format!("--size={bytes}")]);
    for (number, job) in jobs.iter().enumerate() {
        command.arg(format!("--name={}", job.name));
        command.arg(format!("--filename={}", file(&data, number)));
        command.args(job.words);
        if let Some(rate) = job.rate {
            command.arg(format!("--rate=,{rate}"));
        }
    }
    let output = command.stdin(Stdio::null()).output().context("starting fio")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fio: {}", said.trim());
    let report: Report = serde_json::from_slice(&output.stdout).context("the report of fio")?;
    ensure!(
        report.jobs.len() == jobs.len() && report.jobs.iter().all(|ran| ran.error == 0),
        "fio: a job failed: {}",
        said.trim()
    );
    let written = Written {
        writes: report.jobs.iter().map(|ran| ran.write.total_ios).sum(),
        bytes: report.jobs.iter().map(|ran| ran.write.io_bytes).sum(),
        per_s: report.jobs.iter().map(|ran| ran.write.iops).sum(),
    };
    ensure!(written.writes > 0, "fio wrote nothing");
    Ok(written)
}

/// As `understudy-load` names them; fio takes a colon for a separator.
fn file(data: &Path, number: usize) -> String {
    let path = data.join("0").join(number.to_string());
    path.to_string_lossy().replace(':', "\\:")
}
