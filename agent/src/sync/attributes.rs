//! What belongs to a name besides its content: mode, owner, time, extended attributes.
//!
//! Invariant: what one host reads another can set: attributes that are of the host alone are neither read nor
//! touched.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use understudy_common::delta::{Meta, Node, XATTRS_BYTES_MAX, Xattrs};

/// Labels and measurements by a host's own policy, and what an overlay keeps for itself.
const OF_THE_HOST: [&[u8]; 4] = [
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"trusted.overlay.",
];

/// # Errors
/// When they cannot be read, or are more than a generation carries.
pub fn attributes(path: &Path, meta: &Metadata) -> io::Result<Meta> {
    let found = Meta {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime_ns: meta
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(meta.mtime_nsec()),
        xattrs: xattrs(path)?,
    };
    if found.xattrs_bytes() > XATTRS_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "{}: its extended attributes are more than {XATTRS_BYTES_MAX} bytes",
                path.display()
            ),
        ));
    }
    Ok(found)
}

/// What goes with the file; none when it is gone or its file system has no such thing.
fn xattrs(path: &Path) -> io::Result<Xattrs> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if is_absent(&error) => return Ok(Xattrs::new()),
        Err(error) => return Err(error),
    };
    let mut found = Xattrs::new();
    for name in names.filter(travels) {
        match xattr::get(path, &name) {
            Ok(Some(value)) => {
                found.insert(name.into_vec(), value);
            }
            Ok(None) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn travels(name: &OsString) -> bool {
    !OF_THE_HOST.iter().any(|own| name.as_bytes().starts_with(own))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ENODATA | libc::EOPNOTSUPP)
    )
}

/// # Errors
/// When one of them cannot be set; the file system may have no extended attributes, or no room for them.
pub fn set_attributes(path: &Path, meta: &Meta) -> io::Result<()> {
    let is_symlink = fs::symlink_metadata(path)?.is_symlink();
    // A new owner takes capabilities away, and an access list is part of the mode.
    std::os::unix::fs::lchown(path, Some(meta.uid), Some(meta.gid))?;
    set_xattrs(path, &meta.xattrs)?;
    if !is_symlink {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode))?;
    }
    let time = TimeSpec::new(
        meta.mtime_ns.div_euclid(1_000_000_000),
        meta.mtime_ns.rem_euclid(1_000_000_000),
    );
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(io::Error::from)
}

fn set_xattrs(path: &Path, wanted: &Xattrs) -> io::Result<()> {
    let known = xattrs(path)?;
    for name in known.keys().filter(|name| !wanted.contains_key(*name)) {
        xattr::remove(path, OsStr::from_bytes(name))?;
    }
    for (name, value) in wanted {
        if known.get(name) != Some(value) {
            xattr::set(path, OsStr::from_bytes(name), value)?;
        }
    }
    Ok(())
}

/// What `meta` is of, if it is a node that a generation carries.
pub fn node(meta: &Metadata) -> Option<Node> {
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let kind = meta.file_type();
    if kind.is_fifo() {
        Some(Node::Fifo)
    } else if kind.is_char_device() {
        Some(Node::Char { major, minor })
    } else if kind.is_block_device() {
        Some(Node::Block { major, minor })
    } else {
        None
    }
}

/// # Errors
/// When there is something, or the capability to make devices is missing.
pub fn make_node(path: &Path, node: Node) -> io::Result<()> {
    let (kind, device) = match node {
        Node::Fifo => (SFlag::S_IFIFO, 0),
        Node::Char { major, minor } => (SFlag::S_IFCHR, makedev(major.into(), minor.into())),
        Node::Block { major, minor } => (SFlag::S_IFBLK, makedev(major.into(), minor.into())),
    };
    mknod(path, kind, Mode::S_IRUSR | Mode::S_IWUSR, device).map_err(io::Error::from)
}
