//! `cargo xtask build-ebpf`: the kernel programs, compiled for `bpfel-unknown-none`.

use std::env::{self, consts::ARCH};
use std::fs;

use anyhow::{Context, Result};

use crate::repo;
use crate::setup::{self, Toolchain};
use crate::shell::{run as run_command, say};

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["telemetry", "dirty", "gate"];

pub(crate) fn run() -> Result<()> {
    setup::run()?;
    build()
}

pub(crate) fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let source = repo::root().join("agent-ebpf");
    let target = source.join("target");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let path = env::var("PATH").unwrap_or_default();
    say("ebpf", "building the kernel programs");
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(&source)
        .args([
            "build",
            "--quiet",
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("PATH", format!("{}:{path}", setup::linker(&toolchain).display()));
    run_command(&mut cargo).context("building the kernel programs")?;
    fs::create_dir_all(repo::objects())?;
    for name in OBJECTS {
        let built = target.join(TARGET).join("release").join(name);
        let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
        let object = repo::objects().join(name);
        // A rewrite would make cargo build the agent again.
        if fs::read(&object).ok().as_ref() != Some(&bytes) {
            fs::write(&object, bytes)?;
        }
    }
    Ok(())
}
