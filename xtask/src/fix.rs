//! `cargo xtask fix`: the only command that rewrites sources.

use anyhow::Result;

use crate::ebpf;
use crate::shell::{cargo, run as run_command};

pub(crate) fn run() -> Result<()> {
    ebpf::run()?;
    run_command(cargo().args(["clippy", "--fix", "--allow-dirty", "--workspace", "--all-targets"]))?;
    run_command(cargo().args(["fmt", "--all"]))?;
    run_command(cargo().args(["fmt", "--manifest-path", "agent-ebpf/Cargo.toml"]))
}
