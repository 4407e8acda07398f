//! `cargo xtask train`: the model from the committed traces, by the Python programs in `xtask/train/`.
//!
//! Invariant: Python is needed here alone, in an environment of its own under `target/tools/`; nothing at run time
//! depends on it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

/// Where the committed traces and the models are.
const MODELS: &str = "coordinator/models";
const SOURCES: &str = "xtask/train";
const ENVIRONMENT: &str = "target/tools/venv";
/// Written when the environment is whole; holds what was installed.
const INSTALLED: &str = "understudy-requirements.txt";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Train again and compare with the committed model instead of replacing it.
    #[arg(long)]
    check: bool,
    /// Print one JSON object at the end; everything else goes to stderr.
    #[arg(long)]
    json: bool,
}

pub fn run(root: &Path, args: &Args) -> Result<ExitCode> {
    let mut command = python(root)?;
    command
        .arg(root.join(SOURCES).join("train.py"))
        .arg(root.join(MODELS));
    if args.check {
        command.arg("--check");
    }
    let output = command
        .stderr(Stdio::inherit())
        .stdout(Stdio::piped())
        .output()
        .context("starting the trainer")?;
    let last = String::from_utf8_lossy(&output.stdout);
    if args.json {
        print!("{last}");
    } else {
        eprint!("{last}");
    }
    match output.status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(1) => Ok(ExitCode::FAILURE),
        _ => bail!("the trainer ended with {}", output.status),
    }
}

/// Where the traces that models are trained on are committed.
pub(crate) fn traces(root: &Path) -> PathBuf {
    root.join(MODELS).join("traces")
}

/// Turns recorded runs into compact traces; those that are there already stay as they are.
pub(crate) fn pack(root: &Path, recorded: &Path, packed: &Path) -> Result<()> {
    let status = python(root)?
        .arg(root.join(SOURCES).join("traces.py"))
        .arg("pack")
        .arg(recorded)
        .arg(packed)
        .stdout(Stdio::null())
        .status()
        .context("starting the packer")?;
    if !status.success() {
        bail!("packing the traces failed");
    }
    Ok(())
}

/// The environment's Python, made first if it is not there or is not what `requirements.txt` asks for.
fn python(root: &Path) -> Result<Command> {
    let environment = root.join(ENVIRONMENT);
    let requirements = root.join(SOURCES).join("requirements.txt");
    let wanted = std::fs::read(&requirements).with_context(|| requirements.display().to_string())?;
    let stamp = environment.join(INSTALLED);
    if std::fs::read(&stamp).ok().as_ref() != Some(&wanted) {
        eprintln!("setting up Python for training in {}", environment.display());
        step(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        step(
            Command::new(binary(&environment, "pip"))
                .args(["install", "--quiet", "-r"])
                .arg(&requirements),
        )?;
        std::fs::write(stamp, wanted)?;
    }
    let mut command = Command::new(binary(&environment, "python"));
    // The same numbers on every machine with the same processor features, and no files in the source folder.
    command
        .env("JAX_PLATFORMS", "cpu")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(root);
    Ok(command)
}

fn binary(environment: &Path, name: &str) -> PathBuf {
    environment.join("bin").join(name)
}

fn step(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed; Debian's packages python3 and python3-venv are needed");
    }
    Ok(())
}
