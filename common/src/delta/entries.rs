//! A sorted map from paths to entries, in shared leaves.
//!
//! Invariants: a copy shares its leaves until one of them changes, so that copying, comparing and digesting cost a
//! pointer for each leaf, and more only where two differ. Which paths begin a leaf follows from the paths alone:
//! equal maps are always divided in the same way. Names that somebody chose for the purpose make one leaf long,
//! which is then as dear to copy as a plain map.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::manifest::Entry;
use super::{Digest, RelPath};

/// One path in so many begins a leaf.
const LEAF: u64 = 16;

#[derive(Clone, Default)]
pub struct Entries {
    /// In order, none empty. All but the first begin with a path that begins a leaf.
    leaves: Vec<Arc<Leaf>>,
    len: usize,
}

#[derive(Default)]
struct Leaf {
    entries: BTreeMap<RelPath, Arc<Entry>>,
    /// Of the entries as they are; made when it is asked for.
    digest: OnceLock<Digest>,
}

impl Clone for Leaf {
    /// To be changed: the digest is not that of what it becomes.
    fn clone(&self) -> Self {
        Self::of(self.entries.clone())
    }
}

impl Leaf {
    const fn of(entries: BTreeMap<RelPath, Arc<Entry>>) -> Self {
        Self {
            entries,
            digest: OnceLock::new(),
        }
    }

    fn begins_after(&self, path: &RelPath) -> bool {
        self.entries
            .first_key_value()
            .is_none_or(|(first, _)| first > path)
    }

    fn digest(&self) -> &Digest {
        self.digest.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            for (path, entry) in &self.entries {
                entry.digest_into(path, &mut hasher);
            }
            *hasher.finalize().as_bytes()
        })
    }
}

/// Part of what a digest is of: FNV-1a, its upper half folded in.
fn begins_leaf(path: &RelPath) -> bool {
    let hash = path
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    (hash ^ (hash >> 32)).is_multiple_of(LEAF)
}

impl Entries {
    /// The leaf that holds a path if any does; none before the first.
    fn leaf(&self, path: &RelPath) -> Option<usize> {
        self.leaves
            .partition_point(|leaf| !leaf.begins_after(path))
            .checked_sub(1)
    }

    /// A leaf of this copy alone, with no digest.
    fn change(&mut self, number: usize) -> &mut BTreeMap<RelPath, Arc<Entry>> {
        let leaf = Arc::make_mut(&mut self.leaves[number]);
        leaf.digest = OnceLock::new();
        &mut leaf.entries
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, path: &RelPath) -> Option<&Entry> {
        let leaf = &self.leaves[self.leaf(path)?];
        leaf.entries.get(path).map(|entry| &**entry)
    }

    /// To be changed: an entry that is shared is copied.
    pub fn get_mut(&mut self, path: &RelPath) -> Option<&mut Entry> {
        let number = self.leaf(path)?;
        if !self.leaves[number].entries.contains_key(path) {
            return None;
        }
        self.change(number).get_mut(path).map(Arc::make_mut)
    }

    pub fn insert(&mut self, path: RelPath, entry: Entry) -> Option<Entry> {
        let (entry, begins) = (Arc::new(entry), begins_leaf(&path));
        let number = match self.leaf(&path) {
            Some(number) => number,
            // Before all: what begins with a path that begins a leaf takes none before it.
            None => {
                let first = self
                    .leaves
                    .first()
                    .and_then(|leaf| leaf.entries.first_key_value());
                if first.is_none_or(|(first, _)| begins_leaf(first)) {
                    self.leaves.insert(0, Arc::default());
                }
                0
            }
        };
        let leaf = self.change(number);
        let was = leaf.insert(path.clone(), entry);
        if was.is_none() {
            self.len += 1;
            if begins {
                let leaf = self.change(number);
                let after = leaf.split_off(&path);
                if leaf.is_empty() {
                    *leaf = after;
                } else {
                    self.leaves.insert(number + 1, Arc::new(Leaf::of(after)));
                }
            }
        }
        was.map(Arc::unwrap_or_clone)
    }

    pub fn remove(&mut self, path: &RelPath) -> Option<Entry> {
        let number = self.leaf(path)?;
        if !self.leaves[number].entries.contains_key(path) {
            return None;
        }
        let leaf = self.change(number);
        let was = leaf.remove(path)?;
        let continues = leaf
            .first_key_value()
            .is_some_and(|(first, _)| !begins_leaf(first));
        if leaf.is_empty() {
            self.leaves.remove(number);
        } else if continues && number > 0 {
            let mut rest = std::mem::take(leaf);
            self.leaves.remove(number);
            self.change(number - 1).append(&mut rest);
        }
        self.len -= 1;
        Some(Arc::unwrap_or_clone(was))
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&RelPath, &Entry)> {
        let leaves = self.leaves.iter().flat_map(|leaf| &leaf.entries);
        leaves.map(|(path, entry)| (path, &**entry))
    }

    /// Paths from this one on.
    pub fn from<'a>(&'a self, path: &RelPath) -> impl Iterator<Item = &'a RelPath> + use<'a> {
        let number = self.leaf(path).unwrap_or(0);
        let mut leaves = self.leaves.get(number..).unwrap_or_default().iter();
        let first = leaves.next().map(|leaf| leaf.entries.range(path.clone()..));
        let first = first.into_iter().flatten();
        first
            .chain(leaves.flat_map(|leaf| leaf.entries.iter()))
            .map(|(path, _)| path)
    }

    /// Paths, not in order, that only one of the two has, or of which the entries differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> HashSet<&'a RelPath> {
        let mut found = HashSet::new();
        for (one, two) in [(self, other), (other, self)] {
            let shared: HashSet<*const Leaf> = two.leaves.iter().map(Arc::as_ptr).collect();
            for leaf in one
                .leaves
                .iter()
                .filter(|leaf| !shared.contains(&Arc::as_ptr(leaf)))
            {
                let differ = leaf
                    .entries
                    .iter()
                    .filter(|(path, entry)| two.get(path) != Some(&***entry));
                found.extend(differ.map(|(path, _)| path));
            }
        }
        found
    }

    /// Adds the digest of each leaf.
    pub fn digest_into(&self, hasher: &mut blake3::Hasher) {
        for leaf in &self.leaves {
            hasher.update(leaf.digest());
        }
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        let mut leaves = self.leaves.iter().zip(&other.leaves);
        // Equal maps are divided in the same way.
        self.len == other.len
            && self.leaves.len() == other.leaves.len()
            && leaves.all(|(a, b)| Arc::ptr_eq(a, b) || a.entries == b.entries)
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Body, Meta};
    use super::*;

    fn path(n: u16) -> RelPath {
        RelPath::root(0).join(format!("{n}").as_bytes()).expect("good")
    }

    fn entry(tag: u8) -> Entry {
        Entry {
            meta: Meta {
                mode: 0o600,
                uid: u32::from(tag),
                gid: 0,
                mtime_ns: 0,
                xattrs: Default::default(),
            },
            body: Body::Dir,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        Change(u16, u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..600_u16, 0..3_u8).prop_map(|(n, tag)| Step::Insert(n, tag)),
            2 => (0..600_u16).prop_map(Step::Remove),
            1 => (0..600_u16, 0..3_u8).prop_map(|(n, tag)| Step::Change(n, tag)),
        ];
        proptest::collection::vec(step, 0..500)
    }

    fn play(steps: &[Step], entries: &mut Entries, plain: &mut BTreeMap<RelPath, Entry>) {
        for step in steps {
            match step {
                Step::Insert(n, tag) => {
                    let was = plain.insert(path(*n), entry(*tag));
                    assert_eq!(entries.insert(path(*n), entry(*tag)), was);
                }
                Step::Remove(n) => assert_eq!(entries.remove(&path(*n)), plain.remove(&path(*n))),
                Step::Change(n, tag) => {
                    let (ours, theirs) = (entries.get_mut(&path(*n)), plain.get_mut(&path(*n)));
                    assert_eq!(ours, theirs);
                    if let Some((ours, theirs)) = ours.zip(theirs) {
                        *ours = entry(*tag);
                        *theirs = entry(*tag);
                    }
                }
            }
        }
    }

    fn digest(entries: &Entries) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        entries.digest_into(&mut hasher);
        hasher.finalize()
    }

    proptest! {
        #[test]
        fn they_are_the_map_of_their_paths(before in steps(), after in steps(), from in 0..600_u16) {
            let (mut old, mut old_plain) = (Entries::default(), BTreeMap::new());
            play(&before, &mut old, &mut old_plain);
            digest(&old);
            let (mut new, mut new_plain) = (old.clone(), old_plain.clone());
            play(&after, &mut new, &mut new_plain);
            prop_assert!(old.iter().eq(&old_plain), "a copy changes nothing");
            prop_assert!(new.iter().eq(&new_plain));
            prop_assert!(new.iter().rev().eq(new_plain.iter().rev()));
            prop_assert_eq!(new.len(), new_plain.len());
            prop_assert_eq!(new == old, new_plain == old_plain);
            prop_assert!(new.from(&path(from)).eq(new_plain.range(path(from)..).map(|(path, _)| path)));
            prop_assert!(new.leaves.iter().all(|leaf| !leaf.entries.is_empty()));

            let mut anew = Entries::default();
            for (path, entry) in new_plain.iter().rev() {
                anew.insert(path.clone(), entry.clone());
            }
            prop_assert_eq!(&anew, &new, "however it was made");
            prop_assert_eq!(digest(&anew), digest(&new));
            prop_assert_eq!(digest(&old) == digest(&new), old_plain == new_plain);

            let all = old_plain.keys().chain(new_plain.keys());
            let expected: HashSet<&RelPath> = all.filter(|path| old_plain.get(path) != new_plain.get(path)).collect();
            prop_assert_eq!(new.differences(&old), expected);
        }
    }
}
