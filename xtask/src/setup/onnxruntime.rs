//! The ONNX Runtime library, out of the wheel on PyPI, pinned by version and hash.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages;
use crate::repo;
use crate::shell::{ask, command, run, say};

const VERSION: &str = "1.31.1";
/// Of `libonnxruntime.so` in the x86_64 wheel for CPython 3.11, which is asked for whatever Python
/// runs here, so that one hash is right everywhere.
const SHA256: &str = "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3";
const PLATFORM: &str = "manylinux_2_28_x86_64";

fn directory() -> PathBuf {
    repo::tools().join("onnxruntime")
}

pub(crate) fn library() -> PathBuf {
    directory().join("libonnxruntime.so")
}

pub(super) fn install() -> Result<()> {
    let pin = format!("{VERSION} {SHA256}");
    let pinned = directory().join("PIN");
    if library().is_file() && fs::read_to_string(&pinned).is_ok_and(|text| text == pin) {
        return Ok(());
    }
    if ARCH != "x86_64" {
        bail!("no ONNX Runtime is pinned for {ARCH}; set ORT_DYLIB_PATH to one of version {VERSION}");
    }
    say("onnxruntime", format!("fetching {VERSION} (24 MB)"));
    let wheel = repo::tools().join("wheel");
    let _ = fs::remove_dir_all(&wheel);
    fs::create_dir_all(&wheel)?;
    let python = python_with_pip()?;
    run(command(python)
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .args(["--python-version", "3.11", "--platform", PLATFORM])
        .arg(format!("onnxruntime=={VERSION}"))
        .arg("--dest")
        .arg(&wheel))?;
    let file = fs::read_dir(&wheel)?.next().context("pip left no wheel")??.path();
    run(command(python)
        .args(["-m", "zipfile", "-e"])
        .arg(&file)
        .arg(&wheel))?;
    let unpacked = wheel.join(format!("onnxruntime/capi/libonnxruntime.so.{VERSION}"));
    check_hash(&unpacked)?;
    fs::create_dir_all(directory())?;
    fs::rename(&unpacked, library())?;
    fs::write(pinned, pin)?;
    fs::remove_dir_all(&wheel)?;
    Ok(())
}

fn check_hash(file: &Path) -> Result<()> {
    let said = ask(command("sha256sum").arg(file)).context("sha256sum failed")?;
    if said.split(' ').next() != Some(SHA256) {
        bail!("{} is not what is pinned: {said}, not {SHA256}", file.display());
    }
    Ok(())
}

/// The Python of the user's choice may lack pip; the distribution's can be given it.
fn python_with_pip() -> Result<&'static str> {
    let has_pip = |python: &&str| ask(command(*python).args(["-m", "pip", "--version"])).is_some();
    let candidates = ["python3", "/usr/bin/python3"];
    if let Some(python) = candidates.into_iter().find(has_pip) {
        return Ok(python);
    }
    packages::install(&["python3-pip"])?;
    let distribution = "/usr/bin/python3";
    if !has_pip(&distribution) {
        bail!("no Python with pip: install the package python3-pip");
    }
    Ok(distribution)
}
