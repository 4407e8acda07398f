//! Where things are.

use std::path::{Path, PathBuf};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// Tools that belong to this clone.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// The kernel programs' objects, as the agent's build embeds them.
pub(crate) fn objects() -> PathBuf {
    root().join("target/bpf")
}
