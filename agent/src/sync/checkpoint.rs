//! Patching a shadow's files with a sealed generation.
//!
//! Invariants: pre-images are on disk before the first byte is overwritten. Every phase can be run
//! again after a crash at any point: names leave before the `out` mark is on disk and arrive after
//! it, where any leave, and all data operations are absolute. The redo file is removed last: that is
//! the applied mark.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use understudy_common::delta::{
    Body, Change, Digest, Frame, Manifest, Meta, OPS_BYTES_TARGET, Op, RelPath, diff,
};
use understudy_common::id::GenerationId;
use understudy_common::wire;

use super::attributes::{make_node, set_attributes};
use super::content::{Batches, byte_range, without_content};
use super::journal::{self, Writer, garbled, step, sync_parent};
use super::placement::Placement;
use super::roots::{Roots, read_range, write_range};

/// Attributes in one record of an undo file.
const METAS_BYTES_TARGET: usize = 1 << 20;

/// Attributes that a generation leaves.
pub type Metas = BTreeMap<RelPath, Meta>;

/// Records of an undo file: one head, then metas, then inverse operations.
#[derive(Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Undo {
    Head {
        generation: GenerationId,
        previous: Option<GenerationId>,
        before: Digest,
        after: Digest,
    },
    /// Attributes that the generation leaves, of everything that it touches and of the directories
    /// around.
    Metas(Vec<(RelPath, Meta)>),
    Ops(Vec<Op>),
}

/// The three files of one generation.
#[derive(Clone, Debug)]
pub struct Files {
    pub redo: PathBuf,
    pub undo: PathBuf,
    out: PathBuf,
    parked: PathBuf,
}

impl Files {
    pub fn new(dir: &Path, generation: GenerationId) -> Self {
        let stem = format!("{:020}.{:020}", generation.epoch.0, generation.n);
        let path = |ending: &str| dir.join(format!("{stem}.{ending}"));
        Self {
            redo: path("redo"),
            undo: path("undo"),
            out: path("out"),
            parked: path("parked"),
        }
    }
}

/// Calls `each` with every operation of a redo file and returns its seal.
pub fn read_redo(
    path: &Path,
    mut each: impl FnMut(Op) -> io::Result<()>,
) -> io::Result<(GenerationId, Digest)> {
    let mut seal = None;
    journal::read(path, |record| {
        if seal.is_some() {
            return Err(garbled(path, "records follow the seal"));
        }
        match wire::decode::<Frame>(record).map_err(|error| garbled(path, error))? {
            Frame::Ops(ops) => ops.into_iter().try_for_each(&mut each),
            Frame::Seal { generation, digest } => {
                seal = Some((generation, digest));
                Ok(())
            }
            Frame::Begin { .. } => Ok(()),
            Frame::Hello { .. } | Frame::Exchange => Err(garbled(path, "a frame that no journal holds")),
        }
    })?;
    seal.ok_or_else(|| garbled(path, "the seal is missing"))
}

/// What a checkpoint works on.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub files: &'a Files,
    pub roots: &'a Roots,
    /// Of the operations in the redo file.
    pub placement: &'a Placement,
}

impl Step<'_> {
    /// Writes the pre-images. The files must still be as in `before`. Returns the attributes to set.
    pub fn prepare(self, before: &Manifest, after: &Manifest, head: &Undo) -> io::Result<Metas> {
        let Self {
            files,
            roots,
            placement,
        } = self;
        let mut out = Writer::create(files.undo.with_extension("undo-part"))?;
        out.append(&wire::encode(head))?;
        let metas: Metas = with_parents(placement.touched())
            .into_iter()
            .filter_map(|path| Some((after.get(&path)?.meta.clone(), path)))
            .map(|(meta, path)| (path, meta))
            .collect();
        let (mut part, mut size) = (Vec::new(), 0);
        for (path, meta) in &metas {
            size += path.as_bytes().len() + meta.xattrs_bytes() + 64;
            part.push((path.clone(), meta.clone()));
            if size > METAS_BYTES_TARGET {
                size = 0;
                out.append(&wire::encode(&Undo::Metas(std::mem::take(&mut part))))?;
            }
        }
        if !part.is_empty() {
            out.append(&wire::encode(&Undo::Metas(part)))?;
        }
        let back = diff(
            after,
            before,
            Some(placement.touched()),
            &placement.origins_back(),
        );
        let mut batches = Batches::new(OPS_BYTES_TARGET);
        for change in back {
            if let Change::Blocks { path, .. } = &change {
                let (range, absolute) = (byte_range(before, &change), absolute(roots, path)?);
                let end = read_range(&File::open(&absolute)?, range.clone(), |offset, bytes| {
                    batches.push(Op::Write {
                        path: path.clone(),
                        offset,
                        bytes: bytes.to_vec(),
                    });
                })?;
                if end < range.end {
                    return Err(garbled(&absolute, "shorter than its sealed generation says"));
                }
            } else if let Some(op) = without_content(change) {
                batches.push(op);
            }
            for ops in batches.full() {
                out.append(&wire::encode(&Undo::Ops(ops)))?;
            }
        }
        for ops in batches.rest() {
            out.append(&wire::encode(&Undo::Ops(ops)))?;
        }
        out.commit(&files.undo)?;
        Ok(metas)
    }

    /// Applies a redo file to the files. Pre-images must be there. May be run again after a crash.
    pub fn apply(self, metas: &Metas) -> io::Result<()> {
        let Self {
            files,
            roots,
            placement,
        } = self;
        let mut dirs = BTreeSet::new();
        // Most generations only write into files: their replay needs no mark to tell what has left.
        if placement.leaves() && !files.out.exists() {
            names_leave(files, roots, placement, &mut dirs)?;
            sync_all(&dirs)?;
            step("names left")?;
            File::create(&files.out)?.sync_all()?;
            sync_parent(&files.out)?;
            step("out mark")?;
        }
        names_arrive(files, roots, placement, &mut dirs)?;
        step("names arrived")?;
        let mut synced: BTreeMap<PathBuf, File> = contents(files, roots, placement)?;
        step("contents")?;
        attributes(roots, metas)?;
        step("attributes")?;
        while let Some((_, file)) = synced.pop_first() {
            file.sync_all()?;
        }
        sync_all(&dirs)?;
        step("synced")?;
        fs::remove_file(&files.redo)?;
        step("redo removed")?;
        clean(files)?;
        sync_parent(&files.redo)
    }
}

/// The attributes to set that pre-images name.
pub fn metas(undo: &Path) -> io::Result<Metas> {
    let mut metas = Metas::new();
    journal::read_while(undo, |record| match decode_undo(undo, record)? {
        Undo::Head { .. } => Ok(true),
        Undo::Metas(part) => {
            metas.extend(part);
            Ok(true)
        }
        Undo::Ops(_) => Ok(false),
    })?;
    Ok(metas)
}

/// Removes what only an unfinished checkpoint needs.
pub fn clean(files: &Files) -> io::Result<()> {
    match fs::remove_file(&files.out) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_dir_all(&files.parked) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub fn place(redo: &Path) -> io::Result<Placement> {
    let mut placement = Placement::default();
    read_redo(redo, |op| {
        placement.follow(&op);
        Ok(())
    })?;
    Ok(placement)
}

fn names_leave(
    files: &Files,
    roots: &Roots,
    placement: &Placement,
    dirs: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let mut emptied = BTreeSet::new();
    for (number, node) in placement.nodes().iter().enumerate() {
        let Some(was) = node.leaves() else {
            continue;
        };
        let from = absolute(roots, was)?;
        if node.is.is_some() {
            fs::create_dir_all(&files.parked)?;
            let to = files.parked.join(number.to_string());
            if !to.exists() {
                move_file(&from, &to)?;
            }
            dirs.insert(files.parked.clone());
        } else if fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_dir()) {
            emptied.insert(from.clone());
        } else {
            ignore_missing(fs::remove_file(&from))?;
        }
        dirs.extend(from.parent().map(Path::to_owned));
    }
    for dir in emptied.iter().rev() {
        ignore_missing(fs::remove_dir(dir))?;
        dirs.remove(dir);
    }
    step("names leaving")
}

fn names_arrive(
    files: &Files,
    roots: &Roots,
    placement: &Placement,
    dirs: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let made: BTreeMap<&RelPath, &Body> = placement
        .nodes()
        .iter()
        .filter_map(|node| Some((node.is.as_ref()?, node.made.as_ref()?)))
        .collect();
    for (path, _) in made.iter().filter(|(_, body)| matches!(body, Body::Dir)) {
        let to = absolute(roots, path)?;
        if path.is_root() {
            fs::create_dir_all(&to)?;
        } else if let Err(error) = fs::create_dir(&to)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        dirs.extend(to.parent().map(Path::to_owned));
    }
    step("directories")?;
    for (number, node) in placement.nodes().iter().enumerate() {
        let Some(is) = node
            .is
            .as_ref()
            .filter(|is| node.was.is_some() && node.was.as_ref() != Some(is))
        else {
            continue;
        };
        let (from, to) = (files.parked.join(number.to_string()), absolute(roots, is)?);
        if from.exists() {
            move_file(&from, &to)?;
        }
        dirs.extend(to.parent().map(Path::to_owned));
    }
    step("moves")?;
    for (path, body) in &made {
        let to = absolute(roots, path)?;
        match body {
            Body::Dir | Body::Link { .. } => continue,
            Body::File { .. } => {
                OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&to)?;
            }
            Body::Node(node) => {
                ignore_missing(fs::remove_file(&to))?;
                make_node(&to, *node)?;
            }
            Body::Symlink { target } => {
                let target = Path::new(std::ffi::OsStr::from_bytes(target));
                ignore_missing(fs::remove_file(&to))?;
                std::os::unix::fs::symlink(target, &to)?;
            }
        }
        dirs.extend(to.parent().map(Path::to_owned));
    }
    for (path, body) in &made {
        if let Body::Link { to } = body {
            let at = absolute(roots, path)?;
            ignore_missing(fs::remove_file(&at))?;
            fs::hard_link(absolute(roots, to)?, &at)?;
            dirs.extend(at.parent().map(Path::to_owned));
        }
    }
    Ok(())
}

fn contents(files: &Files, roots: &Roots, placement: &Placement) -> io::Result<BTreeMap<PathBuf, File>> {
    let (mut again, mut open) = (Placement::default(), BTreeMap::new());
    read_redo(&files.redo, |op| {
        let node = again.follow(&op);
        let Some(path) = placement.nodes().get(node).and_then(|node| node.is.as_ref()) else {
            return Ok(());
        };
        let is_data = matches!(op, Op::Write { .. } | Op::Truncate { .. })
            || matches!(
                &op,
                Op::Create {
                    body: Body::File { .. },
                    ..
                }
            );
        if !is_data {
            return Ok(());
        }
        let path = absolute(roots, path)?;
        if !open.contains_key(&path) {
            while open.len() >= OPEN_FILES_MAX {
                if let Some((_, file)) = open.pop_first() {
                    File::sync_all(&file)?;
                }
            }
            open.insert(path.clone(), OpenOptions::new().write(true).open(&path)?);
        }
        let file = &open[&path];
        match op {
            Op::Create { .. } => file.set_len(0),
            Op::Truncate { len, .. } => file.set_len(len),
            Op::Write { offset, bytes, .. } => {
                step("write")?;
                write_range(file, offset, &bytes)
            }
            Op::Meta { .. } | Op::Rename { .. } | Op::Unlink { .. } => Ok(()),
        }
    })?;
    Ok(open)
}

/// Files kept open between a checkpoint's writes and their fsync.
const OPEN_FILES_MAX: usize = 256;

fn attributes(roots: &Roots, metas: &Metas) -> io::Result<()> {
    // What lies in a directory comes before the directory: its mode may forbid the way in.
    for (path, meta) in metas.iter().rev() {
        set_attributes(&absolute(roots, path)?, meta)?;
    }
    Ok(())
}

pub fn decode_undo(path: &Path, record: &[u8]) -> io::Result<Undo> {
    wire::decode(record).map_err(|error| garbled(path, error))
}

pub fn absolute(roots: &Roots, path: &RelPath) -> io::Result<PathBuf> {
    roots
        .absolute(path)
        .ok_or_else(|| io::Error::other(format!("{path:?} names a root that this service does not have")))
}

/// The paths and the directories that they are in.
pub fn with_parents(paths: &BTreeSet<RelPath>) -> BTreeSet<RelPath> {
    paths
        .iter()
        .flat_map(|path| [Some(path.clone()), path.parent()])
        .flatten()
        .collect()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_all(dirs: &BTreeSet<PathBuf>) -> io::Result<()> {
    for dir in dirs {
        match File::open(dir) {
            Ok(dir) => dir.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Renames, or copies when the service's paths and the state are on different disks.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    step("move")?;
    match fs::rename(from, to) {
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
            let part = to.with_extension("understudy-part");
            fs::copy(from, &part)?;
            File::open(&part)?.sync_all()?;
            fs::rename(&part, to)?;
            sync_parent(to)?;
            fs::remove_file(from)
        }
        other => other,
    }
}
