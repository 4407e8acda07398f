//! Which names there are, and which file each of them is.
//!
//! Invariants: a file is watched before it is read; a file whose name goes away and comes back under
//! another keeps its blocks only while it is watched without a break, so that its marks say the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd as _;

use understudy_common::delta::{Body, Entry, RelPath};

use super::Cutter;
use crate::sync::roots::{Seen, look, open_file};
use crate::sync::scan::ScanSource;
use crate::sync::tracker::{InodeKey, PageSet, TrackError};

impl Cutter {
    /// Brings the manifest's names and attributes up to date at `paths` and at those that an event `named`. A
    /// directory among the latter is looked through: it may be another one of the same inode number, and what
    /// went with the one before is in no event that could still be resolved. At those that are only `marked`, by a
    /// page that a watched file had written, the same inode is the same file: another would have an event.
    pub(super) fn names(
        &mut self,
        paths: &BTreeSet<RelPath>,
        named: &BTreeSet<RelPath>,
        marked: &BTreeSet<RelPath>,
    ) -> io::Result<()> {
        let mut seen: BTreeMap<RelPath, Option<Seen>> = BTreeMap::new();
        let mut todo: Vec<RelPath> = marked.iter().chain(paths).chain(named).cloned().collect();
        while let Some(path) = todo.pop() {
            if seen.contains_key(&path) {
                continue;
            }
            let Some(absolute) = self.roots.absolute(&path) else {
                continue;
            };
            let now = look(&absolute)?.filter(|now| now.entry.is_some());
            let known = self.keys.get(&path).copied();
            // What changed of a file changed under all its names.
            for key in known.into_iter().chain(now.as_ref().map(|now| now.key)) {
                let names = self.paths.get(&key).into_iter().chain(self.aliases.get(&key));
                todo.extend(names.flatten().cloned());
            }
            let is_dir = matches!(
                &now,
                Some(Seen {
                    entry: Some(Entry { body: Body::Dir, .. }),
                    ..
                })
            );
            if !self.stays(&path, now.as_ref()) || (is_dir && named.contains(&path)) {
                todo.extend(self.work.below(&path).cloned());
                if is_dir {
                    let mut below = Vec::new();
                    self.roots.walk(&path, &mut below);
                    todo.extend(below);
                }
            }
            seen.insert(path, now);
        }
        let mut moved: HashMap<InodeKey, (RelPath, Entry)> = HashMap::new();
        for (path, now) in &seen {
            let Some(&key) = self.keys.get(path) else { continue };
            if !self.stays(path, now.as_ref()) {
                self.detach(path, key, &mut moved);
            }
        }
        for (path, now) in seen {
            let Some(Seen {
                key,
                entry: Some(entry),
                ..
            }) = now
            else {
                continue;
            };
            let is_watched = marked.contains(&path) && !paths.contains(&path) && !named.contains(&path);
            self.attach(path, key, entry, is_watched, &mut moved)?;
        }
        for (key, _) in moved {
            self.source.unwatch(key);
        }
        Ok(())
    }

    /// Whether what is there now may be what was there before. An inode number is given to the next thing that is
    /// made, which may be of another kind; whether it is the same file only the source can tell.
    fn stays(&self, path: &RelPath, now: Option<&Seen>) -> bool {
        match (self.keys.get(path), now) {
            (None, None) => true,
            (Some(key), Some(now)) if *key == now.key => {
                let was = self.work.get(path);
                was.zip(now.entry.as_ref())
                    .is_some_and(|(was, is)| match (&was.body, &is.body) {
                        (Body::Link { .. }, Body::File { .. }) => true,
                        (was, is) => was.same_kind(is),
                    })
            }
            _ => false,
        }
    }

    fn detach(&mut self, path: &RelPath, key: InodeKey, moved: &mut HashMap<InodeKey, (RelPath, Entry)>) {
        self.keys.remove(path);
        let origin = self.delta.origin.remove(path).unwrap_or_else(|| path.clone());
        self.touch(path.clone());
        let entry = self.work.remove(path);
        if let Some(names) = self.aliases.get_mut(&key) {
            names.remove(path);
            if names.is_empty() {
                self.aliases.remove(&key);
            }
        }
        let Some(names) = self.paths.get_mut(&key) else {
            return;
        };
        names.remove(path);
        match entry {
            entry if names.is_empty() => {
                self.paths.remove(&key);
                moved.extend(entry.map(|entry| (key, (origin, entry))));
            }
            Some(Entry { body, .. }) if matches!(body, Body::File { .. }) => {
                self.hold(key, body, Some(origin));
            }
            _ => {}
        }
    }

    /// Gives a file's content to the first of its names, where it was at `origin` if the name did not hold it; the
    /// others are links to that.
    fn hold(&mut self, key: InodeKey, body: Body, origin: Option<RelPath>) {
        let mut names = self.paths.get(&key).cloned().unwrap_or_default().into_iter();
        let Some(first) = names.next() else { return };
        if let Some(origin) = origin {
            self.delta.origin.insert(first.clone(), origin);
        }
        for name in names {
            self.delta.origin.remove(&name);
            let to = first.clone();
            self.put(name, Body::Link { to });
        }
        self.put(first, body);
    }

    fn put(&mut self, path: RelPath, body: Body) {
        if self.work.get(&path).is_some_and(|entry| entry.body != body)
            && let Some(entry) = self.work.get_mut(&path)
        {
            entry.body = body;
            self.touch(path);
        }
    }

    fn attach(
        &mut self,
        path: RelPath,
        key: InodeKey,
        now: Entry,
        is_watched: bool,
        moved: &mut HashMap<InodeKey, (RelPath, Entry)>,
    ) -> io::Result<()> {
        let is_file = matches!(now.body, Body::File { .. });
        let same_inode = self.keys.get(&path) == Some(&key);
        // Inodes are used again: only the source knows whether this is the file that it watches.
        let is_new = is_file && !(same_inode && is_watched) && self.watch(&path, key)?;
        if same_inode && !is_new {
            self.look_again(path, key, now);
            return Ok(());
        }
        self.touch(path.clone());
        self.keys.insert(path.clone(), key);
        if !is_file {
            if now.body != Body::Dir {
                self.aliases.entry(key).or_default().insert(path.clone());
            }
            self.work.insert(path, now);
            return Ok(());
        }
        // Those of its names that are gone may be looked at only later. One that is there is enough.
        let mut other = None;
        let mut names = self.paths.get(&key).cloned().unwrap_or_default();
        names.remove(&path);
        for old in names {
            let still = self
                .roots
                .absolute(&old)
                .map_or(Ok(None), |absolute| look(&absolute))?;
            if still.map(|still| still.key) == Some(key) {
                other = Some(old);
                break;
            }
            self.detach(&old, key, moved);
        }
        let holder = self.paths.get(&key).and_then(|names| names.first()).cloned();
        let (body, origin) = match (moved.remove(&key), holder) {
            (Some((origin, entry)), _) if !is_new => (Some(entry.body), Some(origin)),
            (_, Some(holder)) if !is_new && other.is_some() => {
                let body = self.work.get(&holder).map(|entry| entry.body.clone());
                let takes_over = path < holder;
                let origin = takes_over.then(|| self.delta.origin.remove(&holder).unwrap_or(holder));
                (body, origin)
            }
            _ => (None, None),
        };
        let pages = self.carried.pages.entry(key).or_default();
        if body.is_none() {
            pages.insert(0..PageSet::END);
        }
        let (meta, empty) = (now.meta, Body::empty_file());
        self.work.insert(path.clone(), Entry { meta, body: empty });
        self.paths.entry(key).or_default().insert(path);
        self.hold(key, body.unwrap_or_else(Body::empty_file), origin);
        Ok(())
    }

    /// A name of the file that it was a name of before.
    fn look_again(&mut self, path: RelPath, key: InodeKey, now: Entry) {
        let holder = match self.paths.get(&key).and_then(|names| names.first()) {
            Some(first) => first.clone(),
            None => path.clone(),
        };
        if !self.work.get(&holder).is_some_and(|entry| same_size(entry, &now)) {
            self.carried.pages.entry(key).or_default();
            self.touch(holder);
        }
        if self.work.get(&path).is_some_and(|entry| entry.meta != now.meta)
            && let Some(entry) = self.work.get_mut(&path)
        {
            entry.meta = now.meta;
            self.touch(path);
        }
    }

    /// Whether the source did not watch this very file before. One that is gone again is news to come.
    fn watch(&mut self, path: &RelPath, key: InodeKey) -> io::Result<bool> {
        let Some(absolute) = self.roots.absolute(path) else {
            return Ok(false);
        };
        let Some(file) = open_file(&absolute, key)? else {
            return Ok(false);
        };
        match self.source.watch(key, file.as_fd()) {
            Err(why) if why.is_for_scanning() => {
                self.scan_from_now_on(&why);
                self.source.watch(key, file.as_fd()).map_err(io::Error::other)
            }
            watched => watched.map_err(io::Error::other),
        }
    }

    /// More files than the kernel can watch, or some on another file system: a scan has no such limits.
    fn scan_from_now_on(&mut self, why: &TrackError) {
        tracing::warn!(
            why = crate::sync::chain(why),
            "changes are found by scanning from now on; everything is compared once"
        );
        let watched = self.paths.keys().copied();
        self.source = Box::new(ScanSource::watching(self.roots.paths().to_vec(), watched));
        self.fell_back = true;
    }
}

pub(super) fn same_size(a: &Entry, b: &Entry) -> bool {
    match (&a.body, &b.body) {
        (Body::File { len: a, .. }, Body::File { len: b, .. }) => a == b,
        (a, b) => a.same_kind(b),
    }
}
