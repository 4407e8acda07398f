//! What one shadow still needs: the difference between the manifest that it will have and the last cut.
//!
//! Invariants: a generation is sealed only when what was sent gives exactly the cut's manifest; a block
//! is sent only with the content that the manifest names, or not at all in this round. Bytes on the
//! way to a shadow are bounded; a slow shadow gets later, larger differences.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use understudy_common::delta::{
    Answer, BLOCK, Body, Change, Digest, Frame, Manifest, OPS_BYTES_TARGET, Op, RelPath, block_hash, diff,
};
use understudy_common::id::GenerationId;
use understudy_common::wire;

use super::content::{Batches, byte_range, without_content};
use super::cutter::{Cutter, Delta};
use super::roots::{open, read_range};

/// Bytes on the way to one shadow.
const INFLIGHT_BYTES_MAX: usize = 32 << 20;
/// Generations that one shadow may have left to acknowledge. Each costs it a write to its disk, so one that
/// is behind catches up with a single larger generation instead of working off all it missed.
pub const UNACKED_MAX: usize = 4;
/// Content of one write operation.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// A generation of this primary.
#[derive(Debug)]
pub struct Cut {
    pub generation: GenerationId,
    pub manifest: Manifest,
    pub digest: Digest,
    pub delta: Delta,
    /// The cut that `delta` leads from.
    pub previous: Option<GenerationId>,
}

/// Frames on their way to one shadow.
#[derive(Clone, Debug)]
pub struct Pipe {
    pub frames: mpsc::UnboundedSender<Vec<u8>>,
    pub inflight: Arc<AtomicUsize>,
}

impl Pipe {
    fn send(&self, frame: &Frame) {
        let bytes = wire::encode(frame).to_vec();
        self.inflight.fetch_add(bytes.len(), Ordering::Relaxed);
        // When the other end is gone its stream ends too, which is what the engine reacts to.
        let _ = self.frames.send(bytes);
    }

    fn is_full(&self) -> bool {
        self.inflight.load(Ordering::Relaxed) >= INFLIGHT_BYTES_MAX
    }

    /// Whether there is so much room that it is worth to find out what is next.
    fn has_room(&self) -> bool {
        self.inflight.load(Ordering::Relaxed) < INFLIGHT_BYTES_MAX / 2
    }
}

/// One live stream to a shadow.
#[derive(Debug)]
pub struct Shipper {
    pipe: Pipe,
    /// What the shadow has once it took everything that was sent; none until that is known.
    at: Option<Manifest>,
    /// Cut that was sealed last on this stream.
    sealed: Option<GenerationId>,
    /// Those that the shadow has not acknowledged, oldest first; at most [`UNACKED_MAX`].
    unacked: VecDeque<GenerationId>,
    begun: bool,
    pages: Manifest,
    whole: bool,
    drafts: Drafts,
}

/// Whether the shadow gets what was read before there is a cut of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drafts {
    /// It has a copy: what was not read yet must not be taken from it.
    None,
    /// It has nothing; something before was not sent.
    All,
    /// It has all until the last one.
    Next,
}

/// Bytes of content that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub full_bytes: u64,
    pub delta_bytes: u64,
}

impl Shipper {
    pub fn new(pipe: Pipe) -> Self {
        Self {
            pipe,
            at: None,
            sealed: None,
            unacked: VecDeque::new(),
            begun: false,
            pages: Manifest::default(),
            whole: true,
            drafts: Drafts::None,
        }
    }

    pub fn sealed(&self) -> Option<GenerationId> {
        self.sealed
    }

    /// Takes the shadow's state or a page of its manifest. False means that the stream is of no use.
    pub fn answer(&mut self, answer: Answer, cut: Option<&Cut>) -> bool {
        match answer {
            Answer::State {
                identifiers, digest, ..
            } => {
                self.sealed = cut
                    .filter(|cut| cut.digest == digest && identifiers.current == Some(cut.generation))
                    .map(|cut| cut.generation);
                match cut.filter(|cut| cut.digest == digest) {
                    Some(cut) => self.at = Some(cut.manifest.clone()),
                    None if digest == Manifest::default().digest() => {
                        self.at = Some(Manifest::default());
                        self.drafts = Drafts::All;
                    }
                    None => self.pipe.send(&Frame::Exchange),
                }
                true
            }
            Answer::Page { entries, last } => {
                if self.pages.add_page(entries).is_err() {
                    return false;
                }
                if last {
                    let pages = std::mem::take(&mut self.pages);
                    if !pages.is_complete() {
                        return false;
                    }
                    if pages.iter().all(|(_, entry)| entry.body == Body::Dir) {
                        self.drafts = Drafts::All;
                    }
                    self.at = Some(pages);
                }
                true
            }
            Answer::Sealed { generation } => {
                self.unacked.retain(|sealed| *sealed > generation);
                true
            }
            Answer::Refused { .. } => false,
        }
    }

    /// Whether a draft would be of use and cannot be sent now.
    pub fn holds_up_drafts(&self) -> bool {
        self.drafts != Drafts::None && self.at.is_some() && self.pipe.is_full()
    }

    /// Sends to a shadow that has nothing what was read so far. Other paths than those in `fresh` are as they were
    /// in the last draft. `generation` is not older than the last and not newer than the next cut.
    pub fn draft(
        &mut self,
        generation: GenerationId,
        draft: &Manifest,
        fresh: &BTreeSet<RelPath>,
        cutter: &Cutter,
    ) -> Sent {
        let mut sent = Sent::default();
        let only = match self.drafts {
            Drafts::None => return sent,
            Drafts::All => None,
            Drafts::Next => Some(fresh),
        };
        self.drafts = Drafts::All;
        if self.pipe.is_full() {
            return sent;
        }
        let Some(mut at) = self.at.take() else { return sent };
        self.begin(generation, &at);
        let changes = diff(&at, draft, only, &BTreeMap::new());
        let (complete, bytes) = self.send(changes, &mut at, draft, cutter);
        if complete {
            self.drafts = Drafts::Next;
        }
        self.at = Some(at);
        sent.full_bytes = bytes;
        sent
    }

    /// Sends as much of the way to `cut` as there is room and content for.
    pub fn ship(&mut self, cut: &Cut, cutter: &Cutter) -> Sent {
        let mut sent = Sent::default();
        if self.sealed == Some(cut.generation) || !self.pipe.has_room() || self.unacked.len() >= UNACKED_MAX {
            return sent;
        }
        let Some(mut at) = self.at.take() else { return sent };
        self.drafts = Drafts::None;
        self.begin(cut.generation, &at);
        let follows = self.sealed.is_some() && self.sealed == cut.previous;
        let nothing = BTreeMap::new();
        let changes = if follows {
            diff(&at, &cut.manifest, Some(&cut.delta.touched), &cut.delta.origin)
        } else {
            diff(&at, &cut.manifest, None, &nothing)
        };
        let (complete, bytes) = self.send(changes, &mut at, &cut.manifest, cutter);
        if self.whole {
            sent.full_bytes = bytes;
        } else {
            sent.delta_bytes = bytes;
        }
        if complete && at == cut.manifest {
            self.pipe.send(&Frame::Seal {
                generation: cut.generation,
                digest: cut.digest,
            });
            self.sealed = Some(cut.generation);
            self.unacked.push_back(cut.generation);
            self.begun = false;
            self.whole = false;
            // Equal, and shared from here on.
            at = cut.manifest.clone();
        }
        self.at = Some(at);
        sent
    }

    fn begin(&mut self, generation: GenerationId, at: &Manifest) {
        if !self.begun {
            self.begun = true;
            self.pipe.send(&Frame::Begin {
                generation,
                base: at.digest(),
            });
        }
    }

    /// Sends steps towards `to` while there is room, and takes them at `at`. Returns whether these were all, and the
    /// bytes of content.
    fn send(&self, changes: Vec<Change>, at: &mut Manifest, to: &Manifest, cutter: &Cutter) -> (bool, u64) {
        let (mut batches, mut complete, mut bytes) = (Batches::new(OPS_BYTES_TARGET), true, 0);
        let mut push = |op: Op| {
            if let Err(error) = at.apply(&op) {
                tracing::error!(%error, "a difference does not fit; the shadow is asked again");
                return false;
            }
            batches.push(op);
            for ops in batches.full() {
                self.pipe.send(&Frame::Ops(ops));
            }
            true
        };
        for change in changes {
            if matches!(change, Change::Blocks { .. }) {
                let all = blocks(&change, to, cutter, &mut |op| {
                    if let Op::Write { bytes: content, .. } = &op {
                        bytes += content.len() as u64;
                    }
                    complete &= push(op);
                    !self.pipe.is_full()
                });
                complete &= all;
                if self.pipe.is_full() {
                    complete = false;
                    break;
                }
            } else if let Some(op) = without_content(change) {
                complete &= push(op);
            }
        }
        for ops in batches.rest() {
            self.pipe.send(&Frame::Ops(ops));
        }
        (complete, bytes)
    }
}

/// Turns blocks into writes, from the content that was read last or, where a file still holds what the manifest
/// says, from the file. Returns whether all could be had; `each` returns whether there is room for more.
fn blocks(change: &Change, to: &Manifest, cutter: &Cutter, each: &mut dyn FnMut(Op) -> bool) -> bool {
    let (Change::Blocks { path, first, .. }, range) = (change, byte_range(to, change)) else {
        return true;
    };
    let Some(Body::File { blocks, .. }) = to.get(path).map(|entry| &entry.body) else {
        return false;
    };
    let (mut file, mut all) = (None, true);
    let (mut start, mut run) = (range.start, Vec::new());
    for number in *first..range.end.div_ceil(BLOCK) {
        let bytes = number * BLOCK..((number + 1) * BLOCK).min(range.end);
        let wanted = blocks.get(number as usize);
        let fits = |content: &[u8]| {
            content.len() as u64 == bytes.end - bytes.start && Some(block_hash(content)) == wanted
        };
        let kept = wanted.and_then(|wanted| cutter.content(path, number, wanted));
        let before = run.len();
        if let Some(content) = kept {
            run.extend_from_slice(content);
        } else {
            if file.is_none() {
                file = cutter
                    .roots()
                    .absolute(path)
                    .and_then(|path| open(&path).ok().flatten());
            }
            let mut content = Vec::with_capacity(BLOCK as usize);
            let read = file
                .as_ref()
                .map(|file| read_range(file, bytes.clone(), |_, piece| content.extend_from_slice(piece)));
            if matches!(read, Some(Ok(_))) && fits(&content) {
                run.extend_from_slice(&content);
            }
        }
        let missing = run.len() == before;
        all &= !missing;
        if (missing && !run.is_empty()) || run.len() >= WRITE_BYTES_MAX {
            let room = each(Op::Write {
                path: path.clone(),
                offset: start,
                bytes: std::mem::take(&mut run),
            });
            start = bytes.end;
            if !room {
                return false;
            }
        }
        if missing {
            start = bytes.end;
        }
    }
    if !run.is_empty() {
        each(Op::Write {
            path: path.clone(),
            offset: start,
            bytes: run,
        });
    }
    all
}
