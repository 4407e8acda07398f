//! Runs the commands that make a running workload refuse writes, and take them again.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long one command may take. Refusing writes has to be done within what is left of a lease.
const SWITCH_MAX: Duration = Duration::from_millis(1_000);

#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    #[error("{0} cannot be run")]
    Run(String, #[source] std::io::Error),
    #[error("{0} ended with {1}")]
    Exit(String, ExitStatus),
    #[error("{program} took longer than {} ms", SWITCH_MAX.as_millis())]
    TimedOut { program: String },
    #[error("no command is declared for it")]
    Undeclared,
}

/// # Errors
/// [`SwitchError`]: what the workload does with writes is not known then.
pub async fn switch(command: &[String]) -> Result<(), SwitchError> {
    let (program, arguments) = command.split_first().ok_or(SwitchError::Undeclared)?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(SWITCH_MAX, status).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(SwitchError::Exit(program.clone(), status)),
        Ok(Err(error)) => Err(SwitchError::Run(program.clone(), error)),
        Err(_) => Err(SwitchError::TimedOut {
            program: program.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_fails_or_is_missing_switches_nothing() {
        let check = async |command: &[&str]| {
            let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
            switch(&command).await
        };
        assert!(check(&["/bin/true"]).await.is_ok());
        assert!(matches!(check(&["/bin/false"]).await, Err(SwitchError::Exit(..))));
        assert!(matches!(
            check(&["/nowhere/program"]).await,
            Err(SwitchError::Run(..))
        ));
        assert!(matches!(
            check(&["/bin/sleep", "60"]).await,
            Err(SwitchError::TimedOut { .. })
        ));
        assert!(matches!(check(&[]).await, Err(SwitchError::Undeclared)));
    }
}
