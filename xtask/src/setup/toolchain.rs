//! The compiler for the kernel programs. It needs unstable features and the sources of `core`:
//! either rustup's nightly with `rust-src`, or the complete set in Debian's security suite.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages;
use crate::shell::{ask, command, say, succeeds};

/// LLVM versions that the pinned bpf-linker can be built with.
const LLVM_SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Set to `rustup` or `debian` to insist on one.
const CHOICE: &str = "UNDERSTUDY_EBPF_TOOLCHAIN";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Rustup,
    Debian,
}

/// A compiler, and the major version of the LLVM inside it, which the linker's must equal.
pub(crate) struct Toolchain {
    source: Source,
    pub(super) llvm: u32,
}

impl Toolchain {
    /// Finds out which one works here and installs what it lacks.
    pub(super) fn provide() -> Result<Self> {
        let found = match choice()? {
            Some(Source::Rustup) => Self::rustup().or_else(Self::fetch_nightly),
            Some(Source::Debian) => Self::debian(),
            None => Self::rustup().or_else(Self::debian).or_else(Self::fetch_nightly),
        };
        let found = found.context(
            "no compiler for the kernel programs: neither a nightly toolchain with rust-src and the \
             LLVM that goes with it (rustup toolchain install nightly -c rust-src), nor Debian's \
             rustc-web, cargo-web and rust-web-src",
        )?;
        packages::install(&[&found.llvm_package(), "libzstd-dev", "zlib1g-dev"])?;
        Ok(found)
    }

    /// Without installing anything.
    pub(crate) fn find() -> Result<Self> {
        let found = match choice()? {
            Some(Source::Rustup) => Self::rustup(),
            Some(Source::Debian) => Self::installed_debian(),
            None => Self::rustup().or_else(Self::installed_debian),
        };
        found.context("the compiler for the kernel programs is missing: run `cargo xtask setup`")
    }

    fn rustup() -> Option<Self> {
        let sysroot = ask(nightly("rustc").args(["--print", "sysroot"]))?;
        if !Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
        {
            return None;
        }
        Self::usable(Source::Rustup, &ask(nightly("rustc").arg("-vV"))?)
    }

    fn debian() -> Option<Self> {
        if Self::installed_debian().is_none() {
            if !packages::available(DEBIAN_PACKAGES[0]) {
                return None;
            }
            if let Err(why) = packages::install(&DEBIAN_PACKAGES) {
                say("toolchain", format!("Debian's set cannot be installed: {why:#}"));
            }
        }
        Self::installed_debian()
    }

    fn installed_debian() -> Option<Self> {
        let sources = Path::new("/usr/lib/rustlib/src/rust/library/core");
        if !sources.is_dir() || !Path::new(DEBIAN_CARGO).exists() {
            return None;
        }
        Self::usable(Source::Debian, &ask(command(DEBIAN_RUSTC).arg("-vV"))?)
    }

    fn fetch_nightly() -> Option<Self> {
        say("toolchain", "fetching rustup's nightly with rust-src");
        let mut rustup = command("rustup");
        rustup.args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "-c",
            "rust-src",
        ]);
        succeeds(&mut rustup).ok()?.then(Self::rustup)?
    }

    fn usable(source: Source, version: &str) -> Option<Self> {
        let found = Self {
            source,
            llvm: llvm_major(version)?,
        };
        let usable = LLVM_SUPPORTED.contains(&found.llvm)
            && (found.llvm_prefix_exists() || packages::available(&found.llvm_package()));
        usable.then_some(found)
    }

    fn llvm_package(&self) -> String {
        format!("llvm-{}-dev", self.llvm)
    }

    pub(super) fn llvm_prefix(&self) -> String {
        format!("/usr/lib/llvm-{}", self.llvm)
    }

    fn llvm_prefix_exists(&self) -> bool {
        Path::new(&self.llvm_prefix()).join("include/llvm").is_dir()
    }

    /// `cargo` of this toolchain, free of what the cargo that runs us put into the environment.
    pub(crate) fn cargo(&self) -> Command {
        match self.source {
            Source::Rustup => nightly("cargo"),
            Source::Debian => {
                let mut cargo = without_outer_cargo(DEBIAN_CARGO);
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }
}

fn choice() -> Result<Option<Source>> {
    match env::var(CHOICE).as_deref() {
        Err(_) => Ok(None),
        Ok("rustup") => Ok(Some(Source::Rustup)),
        Ok("debian") => Ok(Some(Source::Debian)),
        Ok(other) => bail!("{CHOICE} is `{other}`; it may be `rustup` or `debian`"),
    }
}

fn nightly(program: &str) -> Command {
    let mut rustup = without_outer_cargo("rustup");
    rustup.args(["run", "nightly", program]);
    rustup
}

fn without_outer_cargo(program: &str) -> Command {
    let mut command = command(program);
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Out of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_llvm_is_the_compilers() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(llvm_major(said), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
