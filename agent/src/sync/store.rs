//! A shadow's copy on disk: takes frames, seals generations, patches the files.
//!
//! Invariants: `Sealed` is answered only after the redo file is on disk, or, of a first copy, all files are.
//! `manifest` is what the files hold once a pending checkpoint is done. After any I/O error the copy is not
//! ready until it was read again from disk and a generation was sealed on top.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use understudy_common::delta::{
    Answer, BLOCK, Body, Change, Digest, Frame, Manifest, Op, OpError, RelPath, block_hash, diff, pages,
};
use understudy_common::id::{Epoch, GenerationId, ServiceId};
use understudy_common::wire::{self, CopyState, SyncFigures};

use super::checkpoint::{self, Files, Metas, Step, Undo};
use super::content::byte_range;
use super::fill::{self, Fill};
use super::identity::{self, Identity};
use super::journal::{self, Writer};
use super::placement::Placement;
use super::roots::{self, Roots, read_range};
use super::scrub::Scrub;

/// Generations that can be restored by their pre-images.
pub const RESTORABLE: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the state of the copy under {} cannot be used", dir.display())]
    Disk {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("epoch {asked} is older than {floor}, which this copy has already seen")]
    StaleEpoch { asked: Epoch, floor: Epoch },
    #[error("the copy is not ready: it has no sealed generation to start from")]
    NotReady,
    #[error("generation {0} can no longer be restored")]
    NoPreImages(GenerationId),
    #[error("the frame does not fit: {0}")]
    Protocol(&'static str),
    #[error("{path} was changed by something else than the primary; the copy is compared again")]
    Changed { path: RelPath },
    #[error("an operation does not fit the copy")]
    Op(#[from] OpError),
}

#[derive(Debug)]
struct Incoming {
    to: Sink,
    manifest: Manifest,
    bytes: u64,
}

/// Where a generation goes before it is sealed.
#[derive(Debug)]
enum Sink {
    Journal { out: Writer, placement: Placement },
    Files(Fill),
}

impl Sink {
    fn take(&mut self, ops: &[Op], raw: &[u8]) -> io::Result<()> {
        match self {
            Self::Journal { out, placement } => {
                for op in ops {
                    placement.follow(op);
                }
                out.append(raw)
            }
            Self::Files(fill) => ops.iter().try_for_each(|op| fill.take(op)),
        }
    }
}

/// What is left to do after a seal.
#[derive(Debug)]
enum Pending {
    Checkpoint(Checkpoint),
    /// The files hold it and were not read again.
    Verify {
        before: Manifest,
    },
}

/// A sealed generation that is not in the files yet.
#[derive(Debug)]
struct Checkpoint {
    before: Manifest,
    placement: Placement,
    previous: Option<GenerationId>,
    generation: GenerationId,
}

#[derive(Debug)]
pub struct Store {
    service: ServiceId,
    dir: PathBuf,
    aside: PathBuf,
    roots: Roots,
    identity: Identity,
    manifest: Manifest,
    digest: Digest,
    copy: CopyState,
    incoming: Option<Incoming>,
    pending: Option<Pending>,
    /// A first copy was begun and not sealed.
    filling: bool,
    scrub: Scrub,
    figures: SyncFigures,
}

impl Store {
    /// Finishes what a crash interrupted, then reads and hashes all files.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub fn open(service: ServiceId, name: &str, state_dir: &Path, roots: Roots) -> Result<Self, StoreError> {
        let dir = identity::service_dir(state_dir, name);
        let mut store = Self {
            service,
            aside: state_dir.join("diverged").join(name),
            roots,
            identity: Identity::default(),
            manifest: Manifest::default(),
            digest: Manifest::default().digest(),
            copy: CopyState::Cold,
            incoming: None,
            pending: None,
            filling: false,
            scrub: Scrub::new(0),
            figures: SyncFigures::default(),
            dir,
        };
        store.recover().map_err(|source| store.disk(source))?;
        Ok(store)
    }

    fn disk(&self, source: io::Error) -> StoreError {
        StoreError::Disk {
            dir: self.dir.clone(),
            source,
        }
    }

    pub fn copy(&self) -> CopyState {
        self.copy
    }

    pub fn generation(&self) -> Option<GenerationId> {
        self.identity
            .identifiers
            .current
            .filter(|_| self.identity.digest.is_some())
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes a second that [`Store::scrub`] reads.
    pub fn set_scrub_rate(&mut self, rate: u64) {
        self.scrub = Scrub::new(rate);
    }

    /// Reads as much of a ready copy again as so much time allows.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when it is not what was received: it is not ready from here on, until all of it was
    /// hashed and the primary sent what differs. [`StoreError::Disk`].
    pub fn scrub(&mut self, elapsed: Duration) -> Result<(), StoreError> {
        if self.copy != CopyState::Ready || self.incoming.is_some() || self.pending.is_some() {
            return Ok(());
        }
        let roots = &self.roots;
        let open = |path: &RelPath| {
            roots
                .absolute(path)
                .map_or(Ok(None), |absolute| roots::open(&absolute))
        };
        let step = self.scrub.step(elapsed, &self.manifest, open);
        self.figures.scrubbed_bytes = self.scrub.figures.bytes;
        self.figures.scrubs = self.scrub.figures.passes;
        let odd = step.map_err(|source| self.disk(source))?;
        let Some(first) = odd.first() else { return Ok(()) };
        self.figures.missed_writes += odd.len() as u64;
        self.copy = CopyState::Warming;
        Err(StoreError::Changed {
            path: first.path.clone(),
        })
    }

    pub fn figures(&self) -> &SyncFigures {
        &self.figures
    }

    fn recover(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        self.incoming = None;
        self.pending = None;
        self.copy = CopyState::Warming;
        self.identity = identity::load(&self.dir)?;
        if ignore_missing(fs::remove_file(self.dir.join("incoming")))? {
            tracing::warn!(service = %self.service, "dropped a generation that was not sealed");
        }
        for path in self.listed("redo")? {
            let (generation, digest) = match checkpoint::read_redo(&path, |_| Ok(())) {
                Ok(seal) => seal,
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidData
                        || error.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    tracing::error!(path = %path.display(), %error, "dropped a journal that is torn or garbled");
                    fs::remove_file(&path)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let files = Files::new(&self.dir, generation);
            let placement = checkpoint::place(&files.redo)?;
            let metas = if files.undo.exists() {
                checkpoint::metas(&files.undo)?
            } else {
                let before = self.roots.hash_all()?;
                let previous = self
                    .listed("undo")?
                    .last()
                    .map(|path| head(path))
                    .transpose()?
                    .flatten();
                let previous = previous.and_then(|head| match head {
                    Undo::Head { generation, .. } => Some(generation),
                    Undo::Metas(_) | Undo::Ops(_) => None,
                });
                let after = after(&before, &files.redo)?;
                let pending = Checkpoint {
                    before,
                    placement: placement.clone(),
                    previous,
                    generation,
                };
                self.prepare(&files, &pending, &after, digest)?
            };
            let step = Step {
                files: &files,
                roots: &self.roots,
                placement: &placement,
            };
            step.apply(&metas)?;
            tracing::info!(service = %self.service, %generation, "finished the checkpoint that a stop interrupted");
        }
        for path in self.listed("undo")? {
            let Some(Undo::Head {
                generation, after, ..
            }) = head(&path)?
            else {
                continue;
            };
            checkpoint::clean(&Files::new(&self.dir, generation))?;
            if self
                .identity
                .identifiers
                .current
                .is_none_or(|current| generation > current)
            {
                self.identity.identifiers.advance(generation);
                self.identity.digest = Some(after);
            }
        }
        self.manifest = self.roots.hash_all()?;
        self.digest = self.manifest.digest();
        self.filling = fill::is_begun(&self.dir);
        self.copy = match self.identity.digest {
            Some(digest) if digest == self.digest && !self.identity.diverging => CopyState::Ready,
            _ if self.manifest.is_empty() => CopyState::Cold,
            _ => CopyState::Warming,
        };
        if self.filling && self.copy == CopyState::Ready {
            self.filling = false;
            fill::forget(&self.dir)?;
        }
        Ok(())
    }

    /// Whether a crash in the middle of a generation would leave no less than there is.
    fn has_nothing(&self) -> bool {
        let empty = || self.manifest.iter().all(|(_, entry)| entry.body == Body::Dir);
        !self.identity.diverging && self.copy != CopyState::Ready && (self.filling || empty())
    }

    /// Files of one kind, oldest generation first.
    fn listed(&self, ending: &str) -> io::Result<Vec<PathBuf>> {
        let mut found: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|found| found == ending))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Takes one frame of the primary in `epoch`.
    ///
    /// # Errors
    /// [`StoreError`]; the stream ends then and the primary begins anew.
    pub fn handle(&mut self, epoch: Epoch, frame: Frame, raw: &[u8]) -> Result<Vec<Answer>, StoreError> {
        if epoch < self.identity.floor {
            return Err(StoreError::StaleEpoch {
                asked: epoch,
                floor: self.identity.floor,
            });
        }
        let result = self.take(epoch, frame, raw);
        if result.is_err() {
            self.drop_unsealed();
        }
        if matches!(result, Err(StoreError::Disk { .. })) {
            self.copy = CopyState::Warming;
            self.identity.digest = None;
        }
        result
    }

    fn take(&mut self, epoch: Epoch, frame: Frame, raw: &[u8]) -> Result<Vec<Answer>, StoreError> {
        match frame {
            Frame::Hello { service, .. } => {
                if service != self.service {
                    return Err(StoreError::Protocol("another service's stream"));
                }
                self.drop_unsealed();
                if self.copy != CopyState::Ready {
                    let figures = std::mem::take(&mut self.figures);
                    self.recover().map_err(|source| self.disk(source))?;
                    self.figures = figures;
                }
                if self.identity.floor < epoch {
                    self.identity.floor = epoch;
                    self.save().map_err(|source| self.disk(source))?;
                }
                let identifiers = self.identity.identifiers.clone();
                Ok(vec![Answer::State {
                    identifiers,
                    digest: self.digest,
                    copy: self.copy,
                }])
            }
            Frame::Exchange => Ok(pages(&self.manifest)),
            Frame::Begin { generation, base } => {
                self.checkpoint()?;
                if generation.epoch != epoch || base != self.digest || self.incoming.is_some() {
                    return Err(StoreError::Protocol(
                        "the generation does not begin where this copy is",
                    ));
                }
                let to = self.begin(raw).map_err(|source| self.disk(source))?;
                self.incoming = Some(Incoming {
                    to,
                    manifest: self.manifest.clone(),
                    bytes: 0,
                });
                Ok(Vec::new())
            }
            Frame::Ops(ops) => {
                let dir = self.dir.clone();
                let incoming = self
                    .incoming
                    .as_mut()
                    .ok_or(StoreError::Protocol("operations before a begin"))?;
                for op in &ops {
                    incoming.manifest.apply(op)?;
                    if let Op::Write { bytes, .. } = op {
                        incoming.bytes += bytes.len() as u64;
                    }
                }
                let taken = incoming.to.take(&ops, raw);
                taken.map_err(|source| StoreError::Disk { dir, source })?;
                Ok(Vec::new())
            }
            Frame::Seal { generation, digest } => {
                let incoming = self
                    .incoming
                    .take()
                    .ok_or(StoreError::Protocol("a seal before a begin"))?;
                let rises = self
                    .identity
                    .identifiers
                    .current
                    .is_none_or(|current| current < generation);
                if generation.epoch != epoch || !rises || incoming.manifest.digest() != digest {
                    return Err(StoreError::Protocol(
                        "the sealed state is not what the operations give",
                    ));
                }
                self.figures.delta_bytes += incoming.bytes;
                self.seal(incoming, generation, digest, raw)
                    .map_err(|source| self.disk(source))?;
                self.figures.generations += 1;
                Ok(vec![Answer::Sealed { generation }])
            }
        }
    }

    fn begin(&mut self, raw: &[u8]) -> io::Result<Sink> {
        if self.has_nothing() {
            let fill = Fill::begin(&self.dir, self.roots.clone())?;
            self.filling = true;
            return Ok(Sink::Files(fill));
        }
        let mut out = Writer::create(self.dir.join("incoming"))?;
        out.append(raw)?;
        Ok(Sink::Journal {
            out,
            placement: Placement::default(),
        })
    }

    fn seal(
        &mut self,
        incoming: Incoming,
        generation: GenerationId,
        digest: Digest,
        raw: &[u8],
    ) -> io::Result<()> {
        let Incoming { to, manifest, .. } = incoming;
        let before = self.manifest.clone();
        let pending = match to {
            Sink::Journal { mut out, placement } => {
                out.append(raw)?;
                out.commit(&Files::new(&self.dir, generation).redo)?;
                Pending::Checkpoint(Checkpoint {
                    before,
                    placement,
                    previous: self.generation(),
                    generation,
                })
            }
            Sink::Files(fill) => {
                fill.finish(&manifest)?;
                // They lead back to what is no more.
                for path in self.listed("undo")? {
                    fs::remove_file(path)?;
                }
                Pending::Verify { before }
            }
        };
        self.manifest = manifest;
        self.digest = digest;
        self.identity.identifiers.advance(generation);
        self.identity.digest = Some(digest);
        if matches!(pending, Pending::Verify { .. }) {
            self.save()?;
            fill::forget(&self.dir)?;
            self.filling = false;
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// Applies the sealed generation to the files, if that is still to be done. Call it after each frame.
    ///
    /// # Errors
    /// [`StoreError::Disk`]; the sealed generation stays in the journal.
    pub fn checkpoint(&mut self) -> Result<(), StoreError> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let done = match pending {
            Pending::Checkpoint(pending) => self.patch(&pending),
            Pending::Verify { before } => self.verify(&before),
        };
        if let Err(source) = done {
            self.copy = CopyState::Warming;
            return Err(self.disk(source));
        }
        self.copy = CopyState::Ready;
        Ok(())
    }

    fn patch(&mut self, pending: &Checkpoint) -> io::Result<()> {
        let (files, after) = (Files::new(&self.dir, pending.generation), self.manifest.clone());
        let metas = self.prepare(&files, pending, &after, self.digest)?;
        let step = Step {
            files: &files,
            roots: &self.roots,
            placement: &pending.placement,
        };
        step.apply(&metas)?;
        self.verify(&pending.before)?;
        if self.identity.diverging {
            self.identity.diverging = false;
            self.save()?;
        }
        self.prune()
    }

    /// Reads again what a generation changed: the files hold what the manifest says, or an error.
    pub(super) fn verify(&self, before: &Manifest) -> io::Result<()> {
        for change in diff(before, &self.manifest, None, &BTreeMap::new()) {
            let Change::Blocks { path, .. } = &change else {
                continue;
            };
            let Some(Body::File { blocks, .. }) = self.manifest.get(path).map(|entry| &entry.body) else {
                continue;
            };
            let absolute = self.roots.absolute(path).ok_or(io::ErrorKind::NotFound)?;
            let range = byte_range(&self.manifest, &change);
            let mut sound = true;
            let end = read_range(&fs::File::open(absolute)?, range.clone(), |offset, bytes| {
                for (at, block) in (offset / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
                    sound &= usize::try_from(at).is_ok_and(|at| blocks.get(at) == Some(block_hash(block)));
                }
            })?;
            if !sound || end < range.end {
                let why = format!("{path} does not hold what was written to it");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        files: &Files,
        pending: &Checkpoint,
        after: &Manifest,
        digest: Digest,
    ) -> io::Result<Metas> {
        let Checkpoint {
            before,
            placement,
            previous,
            generation,
        } = pending;
        if self.identity.diverging {
            self.keep_aside(placement, *generation)?;
        }
        let head = Undo::Head {
            generation: *generation,
            previous: *previous,
            before: before.digest(),
            after: digest,
        };
        let step = Step {
            files,
            roots: &self.roots,
            placement,
        };
        step.prepare(before, after, &head)
    }

    /// Copies what a past life as primary left here and the new primary does not have.
    fn keep_aside(&mut self, placement: &Placement, generation: GenerationId) -> io::Result<()> {
        let aside = self.aside.join(generation.to_string());
        for path in placement.overwritten() {
            let Some(from) = self.roots.absolute(path) else {
                continue;
            };
            if !fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_file()) {
                continue;
            }
            let to = aside.join(path.to_string());
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&from, &to)?;
            fs::File::open(&to)?.sync_all()?;
            self.figures.diverged_files += 1;
            tracing::warn!(service = %self.service, file = %path, kept = %to.display(),
                "this host's version differs from the new primary's history; it is kept aside");
        }
        Ok(())
    }

    fn prune(&self) -> io::Result<()> {
        let undos = self.listed("undo")?;
        for path in undos.iter().take(undos.len().saturating_sub(RESTORABLE)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn drop_unsealed(&mut self) {
        let dropped = self.incoming.take();
        if let Some(Sink::Journal { .. }) = dropped.map(|incoming| incoming.to)
            && let Err(error) = fs::remove_file(self.dir.join("incoming"))
        {
            tracing::warn!(service = %self.service, %error, "cannot remove an unsealed generation");
        }
    }

    fn save(&self) -> io::Result<()> {
        identity::save(&self.dir, &self.identity)
    }

    /// Ends the shadow's part: older epochs are refused from here on, the unsealed generation is
    /// dropped, the sealed one is in the files when this returns.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], [`StoreError::NotReady`], [`StoreError::Disk`].
    pub fn promote(&mut self, epoch: Epoch) -> Result<(GenerationId, Manifest), StoreError> {
        if epoch < self.identity.floor {
            return Err(StoreError::StaleEpoch {
                asked: epoch,
                floor: self.identity.floor,
            });
        }
        self.drop_unsealed();
        if self.checkpoint().is_err() || self.copy != CopyState::Ready {
            // What is sealed is in the journal: once more from the disk.
            self.recover().map_err(|source| self.disk(source))?;
        }
        let generation = self
            .generation()
            .filter(|_| self.copy == CopyState::Ready)
            .ok_or(StoreError::NotReady)?;
        self.identity.floor = epoch;
        self.save().map_err(|source| self.disk(source))?;
        Ok((generation, self.manifest.clone()))
    }

    /// Takes the files back to an earlier generation by its pre-images.
    ///
    /// # Errors
    /// [`StoreError::NoPreImages`], [`StoreError::Disk`].
    pub fn restore(&mut self, to: GenerationId) -> Result<(), StoreError> {
        self.drop_unsealed();
        self.checkpoint()?;
        self.restore_files(to)
            .map_err(|source| self.disk(source))?
            .ok_or(StoreError::NoPreImages(to))
    }

    fn restore_files(&mut self, to: GenerationId) -> io::Result<Option<()>> {
        let (mut undos, mut reached) = (Vec::new(), None);
        for path in self.listed("undo")?.into_iter().rev() {
            let Some(Undo::Head {
                generation,
                previous,
                before,
                ..
            }) = head(&path)?
            else {
                continue;
            };
            if generation <= to {
                break;
            }
            undos.push(path);
            reached = previous.map(|previous| (previous, before));
        }
        let Some((_, digest)) = reached.filter(|(previous, _)| *previous == to) else {
            return Ok(None);
        };
        let mut incoming = Writer::create(self.dir.join("incoming"))?;
        let (mut after, mut placement) = (self.manifest.clone(), Placement::default());
        for path in &undos {
            journal::read(path, |record| {
                let Undo::Ops(ops) = checkpoint::decode_undo(path, record)? else {
                    return Ok(());
                };
                for op in &ops {
                    after.apply(op).map_err(|error| journal::garbled(path, error))?;
                    placement.follow(op);
                }
                incoming.append(&wire::encode(&Frame::Ops(ops)))
            })?;
        }
        if after.digest() != digest {
            return Err(journal::garbled(
                &self.dir,
                "the pre-images do not lead to the generation",
            ));
        }
        incoming.append(&wire::encode(&Frame::Seal {
            generation: to,
            digest,
        }))?;
        let files = Files::new(&self.dir, to);
        incoming.commit(&files.redo)?;
        // The way here is in the journal now; neither the way forward nor the way further back is kept.
        for path in self.listed("undo")? {
            fs::remove_file(path)?;
        }
        let before = std::mem::replace(&mut self.manifest, after);
        self.digest = digest;
        self.identity.identifiers.current = Some(to);
        self.identity.digest = Some(digest);
        self.pending = Some(Pending::Checkpoint(Checkpoint {
            before,
            placement,
            previous: None,
            generation: to,
        }));
        self.checkpoint().map_err(io::Error::other)?;
        self.save()?;
        // It would lead forward again.
        fs::remove_file(&files.undo)?;
        Ok(Some(()))
    }
}

/// What a redo file makes of what there was before.
fn after(before: &Manifest, redo: &Path) -> io::Result<Manifest> {
    let mut after = before.clone();
    checkpoint::read_redo(redo, |op| {
        after.apply(&op).map_err(|error| journal::garbled(redo, error))
    })?;
    Ok(after)
}

fn head(path: &Path) -> io::Result<Option<Undo>> {
    let mut found = None;
    journal::read_while(path, |record| {
        found = Some(checkpoint::decode_undo(path, record)?);
        Ok(false)
    })?;
    Ok(found.filter(|record| matches!(record, Undo::Head { .. })))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
