//! The shortest safe way from one manifest to another.

use std::collections::{BTreeMap, BTreeSet};

use super::manifest::resize;
use super::{Blocks, Body, Entry, Manifest, Meta, RelPath};

/// A step of which the content still has to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Create {
        path: RelPath,
        meta: Meta,
        body: Body,
    },
    Truncate {
        path: RelPath,
        len: u64,
    },
    /// Blocks `first..first + count` of the file as it is afterwards.
    Blocks {
        path: RelPath,
        first: u64,
        count: u64,
    },
    Meta {
        path: RelPath,
        meta: Meta,
    },
    Rename {
        from: RelPath,
        to: RelPath,
    },
    Unlink {
        path: RelPath,
    },
}

/// Steps from `before` to `after`. With `only`, other paths are taken to be equal. `origin` tells
/// for a path of `after` which path of `before` holds the same file; a wrong one costs bytes, not
/// correctness.
///
/// Links to files that move or go away go first. Renamed files are parked under names of their own first, so that chains and swaps of names need no
/// order; then names go away, directories appear, files arrive, contents and attributes follow.
pub fn diff(
    before: &Manifest,
    after: &Manifest,
    only: Option<&BTreeSet<RelPath>>,
    origin: &BTreeMap<RelPath, RelPath>,
) -> Vec<Change> {
    let paths: BTreeSet<&RelPath> = match only {
        Some(only) => only.iter().collect(),
        None => after.differences(before).into_iter().collect(),
    };
    let renames = renames(before, after, origin, &paths);
    let sources: BTreeSet<&RelPath> = renames.values().copied().collect();
    let stays = |path: &RelPath| match (before.get(path), after.get(path)) {
        (Some(was), Some(is)) => {
            was.body.same_kind(&is.body) && !sources.contains(path) && !renames.contains_key(path)
        }
        _ => false,
    };
    let kept = |path: &RelPath| {
        stays(path)
            && match after.get(path).map(|is| &is.body) {
                Some(Body::Link { to }) => stays(to),
                _ => true,
            }
    };
    let was_link = |path: &RelPath| matches!(before.get(path).map(|was| &was.body), Some(Body::Link { .. }));

    let mut out = Vec::new();
    for &path in &paths {
        if was_link(path) && !kept(path) {
            out.push(Change::Unlink { path: path.clone() });
        }
    }
    let parks: Vec<RelPath> = parking(before, after).take(renames.len()).collect();
    for (&from, park) in renames.values().zip(&parks) {
        out.push(Change::Rename {
            from: from.clone(),
            to: park.clone(),
        });
    }
    for &path in paths.iter().rev() {
        if before.get(path).is_some() && !was_link(path) && !sources.contains(path) && !kept(path) {
            out.push(Change::Unlink { path: path.clone() });
        }
    }
    for &path in &paths {
        if let Some(Entry {
            meta,
            body: Body::Dir,
        }) = after.get(path)
            && !kept(path)
        {
            out.push(Change::Create {
                path: path.clone(),
                meta: meta.clone(),
                body: Body::Dir,
            });
        }
    }
    for (&to, park) in renames.keys().zip(&parks) {
        out.push(Change::Rename {
            from: park.clone(),
            to: to.clone(),
        });
    }
    for &path in &paths {
        let Some(is) = after.get(path) else { continue };
        let was = match renames.get(path) {
            Some(&from) => before.get(from),
            None if kept(path) => before.get(path),
            None => None,
        };
        content(path, was, is, &mut out);
    }
    out
}

fn content(path: &RelPath, was: Option<&Entry>, is: &Entry, out: &mut Vec<Change>) {
    let path = || path.clone();
    if let Body::File { len, blocks } = &is.body {
        let (mut old_len, mut old) = match was.map(|entry| &entry.body) {
            Some(Body::File { len, blocks }) => (*len, blocks.clone()),
            _ => {
                out.push(Change::Create {
                    path: path(),
                    meta: is.meta.clone(),
                    body: Body::empty_file(),
                });
                (0, Blocks::new())
            }
        };
        if old_len != *len {
            out.push(Change::Truncate {
                path: path(),
                len: *len,
            });
            resize(&mut old_len, &mut old, *len);
        }
        for run in blocks.differences(&old) {
            out.push(Change::Blocks {
                path: path(),
                first: run.start as u64,
                count: run.len() as u64,
            });
        }
    } else if was.is_none() && !matches!(is.body, Body::Dir) {
        out.push(Change::Create {
            path: path(),
            meta: is.meta.clone(),
            body: is.body.clone(),
        });
    }
    if was.is_some_and(|was| was.meta != is.meta) {
        out.push(Change::Meta {
            path: path(),
            meta: is.meta.clone(),
        });
    }
}

/// New path → old path of files that moved; each old path at most once.
fn renames<'a>(
    before: &Manifest,
    after: &Manifest,
    origin: &'a BTreeMap<RelPath, RelPath>,
    paths: &BTreeSet<&RelPath>,
) -> BTreeMap<&'a RelPath, &'a RelPath> {
    let mut used = BTreeSet::new();
    let is_file = |manifest: &Manifest, path| {
        matches!(
            manifest.get(path),
            Some(Entry {
                body: Body::File { .. },
                ..
            })
        )
    };
    origin
        .iter()
        .filter(|(to, from)| to != from && paths.contains(to) && paths.contains(from))
        .filter(|(to, from)| is_file(before, from) && is_file(after, to))
        .filter(|(_, from)| used.insert(*from))
        .collect()
}

fn parking<'a>(before: &'a Manifest, after: &'a Manifest) -> impl Iterator<Item = RelPath> + 'a {
    let dir = before
        .iter()
        .find(|(path, _)| path.is_root())
        .map_or_else(|| RelPath::root(0), |(path, _)| path.clone());
    (0u64..)
        .filter_map(move |n| dir.join(format!(".understudy-parked-{n}").as_bytes()).ok())
        .filter(|path| before.get(path).is_none() && after.get(path).is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BLOCK, Node, Op, block_hashes};
    use super::*;

    type Contents = BTreeMap<RelPath, Vec<u8>>;

    fn meta(tag: u8) -> Meta {
        Meta {
            mode: 0o600 + u32::from(tag % 8),
            uid: 0,
            gid: 0,
            mtime_ns: i64::from(tag),
            xattrs: (0..tag % 3).map(|n| (vec![b'u', n], vec![tag; 3])).collect(),
        }
    }

    /// A tree from a list of (directory, name, kind, size, fill).
    fn tree(plan: &[(u8, u8, u8, u16, u8)]) -> (Manifest, Contents) {
        let (mut manifest, mut contents) = (Manifest::default(), Contents::new());
        let root = RelPath::root(0);
        manifest.insert(
            root.clone(),
            Entry {
                meta: meta(0),
                body: Body::Dir,
            },
        );
        for &(dir, name, kind, size, fill) in plan {
            let dir = if dir % 3 == 0 {
                root.clone()
            } else {
                root.join(format!("d{}", dir % 3).as_bytes()).expect("good")
            };
            if manifest.get(&dir).is_some_and(|entry| entry.body != Body::Dir) {
                continue;
            }
            manifest.insert(
                dir.clone(),
                Entry {
                    meta: meta(fill),
                    body: Body::Dir,
                },
            );
            let name = if name % 5 < 2 {
                format!("d{}", name % 5 + 1)
            } else {
                format!("f{}", name % 5)
            };
            let path = dir.join(name.as_bytes()).expect("good");
            if manifest.get(&path).is_some() {
                continue;
            }
            let body = match kind % 4 {
                3 if linkable(&manifest, &path, fill).is_some() => Body::Link {
                    to: linkable(&manifest, &path, fill).expect("seen"),
                },
                0 if fill % 5 == 0 => Body::Node(Node::Char {
                    major: 1,
                    minor: u32::from(fill % 3),
                }),
                0 => Body::Symlink {
                    target: vec![b'a' + fill % 3],
                },
                _ => {
                    let bytes: Vec<u8> = (0..usize::from(size))
                        .map(|at| ((at / 4096) as u8).wrapping_mul(fill % 3))
                        .collect();
                    let blocks = block_hashes(&bytes).collect();
                    contents.insert(path.clone(), bytes);
                    Body::File {
                        len: u64::from(size),
                        blocks,
                    }
                }
            };
            manifest.insert(
                path,
                Entry {
                    meta: meta(fill),
                    body,
                },
            );
        }
        (manifest, contents)
    }

    /// A file of an earlier name.
    fn linkable(manifest: &Manifest, path: &RelPath, fill: u8) -> Option<RelPath> {
        let files = manifest
            .iter()
            .filter(|(other, entry)| *other < path && matches!(entry.body, Body::File { .. }));
        let files: Vec<&RelPath> = files.map(|(path, _)| path).collect();
        (!files.is_empty()).then(|| files[usize::from(fill) % files.len()].clone())
    }

    fn op(change: Change, contents: &Contents) -> Op {
        match change {
            Change::Create { path, meta, body } => Op::Create { path, meta, body },
            Change::Truncate { path, len } => Op::Truncate { path, len },
            Change::Meta { path, meta } => Op::Meta { path, meta },
            Change::Rename { from, to } => Op::Rename { from, to },
            Change::Unlink { path } => Op::Unlink { path },
            Change::Blocks { path, first, count } => {
                let whole = &contents[&path];
                let range = (first * BLOCK) as usize..(((first + count) * BLOCK) as usize).min(whole.len());
                Op::Write {
                    offset: first * BLOCK,
                    bytes: whole[range].to_vec(),
                    path,
                }
            }
        }
    }

    fn plans() -> impl Strategy<Value = Vec<(u8, u8, u8, u16, u8)>> {
        proptest::collection::vec(
            (any::<u8>(), any::<u8>(), any::<u8>(), 0u16..20_000, any::<u8>()),
            0..12,
        )
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_other(a in plans(), b in plans(), links in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..5)) {
            let ((before, _), (after, contents)) = (tree(&a), tree(&b));
            let pick = |manifest: &Manifest, at: &prop::sample::Index| at.get(&manifest.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>()).clone();
            let origin = links.iter().map(|(from, to)| (pick(&after, to), pick(&before, from))).collect();
            let mut now = before.clone();
            for change in diff(&before, &after, None, &origin) {
                let step = op(change, &contents);
                now.apply(&step).map_err(|error| TestCaseError::fail(format!("{step:?}: {error}")))?;
            }
            prop_assert_eq!(now.digest(), after.digest());
            prop_assert_eq!(now, after);
        }

        #[test]
        fn hostile_operations_never_panic(a in plans(), path in proptest::collection::vec(any::<u8>(), 0..12), offset: u64, bytes in proptest::collection::vec(any::<u8>(), 0..10)) {
            let (mut manifest, _) = tree(&a);
            let Ok(path) = RelPath::new(path) else { return Ok(()) };
            for op in [
                Op::Write { path: path.clone(), offset, bytes },
                Op::Truncate { path: path.clone(), len: offset.max(super::super::FILE_BYTES_MAX + 1) },
                Op::Unlink { path: path.clone() },
                Op::Rename { from: path.clone(), to: path },
            ] {
                let _ = manifest.apply(&op);
            }
        }
    }

    #[test]
    fn a_renamed_file_is_not_sent_again() {
        let (before, _) = tree(&[(0, 2, 1, 10_000, 1), (0, 3, 1, 9_000, 2)]);
        let (a, b) = (
            RelPath::new(b"0/f2".to_vec()).expect("good"),
            RelPath::new(b"0/f3".to_vec()).expect("good"),
        );
        let mut after = before.clone();
        let (was_a, was_b) = (after.remove(&a).expect("there"), after.remove(&b).expect("there"));
        after.insert(a.clone(), was_b);
        after.insert(b.clone(), was_a);
        let origin = BTreeMap::from([(a.clone(), b.clone()), (b, a)]);
        let steps = diff(&before, &after, None, &origin);
        assert_eq!(steps.len(), 4, "{steps:?}");
        assert!(
            steps.iter().all(|step| matches!(step, Change::Rename { .. })),
            "{steps:?}"
        );
    }
}
