//! The operator: asks the coordinators by the CLI, as a person would.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{Host, wait_for};

/// May be cloned into threads.
#[derive(Clone)]
pub struct Operator {
    from: Arc<Host>,
    program: PathBuf,
    cluster: PathBuf,
}

impl Operator {
    pub(super) fn new(from: Arc<Host>, program: PathBuf, cluster: PathBuf) -> Self {
        Self {
            from,
            program,
            cluster,
        }
    }

    /// Where the operator sits.
    pub fn host(&self) -> &Arc<Host> {
        &self.from
    }

    pub(super) fn program(&self) -> &PathBuf {
        &self.program
    }

    /// What `understudy WORDS` prints; an exit status other than 0 is an error with what it said.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.from.command(&self.program)?;
        command.arg("--cluster").arg(&self.cluster).args(words);
        let output = command.output().context("starting `understudy`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("understudy {}: {said}", words.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same with `--json`, read.
    pub fn document(&self, words: &[&str]) -> Result<Value> {
        let text = self.ask(&[words, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("understudy {} --json", words.join(" ")))
    }

    /// Waits for a condition on what `understudy status` says.
    pub fn until<T>(
        &self,
        what: &str,
        at_most: Duration,
        mut condition: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = Value::Null;
        let waited = wait_for(what, at_most, || {
            last = self.document(&["status"]).ok()?;
            condition(&last)
        });
        waited.with_context(|| format!("the last status was {last}"))
    }
}
