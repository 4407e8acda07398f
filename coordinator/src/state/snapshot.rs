//! Snapshots: the whole state as one rkyv archive, read with checked access.

use understudy_common::wire::{self, DecodeError};

use super::State;

impl State {
    pub fn to_snapshot(&self) -> Vec<u8> {
        wire::encode(self).into_vec()
    }

    /// # Errors
    /// [`DecodeError`] when the bytes are no snapshot of this version.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
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
