//! The algebra of generations: paths, manifests, operations, differences, and the frames that carry them.
//!
//! Invariants: nothing here does I/O. Everything decoded from a peer passes [`Manifest::apply`] or
//! [`RelPath::check`] before it names a file. Applying `diff(a, b)` to `a` gives `b`, always.

mod blocks;
mod diff;
mod entries;
mod frame;
mod manifest;
mod path;

pub use blocks::Blocks;
pub use diff::{Change, diff};
pub use frame::{Answer, Frame, HISTORY_MAX, Identifiers, OPS_BYTES_TARGET, PageEntry, pages};
pub use manifest::{
    Applied, Body, Digest, Entry, FILE_BYTES_MAX, Manifest, Meta, Node, Op, OpError, XATTRS_BYTES_MAX,
    Xattrs, zeros,
};
pub use path::{PathError, ROOTS_MAX, RelPath};

/// Bytes in a block; the same as a page of the change tracker.
pub const BLOCK: u64 = 4096;

/// BLAKE3 of one block's bytes, cut off at 16 bytes. The last block of a file may be short.
pub type BlockHash = [u8; 16];

/// Stands in a manifest for a block of which the content is not known; equal to no real hash.
pub const NO_HASH: BlockHash = [0; 16];

pub fn block_hash(bytes: &[u8]) -> BlockHash {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

/// Hashes of consecutive blocks.
pub fn block_hashes(bytes: &[u8]) -> impl Iterator<Item = BlockHash> + '_ {
    bytes.chunks(BLOCK as usize).map(block_hash)
}
