//! Snapshots: a version, then the whole state as one rkyv archive, read with checked access.

use understudy_common::wire::{self, DecodeError};

use super::State;

/// The layout of snapshots. It rises when [`State`] or anything in it changes; the reader of the one
/// before stays until no cluster can hold such a snapshot any more.
pub const SNAPSHOT_VERSION: u32 = 1;
const MAGIC: &[u8; 12] = b"understudy-s";
const HEADER: usize = MAGIC.len() + size_of::<u32>();

impl State {
    pub fn to_snapshot(&self) -> Vec<u8> {
        let archive = wire::encode(self);
        let mut bytes = Vec::with_capacity(HEADER + archive.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&archive);
        bytes
    }

    /// The version of a snapshot's layout, if the bytes begin like one.
    pub fn snapshot_version(bytes: &[u8]) -> Option<u32> {
        let version = bytes.strip_prefix(MAGIC)?.first_chunk()?;
        Some(u32::from_le_bytes(*version))
    }

    /// # Errors
    /// [`DecodeError`] when the bytes are no snapshot that this version reads.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, DecodeError> {
        let refuse = |why: String| DecodeError {
            expected: "snapshot",
            why,
        };
        let version =
            Self::snapshot_version(bytes).ok_or_else(|| refuse("it does not begin like one".to_owned()))?;
        if version != SNAPSHOT_VERSION {
            return Err(refuse(format!(
                "it has version {version}, and this program reads version {SNAPSHOT_VERSION}"
            )));
        }
        wire::decode(&bytes[HEADER..])
    }

    /// Equal for replicas that are equal: FNV-1a over the archive.
    pub fn digest(&self) -> u64 {
        wire::encode(self)
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    }
}
