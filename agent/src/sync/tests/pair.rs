//! The pair, and trees that random histories are played on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use understudy_common::delta::{Entry, RelPath};

use crate::sync::roots::Roots;

/// Everything about a tree that must be equal on both sides.
pub fn tree(root: &Path) -> BTreeMap<RelPath, Entry> {
    let manifest = Roots::new(vec![root.to_owned()]).hash_all().expect("readable");
    manifest
        .iter()
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect()
}

#[derive(Clone, Debug)]
pub enum Act {
    Write { file: u8, at: u16, len: u16, fill: u8 },
    Append { file: u8, len: u16, fill: u8 },
    Truncate { file: u8, len: u16 },
    Rename { from: u8, to: u8 },
    Remove { file: u8 },
    Mode { file: u8, mode: u8 },
    Dir { dir: u8 },
    RemoveDir { dir: u8 },
    RenameDir { from: u8, to: u8 },
    Symlink { file: u8, target: u8 },
    Link { from: u8, to: u8 },
    Xattr { file: u8, name: u8, len: u8 },
    Node { name: u8, device: bool },
}

/// Files 0 to 3 lie in the root, the others in two directories.
fn file(root: &Path, number: u8) -> PathBuf {
    match number % 8 {
        n @ 0..4 => root.join(format!("f{n}")),
        n => root.join(format!("d{}", n % 2)).join(format!("f{n}")),
    }
}

impl Act {
    /// Plays it; what the file system refuses does not happen.
    pub fn play(&self, root: &Path) {
        let result = match *self {
            Self::Write {
                file: number,
                at,
                len,
                fill,
            } => fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(file(root, number))
                .and_then(|file| file.write_all_at(&vec![fill; usize::from(len)], u64::from(at))),
            Self::Append {
                file: number,
                len,
                fill,
            } => fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(file(root, number))
                .and_then(|mut file| std::io::Write::write_all(&mut file, &vec![fill; usize::from(len)])),
            Self::Truncate { file: number, len } => fs::OpenOptions::new()
                .write(true)
                .open(file(root, number))
                .and_then(|file| file.set_len(u64::from(len))),
            Self::Rename { from, to } => fs::rename(file(root, from), file(root, to)),
            Self::Remove { file: number } => fs::remove_file(file(root, number)),
            Self::Mode { file: number, mode } => {
                let mode = 0o600 | u32::from(mode % 8) << 3;
                let path = file(root, number);
                if path.is_symlink() {
                    Ok(())
                } else {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))
                }
            }
            Self::Dir { dir } => fs::create_dir(root.join(format!("d{}", dir % 2))),
            Self::RemoveDir { dir } => fs::remove_dir_all(root.join(format!("d{}", dir % 2))),
            Self::RenameDir { from, to } => fs::rename(
                root.join(format!("d{}", from % 2)),
                root.join(format!("d{}", to % 2)),
            ),
            Self::Link { from, to } => fs::hard_link(file(root, from), file(root, to)),
            Self::Xattr {
                file: number,
                name,
                len,
            } => {
                let (path, name) = (file(root, number), format!("user.n{}", name % 3));
                if len % 4 == 0 {
                    xattr::remove(path, name)
                } else {
                    xattr::set(path, name, &vec![b'v'; usize::from(len)])
                }
            }
            Self::Node { name, device } => {
                let path = root.join(format!("n{}", name % 3));
                let (kind, null) = if device {
                    (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3))
                } else {
                    (nix::sys::stat::SFlag::S_IFIFO, 0)
                };
                let mode = nix::sys::stat::Mode::S_IRUSR;
                nix::sys::stat::mknod(&path, kind, mode, null)
                    .map_err(Into::into)
                    .or_else(|_: std::io::Error| fs::remove_file(path))
            }
            Self::Symlink { file: number, target } => {
                std::os::unix::fs::symlink(format!("to-{}", target % 3), file(root, number))
            }
        };
        drop(result);
    }
}
