//! `understudy-load` as a child that obeys lines on its standard input and answers each with one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use understudy_testbed::wait_for;

const END_MAX: Duration = Duration::from_secs(60);

/// Killed when dropped.
pub(super) struct Program {
    child: Child,
    /// None once it was told to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            orders: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().context("the output of a child")?),
            child,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn order<T: DeserializeOwned>(&mut self, order: &str) -> Result<T> {
        let orders = self.orders.as_mut().context("it was told to end")?;
        writeln!(orders, "{order}").context("it ended")?;
        self.answer().with_context(|| order.to_owned())
    }

    pub(super) fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the process ended");
        serde_json::from_str(&line).with_context(|| line.trim().to_owned())
    }

    /// By its own hand, with everything detached.
    pub(super) fn end(mut self) -> Result<()> {
        self.orders = None;
        let ended = wait_for("a program to end", END_MAX, || {
            self.child.try_wait().ok().flatten()
        })?;
        ensure!(ended.success(), "the program failed: {ended}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
