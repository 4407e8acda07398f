//! Persist before send: the one place where a replica's outputs leave it.

use understudy_common::units::BootTime;

use super::{Storage, StorageError};
use crate::replica::{Output, Replica};

/// Delivers what may leave now, makes durable what must be, and so on until nothing is left.
///
/// # Errors
/// [`StorageError`]: nothing that depended on the failed write was delivered; stop the process.
pub fn drain(
    replica: &mut Replica,
    storage: &mut Storage,
    now: impl Fn() -> BootTime,
    mut deliver: impl FnMut(Output),
) -> Result<(), StorageError> {
    loop {
        while let Some(output) = replica.poll_output() {
            deliver(output);
        }
        let Some(persist) = replica.poll_persist() else {
            return Ok(());
        };
        storage.persist(&persist)?;
        replica.handle_persisted(now());
    }
}
