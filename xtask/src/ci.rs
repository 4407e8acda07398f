//! `cargo xtask ci`: everything that must hold before a change goes in. It changes no file.

use anyhow::Result;

use crate::shell::{ask, cargo, say, succeeds};
use crate::{ebpf, test};

/// Whether all of it held.
pub(crate) fn run() -> Result<bool> {
    ebpf::run()?;
    let mut held = true;
    let mut check = |step: &str, words: &[&str], documented: bool| -> Result<()> {
        say(step, words.join(" "));
        let mut cargo = cargo();
        cargo.args(words);
        if documented {
            cargo.env("RUSTDOCFLAGS", "-D warnings");
        }
        if !succeeds(&mut cargo)? {
            say(step, "FAILED");
            held = false;
        }
        Ok(())
    };
    check("fmt", &["fmt", "--all", "--check"], false)?;
    check(
        "fmt",
        &["fmt", "--manifest-path", "agent-ebpf/Cargo.toml", "--check"],
        false,
    )?;
    check(
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        false,
    )?;
    check("doc", &["doc", "--workspace", "--no-deps", "--quiet"], true)?;
    if ask(cargo().args(["deny", "--version"])).is_some() {
        check("deny", &["deny", "check"], false)?;
    } else {
        say("deny", "skipped: cargo-deny is not installed");
    }
    Ok(test::run(&[])? && held)
}
