//! Asks a workload whether it is well.

use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use understudy_common::spec::Health;

/// One question's limit.
const CHECK_MAX: Duration = Duration::from_millis(1_000);
/// Pause between questions while the workload starts.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error("no TCP connection to {address}")]
    Tcp {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the health check {program} cannot be run")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("the health check {program} ended with {status}")]
    Exit {
        program: String,
        status: std::process::ExitStatus,
    },
    #[error("no answer within {} ms", CHECK_MAX.as_millis())]
    TimedOut,
    #[error("no health check is declared")]
    Undeclared,
}

/// Asks once.
///
/// # Errors
/// [`HealthError`]: why the workload does not count as well.
pub async fn check(health: &Health) -> Result<(), HealthError> {
    let asked = async {
        match health {
            Health::Tcp(address) => {
                TcpStream::connect(address)
                    .await
                    .map(drop)
                    .map_err(|source| HealthError::Tcp {
                        address: *address,
                        source,
                    })
            }
            Health::Exec(command) => exec(command).await,
        }
    };
    timeout(CHECK_MAX, asked)
        .await
        .unwrap_or(Err(HealthError::TimedOut))
}

/// Asks until the workload is well.
///
/// # Errors
/// The last [`HealthError`] when `limit` passed first.
pub async fn wait_healthy(health: &Health, limit: Duration) -> Result<(), HealthError> {
    let deadline = Instant::now() + limit;
    loop {
        match check(health).await {
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(PAUSE).await,
            Ok(()) => return Ok(()),
        }
    }
}

async fn exec(command: &[String]) -> Result<(), HealthError> {
    let (program, arguments) = command.split_first().ok_or(HealthError::Undeclared)?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|source| HealthError::Run {
            program: program.clone(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(HealthError::Exit {
            program: program.clone(),
            status,
        })
    }
}
