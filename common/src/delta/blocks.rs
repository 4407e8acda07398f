//! The hashes of a file's blocks, in shared pieces.
//!
//! Invariants: a copy shares its pieces until one of them changes; copying, comparing and digesting cost a
//! pointer for each group of pieces, and more only where two differ. All pieces but the last are full, and all
//! full groups of pieces are groups, so that equal hashes are always divided in the same way.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rkyv::Place;
use rkyv::rancor::Fallible;
use rkyv::ser::{Allocator, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};

use super::{BlockHash, Digest, NO_HASH};

/// Blocks in a piece: 4 MiB of a file.
const PIECE: usize = 1024;
/// Pieces in a group: 256 MiB of a file.
const GROUP: usize = 64;

/// One hash for each block of a file.
#[derive(Clone, Default)]
pub struct Blocks {
    groups: Vec<Arc<Group>>,
    /// What follows the groups: fewer pieces than a group has.
    rest: Vec<Arc<Piece>>,
    len: usize,
}

#[derive(Default)]
struct Piece {
    hashes: Vec<BlockHash>,
    /// Of the hashes as they are; made when it is asked for.
    sum: OnceLock<Sum>,
}

struct Group {
    /// [`GROUP`] full ones.
    pieces: Vec<Arc<Piece>>,
    sum: OnceLock<Sum>,
}

#[derive(Clone, Copy)]
struct Sum {
    digest: Digest,
    /// Some block's content is not known.
    unknown: bool,
}

impl Clone for Piece {
    /// To be changed: the sum is not that of what it becomes.
    fn clone(&self) -> Self {
        Self::of(self.hashes.clone())
    }
}

impl Piece {
    const fn of(hashes: Vec<BlockHash>) -> Self {
        Self {
            hashes,
            sum: OnceLock::new(),
        }
    }

    fn sum(&self) -> &Sum {
        self.sum.get_or_init(|| Sum {
            digest: *blake3::hash(self.hashes.as_flattened()).as_bytes(),
            unknown: self.hashes.contains(&NO_HASH),
        })
    }
}

impl Clone for Group {
    /// To be changed: the sum is not that of what it becomes.
    fn clone(&self) -> Self {
        Self::of(self.pieces.clone())
    }
}

impl Group {
    const fn of(pieces: Vec<Arc<Piece>>) -> Self {
        Self {
            pieces,
            sum: OnceLock::new(),
        }
    }

    fn sum(&self) -> &Sum {
        self.sum.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            let mut unknown = false;
            for piece in &self.pieces {
                let sum = piece.sum();
                hasher.update(&sum.digest);
                unknown |= sum.unknown;
            }
            Sum {
                digest: *hasher.finalize().as_bytes(),
                unknown,
            }
        })
    }
}

impl Blocks {
    pub const fn new() -> Self {
        Self {
            groups: Vec::new(),
            rest: Vec::new(),
            len: 0,
        }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn piece(&self, number: usize) -> Option<&Arc<Piece>> {
        match self.groups.get(number / GROUP) {
            Some(group) => group.pieces.get(number % GROUP),
            None => self.rest.get(number - self.groups.len() * GROUP),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &Arc<Piece>> {
        let grouped = self.groups.iter().flat_map(|group| &group.pieces);
        grouped.chain(&self.rest)
    }

    pub fn get(&self, at: usize) -> Option<BlockHash> {
        self.piece(at / PIECE)?.hashes.get(at % PIECE).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = BlockHash> + '_ {
        self.pieces().flat_map(|piece| piece.hashes.iter().copied())
    }

    /// Sets the hash of a block that there is; true when it was another. A block that there is not stays so.
    pub fn set(&mut self, at: usize, hash: BlockHash) -> bool {
        if self.get(at).is_none_or(|known| known == hash) {
            return false;
        }
        self.change(at / PIECE).hashes[at % PIECE] = hash;
        true
    }

    /// A piece of this copy alone, with no sum.
    fn change(&mut self, number: usize) -> &mut Piece {
        let grouped = self.groups.len() * GROUP;
        let piece = match self.groups.get_mut(number / GROUP) {
            Some(group) => {
                let group = Arc::make_mut(group);
                group.sum = OnceLock::new();
                &mut group.pieces[number % GROUP]
            }
            None => &mut self.rest[number - grouped],
        };
        let piece = Arc::make_mut(piece);
        piece.sum = OnceLock::new();
        piece
    }

    fn push(&mut self, hash: BlockHash) {
        if self.len.is_multiple_of(PIECE) {
            self.rest.push(Arc::default());
        }
        self.change(self.len / PIECE).hashes.push(hash);
        self.len += 1;
        self.group_full();
    }

    /// Makes groups of full pieces.
    fn group_full(&mut self) {
        let full = self.len / PIECE - self.groups.len() * GROUP;
        for _ in 0..full / GROUP {
            let pieces = self.rest.drain(..GROUP).collect();
            self.groups.push(Arc::new(Group::of(pieces)));
        }
    }

    /// Drops blocks at the end, or adds some with this hash. Whole groups and pieces that are added are one.
    pub fn resize(&mut self, len: usize, hash: BlockHash) {
        if len < self.len {
            self.shorten(len);
            return;
        }
        while self.len < len && !self.len.is_multiple_of(PIECE) {
            self.push(hash);
        }
        let piece = |count: usize| std::iter::repeat_n(Arc::new(Piece::of(vec![hash; PIECE])), count);
        let to_group = (GROUP - self.rest.len()).min((len - self.len) / PIECE);
        if to_group > 0 {
            self.rest.extend(piece(to_group));
            self.len += to_group * PIECE;
            self.group_full();
        }
        let groups = (len - self.len) / (PIECE * GROUP);
        if groups > 0 {
            let group = Arc::new(Group::of(piece(GROUP).collect()));
            self.groups.extend(std::iter::repeat_n(group, groups));
            self.len += groups * PIECE * GROUP;
        }
        let pieces = (len - self.len) / PIECE;
        if pieces > 0 {
            self.rest.extend(piece(pieces));
            self.len += pieces * PIECE;
        }
        while self.len < len {
            self.push(hash);
        }
    }

    fn shorten(&mut self, len: usize) {
        let groups = len / (PIECE * GROUP);
        if groups < self.groups.len() {
            self.rest.clear();
            self.rest.extend_from_slice(&self.groups[groups].pieces);
            self.groups.truncate(groups);
        }
        self.rest.truncate(len.div_ceil(PIECE) - groups * GROUP);
        self.len = len;
        if !len.is_multiple_of(PIECE) {
            self.change(len / PIECE).hashes.truncate(len % PIECE);
        }
    }

    /// Some of them, as hashes of their own.
    pub fn part(&self, range: Range<usize>) -> Self {
        range.filter_map(|at| self.get(at)).collect()
    }

    /// Blocks of which the content is not known.
    pub fn unknown(&self) -> impl Iterator<Item = usize> + '_ {
        let grouped = self.groups.iter().enumerate();
        let grouped = grouped
            .filter(|(_, group)| group.sum().unknown)
            .flat_map(|(number, group)| (number * GROUP..).zip(&group.pieces));
        let pieces = grouped.chain((self.groups.len() * GROUP..).zip(&self.rest));
        pieces
            .filter(|(_, piece)| piece.sum().unknown)
            .flat_map(|(number, piece)| {
                let hashes = piece.hashes.iter().enumerate();
                hashes
                    .filter(|(_, hash)| **hash == NO_HASH)
                    .map(move |(at, _)| number * PIECE + at)
            })
    }

    /// Runs of blocks, in order, of which the hashes are not those of `other`, or that it does not have.
    pub fn differences(&self, other: &Self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (number, group) in self.groups.iter().enumerate() {
            if other
                .groups
                .get(number)
                .is_some_and(|theirs| Arc::ptr_eq(group, theirs))
            {
                continue;
            }
            for (at, piece) in (number * GROUP..).zip(&group.pieces) {
                piece_differences(at, piece, other, &mut runs);
            }
        }
        for (at, piece) in (self.groups.len() * GROUP..).zip(&self.rest) {
            piece_differences(at, piece, other, &mut runs);
        }
        runs
    }

    /// Adds the digest of each group and of each piece after them.
    pub fn digest_into(&self, hasher: &mut blake3::Hasher) {
        for group in &self.groups {
            hasher.update(&group.sum().digest);
        }
        for piece in &self.rest {
            hasher.update(&piece.sum().digest);
        }
    }
}

fn piece_differences(number: usize, piece: &Arc<Piece>, other: &Blocks, runs: &mut Vec<Range<usize>>) {
    let theirs = other.piece(number);
    if theirs.is_some_and(|theirs| Arc::ptr_eq(piece, theirs)) {
        return;
    }
    for (at, hash) in piece.hashes.iter().enumerate() {
        if theirs.and_then(|theirs| theirs.hashes.get(at)) == Some(hash) {
            continue;
        }
        let at = number * PIECE + at;
        match runs.last_mut().filter(|run| run.end == at) {
            Some(run) => run.end += 1,
            None => runs.push(at..at + 1),
        }
    }
}

impl Extend<BlockHash> for Blocks {
    fn extend<I: IntoIterator<Item = BlockHash>>(&mut self, hashes: I) {
        hashes.into_iter().for_each(|hash| self.push(hash));
    }
}

impl FromIterator<BlockHash> for Blocks {
    fn from_iter<I: IntoIterator<Item = BlockHash>>(hashes: I) -> Self {
        let mut blocks = Self::new();
        blocks.extend(hashes);
        blocks
    }
}

impl PartialEq for Blocks {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Arc<Piece>, b: &Arc<Piece>| Arc::ptr_eq(a, b) || a.hashes == b.hashes;
        let mut groups = self.groups.iter().zip(&other.groups);
        // As many blocks are divided in the same way.
        self.len == other.len
            && groups
                .all(|(a, b)| Arc::ptr_eq(a, b) || a.pieces.iter().zip(&b.pieces).all(|(a, b)| same(a, b)))
            && self.rest.iter().zip(&other.rest).all(|(a, b)| same(a, b))
    }
}

impl Eq for Blocks {}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// On the wire it is a plain list of hashes.
impl rkyv::Archive for Blocks {
    type Archived = ArchivedVec<BlockHash>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(self.len, resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> rkyv::Serialize<S> for Blocks {
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let hashes: Vec<BlockHash> = self.iter().collect();
        ArchivedVec::serialize_from_slice(&hashes, serializer)
    }
}

impl<D: Fallible + ?Sized> rkyv::Deserialize<Blocks, D> for ArchivedVec<BlockHash> {
    fn deserialize(&self, _: &mut D) -> Result<Blocks, D::Error> {
        Ok(self.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn hash(n: u8) -> BlockHash {
        [n; 16]
    }

    fn list(blocks: &Blocks) -> Vec<BlockHash> {
        blocks.iter().collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(prop::sample::Index, u8),
        Resize(usize, u8),
        Extend(Vec<u8>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (any::<prop::sample::Index>(), 0..4_u8).prop_map(|(at, n)| Step::Set(at, n)),
            3 => (0..3 * PIECE, 0..4_u8).prop_map(|(len, n)| Step::Resize(len, n)),
            1 => (0..3 * GROUP * PIECE, 0..4_u8).prop_map(|(len, n)| Step::Resize(len, n)),
            1 => proptest::collection::vec(0..4_u8, 0..9).prop_map(Step::Extend),
        ];
        proptest::collection::vec(step, 0..12)
    }

    fn play(steps: &[Step], blocks: &mut Blocks, list: &mut Vec<BlockHash>) {
        for step in steps {
            match step {
                Step::Set(at, n) if !list.is_empty() => {
                    let at = at.index(list.len());
                    assert_eq!(blocks.set(at, hash(*n)), list[at] != hash(*n));
                    list[at] = hash(*n);
                }
                Step::Set(..) => assert!(!blocks.set(0, hash(1))),
                Step::Resize(len, n) => {
                    blocks.resize(*len, hash(*n));
                    list.resize(*len, hash(*n));
                }
                Step::Extend(more) => {
                    blocks.extend(more.iter().map(|n| hash(*n)));
                    list.extend(more.iter().map(|n| hash(*n)));
                }
            }
        }
    }

    fn digest(blocks: &Blocks) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        blocks.digest_into(&mut hasher);
        hasher.finalize()
    }

    proptest! {
        #[test]
        fn they_are_the_list_of_their_hashes(before in steps(), after in steps()) {
            let (mut old, mut old_list) = (Blocks::new(), Vec::new());
            play(&before, &mut old, &mut old_list);
            digest(&old);
            let (mut new, mut new_list) = (old.clone(), old_list.clone());
            play(&after, &mut new, &mut new_list);
            prop_assert_eq!(list(&old), &old_list[..], "a copy changes nothing");
            prop_assert_eq!(list(&new), &new_list[..]);
            prop_assert_eq!(new.len(), new_list.len());
            prop_assert_eq!(new == old, new_list == old_list);

            let anew: Blocks = new_list.iter().copied().collect();
            prop_assert_eq!(&anew, &new);
            prop_assert_eq!(digest(&anew), digest(&new));
            prop_assert_eq!(digest(&old) == digest(&new), old_list == new_list);

            let differ: Vec<usize> = new.differences(&old).into_iter().flatten().collect();
            let expected = (0..new_list.len()).filter(|at| old_list.get(*at) != Some(&new_list[*at]));
            prop_assert_eq!(differ, expected.collect::<Vec<_>>());
            let unknown: Vec<usize> = new.unknown().collect();
            let expected = (0..new_list.len()).filter(|at| new_list[*at] == NO_HASH);
            prop_assert_eq!(unknown, expected.collect::<Vec<_>>());

            let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&new).expect("memory");
            let plain = rkyv::to_bytes::<rkyv::rancor::Error>(&new_list).expect("memory");
            prop_assert_eq!(&bytes[..], &plain[..], "a plain list on the wire");
            let back = rkyv::from_bytes::<Blocks, rkyv::rancor::Error>(&bytes).expect("sound");
            prop_assert_eq!(back, new);
        }
    }

    #[test]
    fn a_long_hole_is_one_group() {
        let mut blocks = Blocks::new();
        blocks.resize((3 * GROUP + 9) * PIECE, hash(7));
        assert!(
            blocks.groups[1..]
                .windows(2)
                .all(|two| Arc::ptr_eq(&two[0], &two[1]))
        );
        assert!(blocks.rest.windows(2).all(|two| Arc::ptr_eq(&two[0], &two[1])));
        blocks.set(PIECE, hash(8));
        assert_eq!(blocks.get(0), Some(hash(7)));
        assert_eq!(blocks.differences(&blocks.clone()), []);
    }
}
