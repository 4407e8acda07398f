//! Whether two trees are equal, byte for byte, with every attribute that a shadow must have.
//!
//! Invariant: nothing of the product's own ideas of a file is used here. Not compared, since a shadow need not have
//! it: access and change times, inode numbers, which names are links of one file, extended attributes, holes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Permissions, the special bits among them.
const MODE: u32 = 0o7777;

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    attributes: Attributes,
    content: Content,
}

#[derive(Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    /// Of a file; directories count theirs as their file system likes.
    names: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Directory,
    File(Vec<u8>),
    Symlink(PathBuf),
    Other,
}

/// The names that are not the same on both sides, and how they differ. A tree that is not there has no names.
pub(super) fn differences(ours: &Path, theirs: &Path) -> Result<Vec<String>> {
    let (ours, theirs) = (entries(ours)?, entries(theirs)?);
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differ = names.into_iter().filter_map(|name| {
        let how = difference(ours.get(name), theirs.get(name))?;
        Some(format!("{}: {how}", name.display()))
    });
    Ok(differ.collect())
}

fn difference(ours: Option<&Entry>, theirs: Option<&Entry>) -> Option<String> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours == theirs => None,
        (Some(ours), Some(theirs)) if ours.content == theirs.content => Some(format!(
            "{:?} here, {:?} there",
            ours.attributes, theirs.attributes
        )),
        (Some(ours), Some(theirs)) => Some(ours.content.difference(&theirs.content)),
        (Some(_), None) => Some("not on the shadow".to_owned()),
        _ => Some("on the shadow only".to_owned()),
    }
}

impl Content {
    fn difference(&self, other: &Self) -> String {
        match (self, other) {
            (Self::File(ours), Self::File(theirs)) => {
                let at = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
                let at = at.unwrap_or(ours.len().min(theirs.len()));
                format!("{} and {} bytes, unequal from {at} on", ours.len(), theirs.len())
            }
            _ => "not of one kind".to_owned(),
        }
    }
}

fn entries(root: &Path) -> Result<BTreeMap<PathBuf, Entry>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(name) = todo.pop() {
        let path = root.join(&name);
        let Some(entry) = there(entry(&path)).with_context(|| path.display().to_string())? else {
            continue;
        };
        if entry.content == Content::Directory {
            for below in there(fs::read_dir(&path))?.into_iter().flatten() {
                todo.push(name.join(below?.file_name()));
            }
        }
        found.insert(name, entry);
    }
    Ok(found)
}

fn entry(path: &Path) -> io::Result<Entry> {
    let meta = fs::symlink_metadata(path)?;
    let content = if meta.is_dir() {
        Content::Directory
    } else if meta.is_file() {
        Content::File(fs::read(path)?)
    } else if meta.is_symlink() {
        Content::Symlink(fs::read_link(path)?)
    } else {
        Content::Other
    };
    Ok(Entry {
        attributes: attributes(&meta),
        content,
    })
}

fn attributes(meta: &Metadata) -> Attributes {
    Attributes {
        mode: meta.mode() & MODE,
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        names: if meta.is_file() { meta.nlink() } else { 1 },
    }
}

/// None of what goes away while it is looked at: a shadow may still be patching its files.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound};
    match result {
        Err(error)
            if matches!(
                error.kind(),
                NotFound | NotADirectory | IsADirectory | InvalidInput
            ) =>
        {
            Ok(None)
        }
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_byte_a_mode_a_time_and_a_name_are_differences() {
        let at = std::env::temp_dir().join(format!("understudy-tree-{}", std::process::id()));
        let (ours, theirs) = (at.join("ours"), at.join("theirs"));
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let touch = |path: &Path| File::open(path).and_then(|file| file.set_modified(when));
        let fill = |root: &Path| -> io::Result<()> {
            fs::create_dir_all(root.join("d"))?;
            fs::write(root.join("d/f"), "content")?;
            fs::write(root.join("g"), "content")?;
            ["d/f", "g", "d", ""]
                .iter()
                .try_for_each(|name| touch(&root.join(name)))
        };
        fill(&ours).and_then(|()| fill(&theirs)).expect("writable");
        let check = |names: &[&str]| {
            let found = differences(&ours, &theirs).expect("readable");
            let found: Vec<_> = found.iter().filter_map(|line| line.split(':').next()).collect();
            assert_eq!(found, names);
        };
        check(&[]);
        fs::write(theirs.join("d/f"), "cOntent").expect("writable");
        touch(&theirs.join("d/f")).expect("there");
        check(&["d/f"]);
        fs::set_permissions(theirs.join("g"), Permissions::from_mode(0o4755)).expect("there");
        check(&["d/f", "g"]);
        File::open(theirs.join("d"))
            .and_then(|file| file.set_modified(when + Duration::from_nanos(1)))
            .expect("there");
        check(&["d", "d/f", "g"]);
        fs::remove_file(ours.join("g")).expect("there");
        touch(&ours).expect("there");
        check(&["d", "d/f", "g"]);
        fs::remove_dir_all(&at).expect("there");
    }
}
