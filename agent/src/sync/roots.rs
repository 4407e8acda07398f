//! A service's roots on this host: relative paths to files, and what `lstat` says as a manifest entry.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use understudy_common::delta::{BLOCK, Blocks, Body, Entry, Manifest, RelPath, block_hashes, zeros};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

use super::attributes::{attributes, node};
use super::tracker::InodeKey;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

#[derive(Clone, Debug)]
pub struct Roots {
    paths: Vec<PathBuf>,
}

impl Roots {
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// `None` when the path names a root that the service does not have.
    pub fn absolute(&self, path: &RelPath) -> Option<PathBuf> {
        let (root, rest) = path.split_root();
        let root = self.paths.get(root)?;
        Some(if rest.is_empty() {
            root.clone()
        } else {
            root.join(OsStr::from_bytes(rest))
        })
    }

    /// The deepest root that holds `path`.
    pub fn relative(&self, path: &Path) -> Option<RelPath> {
        let (number, rest) = self
            .paths
            .iter()
            .enumerate()
            .filter_map(|(number, root)| Some((number, path.strip_prefix(root).ok()?)))
            .min_by_key(|(_, rest)| rest.as_os_str().len())?;
        let root = RelPath::root(number);
        if rest.as_os_str().is_empty() {
            Some(root)
        } else {
            root.join(rest.as_os_str().as_bytes()).ok()
        }
    }

    /// Everything below `from` (with it), directories before what is in them. A name that goes away
    /// meanwhile is left out.
    pub fn walk(&self, from: &RelPath, out: &mut Vec<RelPath>) {
        let Some(path) = self.absolute(from) else { return };
        let Ok(meta) = fs::symlink_metadata(&path) else {
            return;
        };
        out.push(from.clone());
        if !meta.is_dir() {
            return;
        }
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if let Ok(path) = from.join(entry.file_name().as_bytes()) {
                self.walk(&path, out);
            }
        }
    }

    /// Reads and hashes everything there is.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn hash_all(&self) -> io::Result<Manifest> {
        let (mut manifest, mut paths) = (Manifest::default(), Vec::new());
        for number in 0..self.paths.len() {
            self.walk(&RelPath::root(number), &mut paths);
        }
        paths.sort_unstable();
        let mut first_names: HashMap<InodeKey, RelPath> = HashMap::new();
        for path in paths {
            let Some(absolute) = self.absolute(&path) else {
                continue;
            };
            let Some(seen) = look(&absolute)? else { continue };
            let Some(mut entry) = seen.entry else { continue };
            if let Body::File { .. } = entry.body
                && seen.names > 1
            {
                match first_names.entry(seen.key) {
                    Occupied(first) => {
                        let to = first.get().clone();
                        entry.body = Body::Link { to };
                    }
                    Vacant(first) => {
                        first.insert(path.clone());
                    }
                }
            }
            if let Body::File { len, blocks } = &mut entry.body {
                (*len, *blocks) = hash_file(&File::open(&absolute)?)?;
            }
            manifest.insert(path, entry);
        }
        Ok(manifest)
    }
}

/// What `lstat` says; `entry` is none for sockets, and has no hashes.
#[derive(Clone, Debug)]
pub struct Seen {
    pub key: InodeKey,
    /// How many names it has, anywhere.
    pub names: u64,
    pub entry: Option<Entry>,
}

/// `None` when there is nothing of that name.
///
/// # Errors
/// When the name cannot be looked at.
pub fn look(path: &Path) -> io::Result<Option<Seen>> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let body = if meta.is_dir() {
        Some(Body::Dir)
    } else if meta.is_file() {
        Some(Body::File {
            len: meta.len(),
            blocks: Blocks::new(),
        })
    } else if meta.is_symlink() {
        match fs::read_link(path) {
            Ok(target) => Some(Body::Symlink {
                target: target.as_os_str().as_bytes().to_vec(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        node(&meta).map(Body::Node)
    };
    let entry = match body {
        Some(body) => {
            let meta = attributes(path, &meta)?;
            Some(Entry { meta, body })
        }
        None => None,
    };
    Ok(Some(Seen {
        key: InodeKey {
            dev: meta.dev(),
            ino: meta.ino(),
        },
        names: meta.nlink(),
        entry,
    }))
}

/// Opens the file that `key` names at `path`; `None` when something else is there, or nothing.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_file(path: &Path, key: InodeKey) -> io::Result<Option<File>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let meta = file.metadata()?;
    let is_it = meta.is_file() && InodeKey::of(&meta) == key;
    Ok(is_it.then_some(file))
}

/// Opens what is at `path` for reading; `None` when there is nothing, or nothing that can be had now. A name that
/// became a link or a pipe since it was looked at is not followed and not waited for.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let absent = |error: &io::Error| {
        // The last: somebody has a lease on it and is asked to give it back.
        matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO | libc::EWOULDBLOCK)
        )
    };
    match opened {
        Err(error) if absent(&error) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Reads a byte range that begins on a block, in pieces of whole blocks; only the last may be short.
/// Returns where it ended: before `range.end` when the file is shorter by now.
///
/// # Errors
/// When reading fails.
pub fn read_range(
    file: &File,
    range: std::ops::Range<u64>,
    mut piece: impl FnMut(u64, &[u8]),
) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES.min((range.end.saturating_sub(range.start)) as usize)];
    let mut at = range.start;
    while at < range.end {
        let want = buffer.len().min((range.end - at) as usize);
        let mut have = 0;
        while have < want {
            match file.read_at(&mut buffer[have..want], at + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if have > 0 {
            piece(at, &buffer[..have]);
        }
        at += have as u64;
        if have < want {
            break;
        }
    }
    Ok(at)
}

/// Whether a file has holes, or may have.
pub fn is_sparse(meta: &fs::Metadata) -> bool {
    const SECTOR: u64 = 512;
    meta.blocks() * SECTOR < meta.len()
}

/// Cuts a byte range that begins on a block into parts with data (true) and holes of whole blocks, which read as
/// zeros. Data that is not on disk yet counts as data.
///
/// # Errors
/// When the file cannot be asked.
pub fn parts(file: &File, range: std::ops::Range<u64>) -> io::Result<Vec<(std::ops::Range<u64>, bool)>> {
    let seek = |at: u64, whence| match lseek64(file, i64::try_from(at).unwrap_or(i64::MAX), whence) {
        Ok(found) => Ok(u64::try_from(found).unwrap_or(0).clamp(at, range.end)),
        // Nothing of the kind behind it.
        Err(nix::Error::ENXIO) => Ok(range.end),
        Err(error) => Err(io::Error::from(error)),
    };
    let (mut parts, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let data = seek(at, Whence::SeekData)?;
        let hole_end = if data == range.end {
            data
        } else {
            data / BLOCK * BLOCK
        };
        if hole_end > at {
            parts.push((at..hole_end, false));
            at = hole_end;
        }
        if at < range.end {
            let end = seek(data.max(at), Whence::SeekHole)?
                .next_multiple_of(BLOCK)
                .min(range.end);
            parts.push((at..end, true));
            at = end;
        }
    }
    Ok(parts)
}

/// Writes bytes that begin on a block; blocks of zeros become holes where the file system has such.
///
/// # Errors
/// When the disk is full or fails.
pub fn write_range(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let zero = |block: &[u8]| block.len() == BLOCK as usize && block.iter().all(|byte| *byte == 0);
    let mut at = 0;
    for run in bytes
        .chunks(BLOCK as usize)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| zero(a) == zero(b))
    {
        let len: usize = run.iter().map(|block| block.len()).sum();
        let (from, content) = (offset + at as u64, &bytes[at..at + len]);
        if !zero(run[0]) || !punch(file, from, len as u64)? {
            file.write_all_at(content, from)?;
        }
        at += len;
    }
    Ok(())
}

/// False where the file system has no holes.
fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (Ok(from), Ok(count)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Ok(false);
    };
    match fallocate(file, flags, from, count) {
        Ok(()) => Ok(true),
        Err(nix::Error::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Length and hashes of a whole file as it is now.
///
/// # Errors
/// When reading fails.
fn hash_file(file: &File) -> io::Result<(u64, Blocks)> {
    let meta = file.metadata()?;
    let (mut hashes, mut end) = (Blocks::new(), 0);
    let parts = if is_sparse(&meta) {
        parts(file, 0..meta.len())?
    } else {
        vec![(0..meta.len(), true)]
    };
    for (part, has_data) in parts {
        if has_data {
            end = read_range(file, part, |_, bytes| hashes.extend(block_hashes(bytes)))?;
        } else {
            hashes.resize((part.end / BLOCK) as usize, zeros(BLOCK));
            hashes.extend((part.end % BLOCK > 0).then(|| zeros(part.end % BLOCK)));
            end = part.end;
        }
    }
    Ok((end, hashes))
}
