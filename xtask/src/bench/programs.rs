//! The programs that a bench runs.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::repo;
use crate::shell::{cargo, run};

/// Where cargo left them.
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// As people install them.
    pub(super) fn released() -> Result<Self> {
        run(cargo().args(["build", "--quiet", "--release", "--bins"]).args([
            "-p",
            "understudy-coordinator",
            "-p",
            "understudy-load",
        ]))?;
        Ok(Self::released_before())
    }

    /// Where they were left by a build that succeeded.
    pub(super) fn released_before() -> Self {
        Self(repo::root().join("target/release"))
    }

    /// As the tests build them, so that nothing is compiled twice.
    pub(super) fn as_tested() -> Result<Self> {
        run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
        Self::found()
    }

    /// Those of the last build for tests.
    pub(crate) fn found() -> Result<Self> {
        let programs = Self(repo::root().join("target/debug"));
        for name in ["understudy", "understudy-coordinator", "understudy-load"] {
            let path = programs.path(name);
            ensure!(path.is_file(), "{} is not built", path.display());
        }
        Ok(programs)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}
