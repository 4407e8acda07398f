//! A file system of a test's own.
//!
//! The disk is mounted in a mount namespace of the test's thread, on a loop device that frees itself:
//! however the test ends, nothing stays.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// File systems that behave differently when they are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    /// Blocks are allocated when they are written to.
    Ext4NoDelalloc,
    /// `data=journal`
    Ext4Journalled,
    Xfs,
    Btrfs,
    /// Without checksums, so that direct writes are not made buffered ones.
    BtrfsNoSums,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] = [
        Kind::Ext4,
        Kind::Ext4NoDelalloc,
        Kind::Ext4Journalled,
        Kind::Xfs,
        Kind::Btrfs,
        Kind::BtrfsNoSums,
    ];
    /// One of each file system.
    pub(crate) const EACH: [Kind; 3] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs];

    pub(crate) const fn is_ext4(self) -> bool {
        matches!(self, Kind::Ext4 | Kind::Ext4NoDelalloc | Kind::Ext4Journalled)
    }

    const fn file_system(self) -> &'static str {
        match self {
            Kind::Ext4 | Kind::Ext4NoDelalloc | Kind::Ext4Journalled => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs | Kind::BtrfsNoSums => "btrfs",
        }
    }

    const fn options(self) -> &'static str {
        match self {
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs => "loop",
            Kind::BtrfsNoSums => "loop,nodatasum",
            Kind::Ext4NoDelalloc => "loop,nodelalloc",
            Kind::Ext4Journalled => "loop,data=journal",
        }
    }

    /// Its `mkfs` refuses smaller ones.
    const fn megabytes_min(self) -> u64 {
        match self {
            Kind::Ext4 | Kind::Ext4NoDelalloc | Kind::Ext4Journalled => 0,
            Kind::Xfs => 300,
            Kind::Btrfs | Kind::BtrfsNoSums => 256,
        }
    }

    fn make(self) -> Command {
        let mut make = Command::new(format!("mkfs.{}", self.file_system()));
        match self {
            Kind::Ext4 | Kind::Ext4NoDelalloc | Kind::Ext4Journalled => make.args(["-q", "-F"]),
            Kind::Xfs | Kind::Btrfs | Kind::BtrfsNoSums => make.args(["-q", "-f"]),
        };
        make
    }
}

/// A file system for one test.
pub(crate) struct Disk {
    pub(crate) kind: Kind,
    dir: tempfile::TempDir,
}

impl Disk {
    /// An ext4. `None`, after saying why, where this is not allowed.
    pub(crate) fn new(megabytes: u64) -> Option<Self> {
        Self::of(Kind::Ext4, megabytes)
    }

    /// Of at least that size. `None`, after saying why, where this is not allowed.
    pub(crate) fn of(kind: Kind, megabytes: u64) -> Option<Self> {
        match Self::mount(kind, megabytes.max(kind.megabytes_min())) {
            Ok(disk) => Some(disk),
            Err(error) => {
                println!("skipped: no {kind:?} on a loop device here: {error}");
                None
            }
        }
    }

    fn mount(kind: Kind, megabytes: u64) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        let dir = tempfile::Builder::new()
            .prefix(&format!("ustracker{}-", std::process::id()))
            .tempdir()?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(megabytes << 20)?;
        let disk = Self { kind, dir };
        fs::create_dir(disk.root())?;
        run(kind.make().arg(&image))?;
        run(Command::new("mount")
            .args(["-t", kind.file_system(), "-o", kind.options()])
            .arg(&image)
            .arg(disk.root()))?;
        fs::remove_file(&image)?;
        Ok(disk)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Cuts its power if that was not done yet, and gives it back: what was not on the disk is gone.
    /// No file of it may be open.
    pub(crate) fn power_cycle(&self) -> io::Result<()> {
        let number = libc::minor(fs::metadata(self.root())?.dev());
        // Held open, so that the loop device does not free itself in between.
        let path = format!("/dev/loop{number}");
        let device = File::open(&path)?;
        match cut_power(&File::open(self.root())?) {
            // It was cut before: nothing can be opened on it.
            Err(error) if error.raw_os_error() != Some(libc::EIO) => return Err(error),
            _ => {}
        }
        umount2(&self.root(), MntFlags::empty())?;
        mount(
            Some(path.as_str()),
            &self.root(),
            Some(self.kind.file_system()),
            MsFlags::empty(),
            None::<&str>,
        )?;
        drop(device);
        Ok(())
    }
}

/// Runs a test on a disk of each kind, one after the other.
pub(crate) fn on_each(kinds: &[Kind], megabytes: u64, test: impl Fn(&Disk)) {
    for kind in kinds {
        if let Some(disk) = Disk::of(*kind, megabytes) {
            println!("on {kind:?}");
            test(&disk);
        }
    }
}

/// Stops the file system that `root` lies on as a power cut would: what is not on the disk never gets
/// there, and every later call fails.
pub(crate) fn cut_power(root: &File) -> io::Result<()> {
    nix::ioctl_read!(shutdown, b'X', 125, u32);
    let mut without_log_flush = 2;
    // SAFETY: the kernel reads one u32.
    unsafe { shutdown(root.as_raw_fd(), &mut without_log_flush) }?;
    Ok(())
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The namespace takes it along at the latest.
        let _ = umount2(&self.root(), MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    Ok(())
}
