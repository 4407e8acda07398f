//! Distribution packages, by apt.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::shell::{ask, command, in_path, is_root, output, say};

/// Another package run may hold the locks on a machine that just booted.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_secs(5);

/// Installs those that are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !in_path("dpkg-query") {
        say(
            "packages",
            format!("skipped: not a Debian system; needed: {}", packages.join(" ")),
        );
        return Ok(());
    }
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    say(
        "packages",
        format!("installing {} (a minute or two)", missing.join(" ")),
    );
    if let Err(why) = apt(&["update", "-q"]) {
        say("packages", format!("the lists may be old: {why:#}"));
    }
    let mut words = vec!["install", "-q", "-y", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words)
}

/// Whether apt could install it, or it is there.
pub(super) fn available(package: &str) -> bool {
    let known = |word: &str| ask(command("apt-cache").args(["policy", word])).unwrap_or_default();
    missing(&[package]).is_empty()
        || known(package).lines().any(|line| {
            line.trim()
                .strip_prefix("Candidate:")
                .is_some_and(|version| version.trim() != "(none)")
        })
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut query = command("dpkg-query");
    query
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages);
    // It fails when one is unknown and still answers for the others.
    let answer = output(&mut query).map(|output| output.stdout).unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let installed = |package: &str| {
        answer
            .lines()
            .any(|line| line.split_once(' ') == Some((package, "installed")))
    };
    packages
        .iter()
        .copied()
        .filter(|package| !installed(package))
        .collect()
}

fn apt(words: &[&str]) -> Result<()> {
    let until = Instant::now() + LOCK_WAIT_MAX;
    loop {
        let mut apt = as_root(words)?;
        let output = output(&mut apt)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let locked = said.contains("Could not get lock") || said.contains("Unable to lock");
        if !locked || Instant::now() >= until {
            bail!("apt-get {}: {}", words.join(" "), said.trim());
        }
        say("packages", "waiting for another package run to end");
        sleep(LOCK_POLL);
    }
}

fn as_root(words: &[&str]) -> Result<Command> {
    let timeout = format!("DPkg::Lock::Timeout={}", LOCK_WAIT_MAX.as_secs());
    // The run level keeps package scripts from starting daemons: tests start their own.
    let settings = ["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "LC_ALL=C"];
    let mut apt = if is_root() {
        command("env")
    } else if in_path("sudo") {
        let mut sudo = command("sudo");
        sudo.arg("env").stdin(std::process::Stdio::inherit());
        sudo
    } else {
        bail!(
            "packages are missing and there is no sudo; as root: apt-get {}",
            words.join(" ")
        );
    };
    apt.args(settings)
        .arg("apt-get")
        .args(["-o", &timeout])
        .args(words);
    Ok(apt)
}
