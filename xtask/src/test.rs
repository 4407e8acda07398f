//! `cargo xtask test`: sets up, builds, runs every tier, and names the tiers that could not run.

use std::process::Command;
use std::{fs, iter};

use anyhow::{Result, bail};

use crate::shell::{ask, cargo, command, is_root, root_environment, run as run_command, say, succeeds};
use crate::{ebpf, repo, setup};

/// Where nextest leaves what each test printed; see `.config/nextest.toml`.
const REPORT: &str = "target/nextest/default/junit.xml";
/// Packages with tests that load kernel programs or make namespaces and disks.
const ROOT_PACKAGES: [&str; 3] = ["understudy-agent", "understudy-testbed", "xtask"];

/// Whether all tests passed.
pub(crate) fn run(arguments: &[String]) -> Result<bool> {
    setup::run()?;
    ebpf::build()?;
    say("build", "the workspace and its tests");
    run_command(cargo().args(["build", "--quiet", "--workspace", "--all-targets"]))?;
    if ask(cargo().args(["nextest", "--version"])).is_none() {
        return without_nextest(arguments);
    }
    let passes = if can_become_root() {
        vec![Pass::AsUser, Pass::AsRoot]
    } else {
        vec![Pass::Together]
    };
    let (mut passed, mut any) = (true, false);
    for pass in passes {
        let outcome = pass.run(arguments)?;
        passed &= outcome.passed;
        any |= outcome.any;
    }
    if !any {
        bail!("no test ran: nothing is called {arguments:?}, or nextest left no report in {REPORT}");
    }
    Ok(passed)
}

/// Which tests run together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// All, as whoever asks.
    Together,
    /// Those of the packages that need no root.
    AsUser,
    /// Those of [`ROOT_PACKAGES`].
    AsRoot,
}

struct Ran {
    passed: bool,
    /// Any test ran.
    any: bool,
}

impl Pass {
    fn run(self, arguments: &[String]) -> Result<Ran> {
        let report = repo::root().join(REPORT);
        let _ = fs::remove_file(&report);
        let mut tests = cargo();
        // Arguments may name tests of the other pass only.
        tests.args(["nextest", "run", "--no-tests", "pass"]);
        tests.args(self.packages()).args(arguments);
        if self == Self::AsRoot {
            run_as_root(&mut tests);
        }
        let passed = succeeds(&mut tests)?;
        let report = fs::read_to_string(report).unwrap_or_default();
        for (test, reason) in skipped(&report) {
            say("skipped", format!("{test}: {reason}"));
        }
        let any = report.contains("<testcase ");
        Ok(Ran { passed, any })
    }

    fn packages(self) -> Vec<&'static str> {
        let each = |option| ROOT_PACKAGES.iter().flat_map(move |package| [option, *package]);
        match self {
            Self::Together => vec!["--workspace"],
            Self::AsUser => iter::once("--workspace").chain(each("--exclude")).collect(),
            Self::AsRoot => each("--package").collect(),
        }
    }
}

/// Whether tests that need root can have it although this program is not root.
fn can_become_root() -> bool {
    !is_root() && succeeds(command("sudo").args(["-n", "true"])).unwrap_or(false)
}

/// Kernel programs, namespaces and loop disks need root. Where it can be had without a question the test
/// programs get it; else the tiers that need it say that they were skipped.
fn run_as_root(tests: &mut Command) {
    let runner = [
        &["sudo".to_owned(), "-n".to_owned(), "-E".to_owned()][..],
        &root_environment(),
    ]
    .concat();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let name = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
    tests.env(name, runner.join(" "));
}

/// Tests share a process then, so they run one after the other: some own the machine's clockwork.
fn without_nextest(arguments: &[String]) -> Result<bool> {
    say(
        "test",
        "cargo-nextest is not installed: using `cargo test`, one test at a time",
    );
    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments);
    // What passing tests print names the tiers that could not run.
    tests.args(["--", "--test-threads=1", "--show-output"]);
    if can_become_root() {
        run_as_root(&mut tests);
    }
    succeeds(&mut tests)
}

/// Tests that printed `skipped: reason`, from a JUnit report.
fn skipped(report: &str) -> Vec<(String, String)> {
    let mut test = "";
    let mut found = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("<testcase name=\"") {
            test = rest.split('"').next().unwrap_or_default();
        }
        if let Some((_, reason)) = line.split_once("skipped: ") {
            let reason = reason.split("</system-out>").next().unwrap_or_default();
            found.push((test.to_owned(), reason.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_in_one_pass() {
        assert_eq!(
            Pass::AsUser.packages()[..3],
            ["--workspace", "--exclude", ROOT_PACKAGES[0]]
        );
        let named = |pass: Pass| {
            let words = pass.packages();
            ROOT_PACKAGES
                .iter()
                .filter(|package| words.contains(package))
                .count()
        };
        assert_eq!(named(Pass::AsUser), ROOT_PACKAGES.len());
        assert_eq!(named(Pass::AsRoot), ROOT_PACKAGES.len());
    }

    #[test]
    fn skipped_tests_are_named_with_their_reason() {
        let report = "<testcase name=\"quiet\" classname=\"x\"/>\n\
                      <testcase name=\"needs_root\" classname=\"x\">\n\
                      <system-out>\nrunning 1 test\nskipped: not root\n</system-out>\n";
        assert_eq!(
            skipped(report),
            [("needs_root".to_owned(), "not root".to_owned())]
        );
    }
}
