//! Messages between programs, as rkyv archives read with checked access.
//!
//! A stream begins with one [`StreamKind`] byte; then come frames: a little-endian `u32` length
//! and that many bytes of one archive. Wire version: see [`crate::identity::ALPN`].
//!
//! | kind | opened by | frames |
//! |---|---|---|
//! | `Rpc` | either side | one request, one response, both ends finish |
//! | `Raft` | coordinator | uni: raft messages in order, no response |
//! | `Beacon` | agent | uni: delta-encoded beacons in order, no response |
//! | `Sync` | primary's agent | bi: generations one way, acknowledgements the other |
//! | `Snapshot` | coordinator | bi: a head and chunks one way, one response the other |

mod control;
mod order;

pub use control::*;
pub use order::*;

/// Largest frame on every stream kind but `Sync`, answers apart.
pub const CONTROL_FRAME_MAX: usize = 1 << 20;
/// Largest frame on a `Sync` stream.
pub const SYNC_FRAME_MAX: usize = 4 << 20;

/// Largest answer on an `Rpc` stream: a status names every host.
pub const ANSWER_FRAME_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    Rpc = 1,
    Raft = 2,
    Beacon = 3,
    Sync = 4,
    Snapshot = 5,
}

impl StreamKind {
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Rpc,
            2 => Self::Raft,
            3 => Self::Beacon,
            4 => Self::Sync,
            5 => Self::Snapshot,
            _ => return None,
        })
    }

    pub const fn frame_max(self) -> usize {
        match self {
            Self::Sync => SYNC_FRAME_MAX,
            Self::Rpc | Self::Raft | Self::Beacon | Self::Snapshot => CONTROL_FRAME_MAX,
        }
    }

    /// Of frames that go back on a stream of this kind.
    pub const fn answer_max(self) -> usize {
        match self {
            Self::Rpc => ANSWER_FRAME_MAX,
            other => other.frame_max(),
        }
    }
}

/// The bytes are not an archive of the expected type.
#[derive(Debug, thiserror::Error)]
#[error("not a valid {expected}: {why}")]
pub struct DecodeError {
    pub expected: &'static str,
    pub why: String,
}

/// Archives a message.
pub fn encode<T>(message: &T) -> rkyv::util::AlignedVec
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<
                rkyv::util::AlignedVec,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rkyv::rancor::Error,
            >,
        >,
{
    rkyv::to_bytes::<rkyv::rancor::Error>(message)
        .expect("serialising into memory has no failure but exhaustion")
}

/// Checks and reads a message; `bytes` may have any alignment.
///
/// # Errors
/// [`DecodeError`] when the bytes are not a valid archive of `T`.
pub fn decode<T>(bytes: &[u8]) -> Result<T, DecodeError>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
{
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<T, rkyv::rancor::Error>(&aligned).map_err(|error| DecodeError {
        expected: std::any::type_name::<T>(),
        why: error.to_string(),
    })
}
