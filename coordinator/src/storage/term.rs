//! The highest term that this coordinator was part of, apart from the log.
//!
//! raft-engine cuts off what it cannot read at the end of its newest file, down to an empty file. A
//! replica that lost its vote that way could vote twice in one term: this file tells it that it did.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use super::StorageError;

const NAME: &str = "term";

/// 0 where nothing was ever written.
pub(super) fn read(data_dir: &Path) -> Result<u64, StorageError> {
    let path = data_dir.join(NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(StorageError::Term { path, source }),
    };
    text.trim().parse().map_err(|_| {
        let source = std::io::Error::new(ErrorKind::InvalidData, "not a number");
        StorageError::Term { path, source }
    })
}

/// Durable when it returns. Called after the log has the term, so that a crash in between leaves a
/// term that is too low, never one that is too high.
pub(super) fn write(data_dir: &Path, term: u64) -> Result<(), StorageError> {
    let path = data_dir.join(NAME);
    let replace = || {
        let fresh = data_dir.join("term.new");
        let mut file = File::create(&fresh)?;
        file.write_all(format!("{term}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(data_dir)?.sync_all()
    };
    replace().map_err(|source| StorageError::Term {
        path: path.clone(),
        source,
    })
}
