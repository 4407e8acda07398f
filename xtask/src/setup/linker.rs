//! bpf-linker, built against the compiler's own LLVM.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Toolchain;
use crate::repo;
use crate::shell::{cargo, run, say};

const VERSION: &str = "0.13.0";

/// The directory that holds the program, for PATH. The versions are part of its name, so that
/// another compiler gets another one.
pub(crate) fn linker(toolchain: &Toolchain) -> PathBuf {
    root(toolchain).join("bin")
}

fn root(toolchain: &Toolchain) -> PathBuf {
    repo::tools().join(format!("bpf-linker-{VERSION}-llvm-{}", toolchain.llvm))
}

pub(super) fn install(toolchain: &Toolchain) -> Result<()> {
    if linker(toolchain).join("bpf-linker").is_file() {
        return Ok(());
    }
    say(
        "bpf-linker",
        format!("building {VERSION} for LLVM {} (a minute)", toolchain.llvm),
    );
    let prefix = toolchain.llvm_prefix();
    let path = std::env::var("PATH").unwrap_or_default();
    let scratch = repo::tools().join("build");
    let mut install = cargo();
    install
        .args([
            "install",
            "--quiet",
            "bpf-linker",
            "--version",
            VERSION,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", toolchain.llvm)])
        .arg("--root")
        .arg(root(toolchain))
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", format!("{prefix}/bin:{path}"))
        .env("CARGO_TARGET_DIR", &scratch);
    run(&mut install).context("building bpf-linker")?;
    fs::remove_dir_all(&scratch).context("removing the linker's build directory")
}
