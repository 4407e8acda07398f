//! Keeps an endpoint's certificate from running out.
//!
//! Invariants: a new certificate is on disk, as a whole, before it is shown, or it is asked for again.
//! When is [`understudy_common::renewal`]'s.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use understudy_common::renewal::Renewal;
use understudy_common::wire::{Refusal, Response};

use crate::{Endpoint, TransportError, file};

/// The wall clock may be set while nothing happens: it is looked at this often.
const LOOK_MAX: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 86_400_000;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the answer makes no sense")]
    Answer,
    #[error("nobody could be asked")]
    Nobody,
    #[error("it cannot be kept in {}: {source}; it counts until this program ends", path.display())]
    Keep { path: PathBuf, source: io::Error },
}

/// The chain in the answer to a [`Request::RenewCertificate`](understudy_common::wire::Request).
///
/// # Errors
/// [`RenewalError::Refused`], or [`RenewalError::Answer`] when it is something else.
pub fn chain_in(response: Response) -> Result<String, RenewalError> {
    match response {
        Response::Certificate(chain) => Ok(chain),
        Response::Refused(refusal) => Err(refusal.into()),
        _ => Err(RenewalError::Answer),
    }
}

/// Renews the endpoint's certificate in its last third, in the endpoint and in `path`, for as long as
/// the future is polled. `ask` gets a new chain, PEM, for the same principal, enrolment and key.
pub async fn keep_renewed<A, F>(endpoint: Endpoint, path: PathBuf, ask: A)
where
    A: Fn() -> F,
    F: Future<Output = Result<String, RenewalError>>,
{
    let Some(credentials) = endpoint.credentials() else {
        return;
    };
    let lifetime = || credentials.borrow().certificate().lifetime;
    let mut renewal = Renewal::of(lifetime(), chance());
    loop {
        let wait = renewal.due_ms().saturating_sub(wall_ms());
        if wait > 0 {
            let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
            tokio::time::sleep(wait.min(LOOK_MAX)).await;
            continue;
        }
        let renewed = match ask().await {
            Ok(chain) => take(&endpoint, &path, &chain).await,
            Err(error) => Err(error),
        };
        let now = wall_ms();
        match renewed {
            Ok(()) => {
                renewal = Renewal::of(lifetime(), chance());
                let days = renewal.left_ms(now) / DAY_MS;
                tracing::info!(days, "the certificate is renewed");
            }
            Err(error) if renewal.failed(now, chance()) => {
                let left = left(renewal.left_ms(now));
                tracing::warn!(left, %error, "the certificate cannot be renewed; it is tried again and again");
            }
            Err(error) => tracing::info!(%error, "the certificate is not renewed yet"),
        }
    }
}

/// Checks the chain, writes it, and shows it from then on.
async fn take(endpoint: &Endpoint, path: &Path, chain: &str) -> Result<(), RenewalError> {
    let current = endpoint
        .credentials()
        .ok_or(RenewalError::Nobody)?
        .borrow()
        .clone();
    let next = current
        .with_chain(chain.as_bytes())
        .map_err(TransportError::from)?;
    endpoint.check_renewal(&next)?;
    let (into, chain) = (path.to_owned(), chain.to_owned());
    let written = tokio::task::spawn_blocking(move || file::replace(&into, chain.as_bytes()))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    // Also when it could not be written: better until the end of this program than not at all.
    endpoint.renew(&next)?;
    written.map_err(|source| RenewalError::Keep {
        path: path.to_owned(),
        source,
    })
}

fn left(ms: i64) -> String {
    match ms {
        ..=0 => "none: it has ended, and no new link will be accepted".to_owned(),
        1..DAY_MS => format!("{} s", ms / 1_000),
        _ => format!("{} days", ms / DAY_MS),
    }
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// 0 to 1.
fn chance() -> f64 {
    (RandomState::new().build_hasher().finish() % 1_000) as f64 / 1_000.0
}
