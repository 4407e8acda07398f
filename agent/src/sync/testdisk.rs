//! An ext4 file system of a test's own.
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

/// An ext4 file system for one test.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, after saying why, where this is not allowed.
    pub(crate) fn new(megabytes: u64) -> Option<Self> {
        match Self::mount(megabytes) {
            Ok(disk) => Some(disk),
            Err(error) => {
                println!("skipped: no ext4 on a loop device here: {error}");
                None
            }
        }
    }

    fn mount(megabytes: u64) -> io::Result<Self> {
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
        let disk = Self { dir };
        fs::create_dir(disk.root())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
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
            Some("ext4"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        drop(device);
        Ok(())
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
