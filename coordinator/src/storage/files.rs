//! Looks the log's files over before they are opened: what a crash left of its last record is cut
//! off, any other damage is refused.
//!
//! Invariants: a record is one write and was on disk before the next one began. So a broken record
//! that nothing follows was never told to anybody, and one that whole records follow was: without it
//! this replica would forget what it acknowledged.
//!
//! A file is a header and records; a record is `length << 8 | compression`, the offset of its items
//! (both big-endian `u64`), entries, items. Entries and items each end with their CRC-32, that of the
//! items is signed with the file's number.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use super::StorageError;

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const SIGNED_VERSION: u64 = 2;
/// Magic, version, alignment.
const FILE_HEADER: usize = MAGIC.len() + 16;
const RECORD_HEADER: usize = 16;
const CRC: usize = 4;

/// # Errors
/// [`StorageError::Damaged`] when a record in the middle is broken, or a file cannot be read.
pub(super) fn mend(dir: &Path) -> Result<(), StorageError> {
    for kind in ["raftlog", "rewrite"] {
        let files = files(dir, kind).map_err(|source| StorageError::Directory {
            path: dir.to_owned(),
            source,
        })?;
        let newest = files.last().map(|(number, _)| *number);
        for (number, path) in files {
            let bytes = std::fs::read(&path).map_err(|source| StorageError::Directory {
                path: path.clone(),
                source,
            })?;
            match look(&bytes, number) {
                Found::Whole => {}
                Found::Broken { at, followed: false } if Some(number) == newest => {
                    cut(&path, at, bytes.len())?
                }
                Found::Broken { at, .. } => return Err(StorageError::Damaged { path, at }),
            }
        }
    }
    Ok(())
}

fn files(dir: &Path, kind: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|ext| ext == kind)) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

fn cut(path: &Path, at: usize, len: usize) -> Result<(), StorageError> {
    tracing::warn!(path = %path.display(), at, bytes = len - at, "cut off what a crash left of a record");
    let cut = || {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(at as u64)?;
        file.sync_all()
    };
    cut().map_err(|source| StorageError::Directory {
        path: path.to_owned(),
        source,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Whole,
    Broken {
        at: usize,
        /// Whole records come after it.
        followed: bool,
    },
}

fn look(bytes: &[u8], number: u64) -> Found {
    // raft-engine signs with the low half.
    let signature = number as u32;
    let signed = bytes
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.first_chunk())
        .is_some_and(|version| u64::from_be_bytes(*version) == SIGNED_VERSION);
    let mut at = if signed && bytes.len() >= FILE_HEADER {
        FILE_HEADER
    } else {
        0
    };
    if at > 0 {
        while let Some(len) = record(&bytes[at..], signature) {
            at += len;
        }
        // Room that was taken ahead holds zeros.
        if bytes[at..].iter().all(|byte| *byte == 0) {
            return Found::Whole;
        }
    }
    let followed = (at + 1..bytes.len()).any(|next| record(&bytes[next..], signature).is_some());
    Found::Broken { at, followed }
}

/// The length of the whole record that the bytes begin with.
fn record(bytes: &[u8], signature: u32) -> Option<usize> {
    let word = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let (first, items) = (word(0)?, usize::try_from(word(8)?).ok()?);
    let (len, compression) = (usize::try_from(first >> 8).ok()?, first & 0xff);
    if compression > 1 || items < RECORD_HEADER || items > len || len > bytes.len() {
        return None;
    }
    let entries = &bytes[RECORD_HEADER..items];
    let whole = (entries.is_empty() || is_whole(entries, 0)) && is_whole(&bytes[items..len], signature);
    whole.then_some(len)
}

fn is_whole(block: &[u8], signature: u32) -> bool {
    block.split_last_chunk::<CRC>().is_some_and(|(content, crc)| {
        !content.is_empty() && crc32fast::hash(content) == u32::from_le_bytes(*crc) ^ signature
    })
}

/// Whether the bytes are a file's header and whole records.
#[cfg(test)]
pub(super) fn is_whole_until(bytes: &[u8], number: u64) -> bool {
    look(bytes, number) == Found::Whole && bytes.last() != Some(&0) || bytes.len() == FILE_HEADER
}
