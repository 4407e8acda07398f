//! `cargo xtask sim`: builds the simulation, optimised as its own packages ask for, and runs seeds.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::shell::{cargo, command, run as run_command};
use crate::{ebpf, repo};

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    if !repo::root().join("target/bpf").is_dir() {
        ebpf::build()?;
    }
    run_command(cargo().args(["build", "--quiet", "--package", "understudy-sim"]))?;
    let program = repo::root().join("target/debug/understudy-sim");
    let status = command(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    // Killed by a signal is a failure, not an answer.
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(2),
    ))
}
