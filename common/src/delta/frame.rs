//! Frames of a `Sync` stream, and the identifiers that tell two copies' histories apart.
//!
//! The primary says `Hello`; the shadow answers `State` or `Refused`. When the states differ the
//! primary asks for the shadow's manifest. Then generations follow: `Begin`, `Ops`…, `Seal`; each
//! seal is answered by `Sealed` once it is on the shadow's disk.

use super::{Digest, Entry, Op, RelPath};
use crate::id::{Epoch, GenerationId, ServiceId};
use crate::wire::CopyState;

/// Content bytes after which a frame of operations is closed; far below `SYNC_FRAME_MAX`.
pub const OPS_BYTES_TARGET: usize = 1 << 20;
/// Generations of earlier epochs that a copy remembers.
pub const HISTORY_MAX: usize = 16;
/// Hashes in a page; what is not a hash counts as so many.
const PAGE_HASHES_TARGET: usize = 64 << 10;
const HASH_BYTES: usize = size_of::<super::BlockHash>();

/// Where a copy's data comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Identifiers {
    /// The generation that the copy is at, or was last known to be at.
    pub current: Option<GenerationId>,
    /// The generation at which the copy's epoch began.
    pub base: Option<GenerationId>,
    /// Last generations of earlier epochs, newest first, at most [`HISTORY_MAX`].
    pub history: Vec<GenerationId>,
}

impl Identifiers {
    /// Moves on to `generation`; a new epoch pushes the old one into the history.
    pub fn advance(&mut self, generation: GenerationId) {
        if let Some(current) = self.current
            && current.epoch != generation.epoch
        {
            self.history.insert(0, current);
            self.history.truncate(HISTORY_MAX);
            self.base = Some(current);
        }
        self.current = Some(generation);
    }
}

/// Primary → shadow.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Frame {
    Hello {
        service: ServiceId,
        epoch: Epoch,
        identifiers: Identifiers,
    },
    /// The shadow's manifest is wanted, in pages.
    Exchange,
    /// Operations on top of `base`, the digest of the shadow's manifest, follow.
    Begin {
        generation: GenerationId,
        base: Digest,
    },
    Ops(Vec<Op>),
    /// All operations of the generation are sent; `digest` is that of the manifest that they give,
    /// `generation` may be newer than the one begun.
    Seal {
        generation: GenerationId,
        digest: Digest,
    },
}

/// Shadow → primary.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Answer {
    State {
        identifiers: Identifiers,
        digest: Digest,
        copy: CopyState,
    },
    Page {
        entries: Vec<PageEntry>,
        last: bool,
    },
    Sealed {
        generation: GenerationId,
    },
    Refused {
        why: String,
    },
}

/// A part of a manifest. A file with many blocks spans several: the hashes are concatenated.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PageEntry {
    pub path: RelPath,
    pub entry: Entry,
}

/// Cuts a manifest into pages that fit a frame.
pub fn pages(manifest: &super::Manifest) -> Vec<Answer> {
    use super::Body;
    let (mut pages, mut entries, mut size) = (Vec::new(), Vec::new(), 0);
    let mut push = |path: &RelPath, entry: Entry, cost: usize| {
        let xattrs = entry.meta.xattrs_bytes();
        entries.push(PageEntry {
            path: path.clone(),
            entry,
        });
        size += cost + 16 + xattrs.div_ceil(HASH_BYTES);
        if size >= PAGE_HASHES_TARGET {
            size = 0;
            pages.push(Answer::Page {
                entries: std::mem::take(&mut entries),
                last: false,
            });
        }
    };
    for (path, entry) in manifest.iter() {
        match &entry.body {
            Body::File { len, blocks } if !blocks.is_empty() => {
                for start in (0..blocks.len()).step_by(PAGE_HASHES_TARGET) {
                    let end = blocks.len().min(start + PAGE_HASHES_TARGET);
                    let body = Body::File {
                        len: *len,
                        blocks: blocks.part(start..end),
                    };
                    push(
                        path,
                        Entry {
                            meta: entry.meta.clone(),
                            body,
                        },
                        end - start,
                    );
                }
            }
            _ => push(path, entry.clone(), 0),
        }
    }
    pages.push(Answer::Page { entries, last: true });
    pages
}

impl super::Manifest {
    /// Adds one page; pages of one manifest must come in order.
    ///
    /// # Errors
    /// [`super::PathError`] for a path that leaves its root.
    pub fn add_page(&mut self, entries: Vec<PageEntry>) -> Result<(), super::PathError> {
        use super::Body;
        for PageEntry { path, entry } in entries {
            path.check()?;
            match (self.get_mut(&path), entry) {
                (
                    Some(Entry {
                        body: Body::File { blocks: have, .. },
                        ..
                    }),
                    Entry {
                        body: Body::File { blocks, .. },
                        ..
                    },
                ) => have.extend(blocks.iter()),
                (_, entry) => {
                    self.insert(path.clone(), entry);
                }
            }
            // A count of hashes that does not fit the length would break the arithmetic of `resize`.
            if let Some(Body::File { len, blocks }) = self.get(&path).map(|entry| &entry.body)
                && blocks.len() as u64 > len.div_ceil(super::BLOCK)
            {
                return Err(super::PathError {
                    path: path.to_string(),
                    why: "more hashes than blocks",
                });
            }
        }
        Ok(())
    }

    /// Whether every file has as many hashes as blocks; must hold after the last page.
    pub fn is_complete(&self) -> bool {
        self.iter().all(|(_, entry)| match &entry.body {
            super::Body::File { len, blocks } => blocks.len() as u64 == len.div_ceil(super::BLOCK),
            _ => true,
        })
    }
}
