//! Running programs. Their output goes to standard error, so that standard output stays ours.

use std::ffi::OsStr;
use std::io::stderr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::repo;

/// One line of progress.
pub(crate) fn say(step: &str, what: impl std::fmt::Display) {
    eprintln!("{step:>12}  {what}");
}

/// A command in the root of the repository.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(repo::root()).stdin(Stdio::null());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs to the end, showing the output; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .stdout(stderr())
        .status()
        .with_context(|| starting(command))?;
    Ok(status.success())
}

/// Runs to the end, showing the output; failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    if !succeeds(command)? {
        bail!("`{}` failed", line(command));
    }
    Ok(())
}

/// Runs to the end without showing anything.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| starting(command))
}

/// Builds the kernel programs and all programs, as the tests are built: nothing is compiled twice.
pub(crate) fn provide() -> Result<()> {
    crate::ebpf::run()?;
    say("build", "the programs");
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))
}

/// Standard output of a command that succeeds; none when it cannot be started or fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Runs this very command again as root, everything being built; returns only why that failed.
/// Namespaces, loop disks and kernel programs need root; building does not.
pub(crate) fn become_root(what: &str) -> anyhow::Error {
    if !in_path("sudo") {
        return anyhow::anyhow!("{what} needs root for its namespaces and disks, and there is no sudo");
    }
    let mut sudo = command("sudo");
    sudo.args(root_environment());
    match env::current_exe() {
        Ok(own) => sudo.arg(own).args(env::args_os().skip(1)).arg("--built"),
        Err(why) => return why.into(),
    };
    sudo.stdin(Stdio::inherit());
    anyhow::Error::new(sudo.exec()).context("becoming root by sudo")
}

/// Words after `sudo` that give root this user's path, and its own programs.
pub(crate) fn root_environment() -> [String; 2] {
    let path = env::var_os("PATH").unwrap_or_default();
    let path = format!("PATH={}:/usr/sbin:/sbin", path.to_string_lossy());
    ["env".to_owned(), path]
}

pub(crate) fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn starting(command: &Command) -> String {
    format!("starting `{}`", line(command))
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
