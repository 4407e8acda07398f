//! `cargo xtask setup`: from a fresh Debian machine with rustup's stable Rust to one that builds
//! and tests everything. Every step looks first and does only what is missing.

mod linker;
mod onnxruntime;
mod packages;
mod toolchain;

use anyhow::Result;

pub(crate) use linker::linker;
pub(crate) use packages::install;
pub(crate) use toolchain::Toolchain;

/// What compiling and the test beds need, by Debian's names.
const PACKAGES: [&str; 17] = [
    "binutils",
    "btrfs-progs",
    "ca-certificates",
    "e2fsprogs",
    "g++",
    "gcc",
    "iproute2",
    "libc6-dev",
    "libfaketime",
    "make",
    "mount",
    "nftables",
    "python3",
    "python3-venv",
    "redis-server",
    "util-linux",
    "xfsprogs",
];

pub(crate) fn run() -> Result<()> {
    packages::install(&PACKAGES)?;
    let toolchain = Toolchain::provide()?;
    linker::install(&toolchain)?;
    onnxruntime::install()
}
