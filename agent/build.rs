//! Embeds the kernel programs that `cargo xtask build-ebpf` put under `target/bpf`.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["telemetry", "dirty", "gate"] {
        let object = manifest.join("../target/bpf").join(name);
        println!("cargo::rerun-if-changed={}", object.display());
        if fs::copy(&object, out.join(name)).is_err() {
            println!(
                "cargo::error={} is missing: run `cargo xtask build-ebpf` first",
                object.display()
            );
        }
    }
}
