//! What a generation consists of, and the operations that lead from one to the next.

use std::collections::{BTreeMap, HashSet};

use super::entries::Entries;
use super::{BLOCK, BlockHash, Blocks, NO_HASH, PathError, RelPath, block_hash, block_hashes};

/// Longest file; bounds the memory that one `Truncate` may take.
pub const FILE_BYTES_MAX: u64 = 256 << 30;
const TARGET_BYTES_MAX: usize = 4095;
const ENTRIES_MAX: usize = 4 << 20;

/// BLAKE3 over a whole manifest.
pub type Digest = [u8; 32];

/// Bytes of the names and values of one file's extended attributes; ext4 takes 4 KiB beside the inode.
pub const XATTRS_BYTES_MAX: usize = 128 << 10;

/// Extended attributes: access lists and capabilities are among them.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Meta {
    /// Permission bits only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    pub xattrs: Xattrs,
}

impl Meta {
    /// Bytes of its extended attributes.
    pub fn xattrs_bytes(&self) -> usize {
        let bytes = |(name, value): (&Vec<u8>, &Vec<u8>)| name.len() + value.len();
        self.xattrs.iter().map(bytes).sum()
    }
}

/// What is neither a directory, a file nor a link. A socket is of a running process and is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Node {
    Fifo,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Body {
    Dir,
    File {
        len: u64,
        blocks: Blocks,
    },
    Symlink {
        target: Vec<u8>,
    },
    Node(Node),
    /// Another name of the file at `to`, which is the first of its names in order and holds the content.
    Link {
        to: RelPath,
    },
}

impl Body {
    pub const fn empty_file() -> Self {
        Self::File {
            len: 0,
            blocks: Blocks::new(),
        }
    }

    pub fn same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dir, Self::Dir) | (Self::File { .. }, Self::File { .. }) => true,
            (Self::Symlink { target: a }, Self::Symlink { target: b }) => a == b,
            (Self::Node(a), Self::Node(b)) => a == b,
            (Self::Link { to: a }, Self::Link { to: b }) => a == b,
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Entry {
    pub meta: Meta,
    pub body: Body,
}

impl Entry {
    pub(super) fn digest_into(&self, path: &RelPath, hasher: &mut blake3::Hasher) {
        let Self { meta, body } = self;
        hasher.update(&(path.as_bytes().len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        hasher.update(&meta.mode.to_le_bytes());
        hasher.update(&meta.uid.to_le_bytes());
        hasher.update(&meta.gid.to_le_bytes());
        hasher.update(&meta.mtime_ns.to_le_bytes());
        hasher.update(&(meta.xattrs.len() as u64).to_le_bytes());
        for part in meta.xattrs.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        match body {
            Body::Dir => {
                hasher.update(&[1]);
            }
            Body::File { len, blocks } => {
                hasher.update(&[2]);
                hasher.update(&len.to_le_bytes());
                blocks.digest_into(hasher);
            }
            Body::Symlink { target } => {
                hasher.update(&[3]);
                hasher.update(&(target.len() as u64).to_le_bytes());
                hasher.update(target);
            }
            Body::Link { to } => {
                hasher.update(&[5]);
                hasher.update(&(to.as_bytes().len() as u64).to_le_bytes());
                hasher.update(to.as_bytes());
            }
            Body::Node(node) => {
                let (kind, major, minor) = match *node {
                    Node::Fifo => (0_u32, 0, 0),
                    Node::Char { major, minor } => (1, major, minor),
                    Node::Block { major, minor } => (2, major, minor),
                };
                hasher.update(&[4]);
                for part in [kind, major, minor] {
                    hasher.update(&part.to_le_bytes());
                }
            }
        }
    }
}

/// One step. Paths are checked when it is applied.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Op {
    /// A directory, an empty file, a symlink, a node or a link where nothing is.
    Create {
        path: RelPath,
        meta: Meta,
        body: Body,
    },
    /// Whole blocks; only the last of a file may be short.
    Write {
        path: RelPath,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Shortens a file, or lengthens it with zeros.
    Truncate {
        path: RelPath,
        len: u64,
    },
    Meta {
        path: RelPath,
        meta: Meta,
    },
    /// A file or symlink, to where nothing is.
    Rename {
        from: RelPath,
        to: RelPath,
    },
    /// A file, a symlink or an empty directory.
    Unlink {
        path: RelPath,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{0:?} is not there")]
    Missing(RelPath),
    #[error("{0:?} is there already")]
    Exists(RelPath),
    #[error("{path:?} cannot take this operation: {why}")]
    Kind { path: RelPath, why: &'static str },
    #[error("{path:?}: {len} bytes at {offset} are not whole blocks of the file")]
    Range { path: RelPath, offset: u64, len: u64 },
    #[error("{0:?} is over a limit of this version")]
    Limit(RelPath),
}

/// What [`Manifest::apply`] took in.
pub type Applied = Result<(), OpError>;

/// Every name of a service's paths, with what it holds. A copy costs little and shares what does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: Entries,
}

impl Manifest {
    pub fn get(&self, path: &RelPath) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub fn get_mut(&mut self, path: &RelPath) -> Option<&mut Entry> {
        self.entries.get_mut(path)
    }

    pub fn insert(&mut self, path: RelPath, entry: Entry) -> Option<Entry> {
        self.entries.insert(path, entry)
    }

    pub fn remove(&mut self, path: &RelPath) -> Option<Entry> {
        self.entries.remove(path)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&RelPath, &Entry)> {
        self.entries.iter()
    }

    /// Everything below a directory, without it.
    pub fn below<'a>(&'a self, dir: &RelPath) -> impl Iterator<Item = &'a RelPath> + use<'a> {
        let mut first = dir.as_bytes().to_vec();
        first.push(b'/');
        let prefix = first.clone();
        self.entries
            .from(dir)
            .skip_while(move |path| path.as_bytes() < &first[..])
            .take_while(move |path| path.as_bytes().starts_with(&prefix))
    }

    /// Paths from this one on, in order.
    pub fn from<'a>(&'a self, path: &RelPath) -> impl Iterator<Item = &'a RelPath> + use<'a> {
        self.entries.from(path)
    }

    /// Paths, not in order, that only one of the two has, or of which the entries differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> HashSet<&'a RelPath> {
        self.entries.differences(&other.entries)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        self.entries.digest_into(&mut hasher);
        *hasher.finalize().as_bytes()
    }

    /// Takes one step, or none of it.
    ///
    /// # Errors
    /// [`OpError`] when the step does not fit this manifest.
    pub fn apply(&mut self, op: &Op) -> Applied {
        match op {
            Op::Create { path, meta, body } => {
                self.free(path)?;
                let meta = permissions(path, meta)?;
                match body {
                    Body::File { len, blocks } if *len != 0 || !blocks.is_empty() => {
                        return kind(path, "a new file is empty");
                    }
                    Body::Symlink { target }
                        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) =>
                    {
                        return kind(path, "no target for a symlink");
                    }
                    Body::Link { to } => {
                        to.check()?;
                        let names_file =
                            matches!(self.get(to).map(|entry| &entry.body), Some(Body::File { .. }));
                        if to >= path || !names_file {
                            return kind(path, "a link is to a file of an earlier name");
                        }
                    }
                    _ => {}
                }
                self.entries.insert(
                    path.clone(),
                    Entry {
                        meta,
                        body: body.clone(),
                    },
                );
            }
            Op::Write { path, offset, bytes } => {
                let (len, blocks) = self.file(path)?;
                let (offset, size) = (*offset, bytes.len() as u64);
                let range = || OpError::Range {
                    path: path.clone(),
                    offset,
                    len: size,
                };
                let end = offset.checked_add(size).ok_or_else(range)?;
                let whole = offset % BLOCK == 0 && (size % BLOCK == 0 || end == *len);
                if size == 0 || end > *len || !whole {
                    return Err(range());
                }
                let first = (offset / BLOCK) as usize;
                for (at, hash) in block_hashes(bytes).enumerate() {
                    blocks.set(first + at, hash);
                }
            }
            Op::Truncate { path, len: to } => {
                if *to > FILE_BYTES_MAX {
                    return Err(OpError::Limit(path.clone()));
                }
                let (len, blocks) = self.file(path)?;
                resize(len, blocks, *to);
            }
            Op::Meta { path, meta } => {
                self.entry(path)?.meta = permissions(path, meta)?;
            }
            Op::Rename { from, to } => {
                if matches!(self.entry(from)?.body, Body::Dir) {
                    return kind(from, "directories are made and removed, not renamed");
                }
                self.free(to)?;
                if let Some(entry) = self.entries.remove(from) {
                    self.entries.insert(to.clone(), entry);
                }
            }
            Op::Unlink { path } => {
                self.entry(path)?;
                if self.below(path).next().is_some() {
                    return kind(path, "the directory is not empty");
                }
                self.entries.remove(path);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &RelPath) -> Result<&mut Entry, OpError> {
        path.check()?;
        self.entries
            .get_mut(path)
            .ok_or_else(|| OpError::Missing(path.clone()))
    }

    fn file(&mut self, path: &RelPath) -> Result<(&mut u64, &mut Blocks), OpError> {
        match &mut self.entry(path)?.body {
            Body::File { len, blocks } => Ok((len, blocks)),
            Body::Dir | Body::Symlink { .. } | Body::Node(_) | Body::Link { .. } => Err(OpError::Kind {
                path: path.clone(),
                why: "not a file",
            }),
        }
    }

    fn free(&self, path: &RelPath) -> Applied {
        path.check()?;
        if self.entries.get(path).is_some() {
            return Err(OpError::Exists(path.clone()));
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(OpError::Limit(path.clone()));
        }
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        match self.entries.get(&parent).map(|entry| &entry.body) {
            Some(Body::Dir) => Ok(()),
            Some(_) => kind(&parent, "not a directory"),
            None => Err(OpError::Missing(parent)),
        }
    }
}

fn kind(path: &RelPath, why: &'static str) -> Applied {
    Err(OpError::Kind {
        path: path.clone(),
        why,
    })
}

fn permissions(path: &RelPath, meta: &Meta) -> Result<Meta, OpError> {
    if meta.xattrs_bytes() > XATTRS_BYTES_MAX {
        return Err(OpError::Limit(path.clone()));
    }
    Ok(Meta {
        mode: meta.mode & 0o7777,
        ..meta.clone()
    })
}

/// What a change of length does to the hashes: new blocks are zeros; the block in which the shorter
/// of the two ends lie has unknown content, unless it ends there exactly.
pub(super) fn resize(len: &mut u64, blocks: &mut Blocks, to: u64) {
    if to == *len {
        return;
    }
    let shorter = (*len).min(to);
    let count = to.div_ceil(BLOCK) as usize;
    if count > blocks.len() {
        blocks.resize(count, zeros(BLOCK));
        if !to.is_multiple_of(BLOCK) {
            blocks.set(count - 1, zeros(to % BLOCK));
        }
    } else {
        blocks.resize(count, NO_HASH);
    }
    if !shorter.is_multiple_of(BLOCK) {
        blocks.set((shorter / BLOCK) as usize, NO_HASH);
    }
    *len = to;
}

/// The hash of so many zeros, of a block at most.
pub fn zeros(len: u64) -> BlockHash {
    block_hash(&[0; BLOCK as usize][..len as usize])
}
