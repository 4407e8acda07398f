//! One host: namespaces, address, disk, cgroups, and the power switch.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{io, mem, ptr};

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroups;
use crate::clock::wait_for;
use crate::disk::{self, Disk, FileSystem};
use crate::namespace::Namespace;
use crate::process::Process;

/// Where every host finds a bpffs of its own.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// The hosts' interface.
pub(crate) const INTERFACE: &str = "eth0";

#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Lower-case letters and digits; unique in the test bed.
    pub name: String,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Size of the host's disk; none for a host without one.
    pub disk_mib: Option<u64>,
    /// Of that disk.
    pub file_system: FileSystem,
    /// What is written to that disk is not kept in memory a second time, as pages of its image: like a disk, where
    /// the image lies on a file system that can.
    pub direct: bool,
    pub memory_limit: Option<u64>,
}

impl HostSpec {
    /// A host without a disk and without limits, in a /24.
    pub fn new(name: &str, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            prefix_len: 24,
            disk_mib: None,
            file_system: FileSystem::EXT4,
            direct: false,
            memory_limit: None,
        }
    }

    pub fn disk_mib(self, mib: u64) -> Self {
        Self {
            disk_mib: Some(mib),
            ..self
        }
    }

    pub fn file_system(self, file_system: FileSystem) -> Self {
        Self { file_system, ..self }
    }

    pub fn direct(self) -> Self {
        Self { direct: true, ..self }
    }

    pub fn memory_limit(self, bytes: u64) -> Self {
        Self {
            memory_limit: Some(bytes),
            ..self
        }
    }
}

/// Methods may be called from any thread.
pub struct Host {
    pub(crate) spec: HostSpec,
    pub(crate) mac: [u8; 6],
    pub(crate) port: String,
    pub(crate) bridge: Arc<OwnedFd>,
    pub(crate) namespace: Namespace,
    pub(crate) cgroups: Cgroups,
    pub(crate) disk: Option<Disk>,
    pub(crate) logs: PathBuf,
}

impl Host {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.spec.address
    }

    pub fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    pub fn interface(&self) -> &'static str {
        INTERFACE
    }

    /// The bridge's end of its cable.
    pub fn port(&self) -> &str {
        &self.port
    }

    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// How a path of this host is reached by a process outside.
    pub fn path(&self, inside: &Path) -> PathBuf {
        self.namespace.seen_from_outside(inside)
    }

    /// A command that runs in the host: its namespaces, all its cgroups, a process group of its
    /// own so that Ctrl-C reaches only the test bed's owner.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let doors = self.cgroups.doors()?;
        let mut command = self.namespace.command(program);
        command.process_group(0);
        // SAFETY: only write(2) between fork and exec, on descriptors that the closure owns.
        unsafe {
            command.pre_exec(move || {
                for door in &doors {
                    (&*door).write_all(b"0")?;
                }
                Ok(())
            });
        }
        Ok(command)
    }

    /// Starts a command made by [`Host::command`]; its output is appended to the log `name`.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        let log = self.logs.join(format!("{}-{name}.log", self.spec.name));
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {name} on host {}", self.spec.name))?;
        Ok(Process { child, log })
    }

    /// Runs a program in the host to its end; failure is an error with what it printed.
    pub fn run(&self, line: &[&str]) -> Result<()> {
        self.namespace.run(line)
    }

    /// Runs `work` on a thread inside the host's namespaces (not its cgroups). A socket made there
    /// stays there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespace.inside(work)
    }

    /// Whatever is sent to `address` goes to `mac`, and nothing on the wire changes that.
    pub fn pin_neighbour(&self, address: Ipv4Addr, mac: &str) -> Result<()> {
        let address = address.to_string();
        self.run(&[
            "ip",
            "neigh",
            "replace",
            &address,
            "lladdr",
            mac,
            "dev",
            INTERFACE,
            "nud",
            "permanent",
        ])
    }

    /// Pulls (`false`) or plugs (`true`) the cable.
    pub fn set_link(&self, up: bool) -> Result<()> {
        set_up(&self.bridge, &self.port, up).with_context(|| format!("the cable of host {}", self.spec.name))
    }

    /// Power is lost: the cable goes dead, the disk stops where it is and all processes die, within
    /// one instant. Afterwards what lives in memory only (addresses, neighbours, pinned kernel
    /// programs) is gone too.
    pub fn cut_power(&self) -> Result<()> {
        let root = match &self.disk {
            Some(disk) => Some(File::open(self.path(disk.mount_point()))?),
            None => None,
        };
        self.set_link(false)?;
        if let Some(root) = &root {
            disk::cut_power(root).context("FS_IOC_SHUTDOWN")?;
        }
        self.cgroups.kill()?;
        drop(root);
        self.cgroups.wait_empty()?;
        self.forget()
    }

    /// Power is back: the disk is mounted again as the cut left it, the host has its own address
    /// and nothing else. No process runs yet.
    pub fn restore_power(&self) -> Result<()> {
        if let Some(disk) = &self.disk {
            self.inside(|| {
                wait_for("the dead disk to be unmounted", Duration::from_secs(20), || {
                    disk.unmount().ok()
                })?;
                disk.mount()
            })?;
        }
        self.boot()?;
        self.set_link(true)
    }

    /// First start: mounts and network.
    pub(crate) fn first_boot(&self) -> Result<()> {
        if let Some(disk) = &self.disk {
            self.inside(|| disk.mount())?;
        }
        if let Some(limit) = self.spec.memory_limit {
            self.cgroups.set_memory_limit(limit)?;
        }
        self.boot()
    }

    fn boot(&self) -> Result<()> {
        self.inside(mount_bpffs)?;
        let address = format!("{}/{}", self.spec.address, self.spec.prefix_len);
        self.run(&["ip", "link", "set", "lo", "up"])?;
        self.run(&["ip", "link", "set", INTERFACE, "address", &self.mac(), "up"])?;
        self.run(&["ip", "addr", "replace", &address, "dev", INTERFACE])
    }

    fn forget(&self) -> Result<()> {
        self.run(&["ip", "addr", "flush", "dev", INTERFACE])?;
        self.run(&["ip", "link", "set", INTERFACE, "down"])?;
        self.run(&["ip", "neigh", "flush", "all"])?;
        self.inside(|| {
            // SAFETY: a constant path.
            if unsafe { libc::umount2(c"/sys/fs/bpf".as_ptr(), libc::MNT_DETACH) } != 0 {
                bail!("unmounting {BPFFS}: {}", io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

fn mount_bpffs() -> Result<()> {
    fs::create_dir_all(BPFFS).ok();
    let kind = c"bpf".as_ptr();
    // SAFETY: constant strings.
    if unsafe { libc::mount(kind, c"/sys/fs/bpf".as_ptr(), kind, 0, ptr::null()) } != 0 {
        bail!("mounting a bpffs at {BPFFS}: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// One system call each way, since a power cut has no time for a program to start.
fn set_up(socket: &OwnedFd, interface: &str, up: bool) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(interface.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    // SAFETY: both calls take an `ifreq`, and the flags are the member in use.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        let flag = libc::IFF_UP as libc::c_short;
        if up {
            request.ifr_ifru.ifru_flags |= flag;
        } else {
            request.ifr_ifru.ifru_flags &= !flag;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
