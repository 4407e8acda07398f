//! A host's own disk: an image with a file system behind a loop device that can lose power.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{io, mem, ptr};

use crate::host::HostSpec;
use anyhow::{Context, Result, bail};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// The kernel frees the device at the last close, so that nothing is left behind by a crash.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// `_IOR('X', 125, __u32)`
const FS_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D;
const NO_LOG_FLUSH: u32 = 2;
/// Another process may take the free device between the two calls.
const ALLOCATIONS_MAX: usize = 64;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(mem::size_of::<LoopConfig>() == 304);

/// What a disk is formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// As `mount` knows it.
    pub name: &'static str,
    /// The program that makes it, and its words before the device.
    make: &'static [&'static str],
    /// What that program comes in.
    package: &'static str,
}

impl FileSystem {
    pub const EXT4: Self = Self {
        name: "ext4",
        make: &[
            "mkfs.ext4",
            "-q",
            "-F",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        ],
        package: "e2fsprogs",
    };
    pub const XFS: Self = Self {
        name: "xfs",
        make: &["mkfs.xfs", "-q", "-f", "-K"],
        package: "xfsprogs",
    };
    pub const BTRFS: Self = Self {
        name: "btrfs",
        make: &["mkfs.btrfs", "-q", "-f", "-K"],
        package: "btrfs-progs",
    };

    fn format(self, device: &Path) -> Result<()> {
        let (program, words) = self.make.split_first().context("a file system is made")?;
        let made = Command::new(program)
            .args(words)
            .arg(device)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {program} (package {})", self.package))?;
        if !made.status.success() {
            bail!(
                "{program} {}: {}",
                device.display(),
                String::from_utf8_lossy(&made.stderr).trim()
            );
        }
        Ok(())
    }
}

/// A loop device with a file system. Mounting is up to the host: it happens in its mount
/// namespace.
pub struct Disk {
    device: PathBuf,
    numbers: String,
    mount_point: PathBuf,
    file_system: FileSystem,
    /// Keeps the device while nothing is mounted.
    _open: File,
}

impl Disk {
    pub(crate) fn make(image: &Path, mib: u64, spec: &HostSpec, mount_point: &Path) -> Result<Self> {
        let file_system = spec.file_system;
        File::create(image)
            .and_then(|file| file.set_len(mib << 20))
            .with_context(|| format!("making the image {}", image.display()))?;
        let (device, open) = attach(image, spec.direct)?;
        file_system.format(&device)?;
        let name = device.file_name().unwrap_or_default();
        let numbers = fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
        Ok(Self {
            device,
            numbers: numbers.trim().to_owned(),
            mount_point: mount_point.to_owned(),
            file_system,
            _open: open,
        })
    }

    /// `/dev/loopN`
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// `major:minor`
    pub fn numbers(&self) -> &str {
        &self.numbers
    }

    /// Where it is mounted in its host; the same path in every host of a test bed.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// To be called inside the host's mount namespace.
    pub(crate) fn mount(&self) -> Result<()> {
        let (from, to) = (c_path(&self.device), c_path(&self.mount_point));
        let kind = c_path(Path::new(self.file_system.name));
        // SAFETY: the strings live through the call.
        let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
        if done != 0 {
            let why = io::Error::last_os_error();
            bail!(
                "mounting {} at {}: {why}",
                self.device.display(),
                self.mount_point.display()
            );
        }
        Ok(())
    }

    /// To be called inside the host's mount namespace.
    pub(crate) fn unmount(&self) -> io::Result<()> {
        let at = c_path(&self.mount_point);
        // SAFETY: the string lives through the call.
        match unsafe { libc::umount2(at.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Stops the file system that `root` belongs to as a power cut would: what is not on the disk
/// never gets there, and every later call fails.
pub(crate) fn cut_power(root: &File) -> io::Result<()> {
    let how = NO_LOG_FLUSH;
    // SAFETY: the kernel reads one u32.
    match unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn attach(image: &Path, direct: bool) -> Result<(PathBuf, File)> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .context("/dev/loop-control")?;
    let backing = OpenOptions::new().read(true).write(true).open(image)?;
    for _ in 0..ALLOCATIONS_MAX {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error()).context("asking for a free loop device");
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut config: LoopConfig = unsafe { mem::zeroed() };
        config.fd = backing.as_raw_fd() as u32;
        // The kernel takes the second one back where the image's file system has no such thing.
        config.info.flags = LO_FLAGS_AUTOCLEAR | if direct { LO_FLAGS_DIRECT_IO } else { 0 };
        // SAFETY: the kernel reads one `loop_config`.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) } == 0 {
            return Ok((path, device));
        }
        let why = io::Error::last_os_error();
        if why.raw_os_error() != Some(libc::EBUSY) {
            return Err(why).with_context(|| format!("configuring {}", path.display()));
        }
    }
    bail!("no loop device could be had in {ALLOCATIONS_MAX} goes")
}

fn c_path(path: &Path) -> CString {
    // Paths here are made by this crate and hold no NUL.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
