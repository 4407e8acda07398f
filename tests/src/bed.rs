//! The test bed: a bridge in a namespace of its own, and the hosts on it.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};

use crate::cgroup::{CgroupRoots, Cgroups};
use crate::disk::Disk;
use crate::host::{Host, HostSpec, INTERFACE};
use crate::namespace::Namespace;
use crate::{interrupt, leftovers};

const HOSTS_MAX: usize = 64;

/// Everything is removed when this is dropped; hosts that are still held elsewhere are dead then.
pub struct Testbed {
    shared: Arc<Shared>,
    roots: CgroupRoots,
    bridge: Namespace,
    /// A socket in the bridge's namespace, to switch its ports.
    switch: Arc<OwnedFd>,
    hosts: Vec<Arc<Host>>,
}

/// What must go, and can go from the signal thread as well.
pub(crate) struct Shared {
    name: String,
    directory: PathBuf,
    roots: CgroupRoots,
    gone: Mutex<bool>,
}

impl Shared {
    pub(crate) fn tear_down(&self) {
        let mut gone = self.gone.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !*gone {
            leftovers::remove(&self.roots, &self.name, &self.directory);
            *gone = true;
        }
    }
}

impl Testbed {
    /// `area` becomes part of every name. See [`crate::missing`] for what it takes.
    pub fn start(area: &str) -> Result<Self> {
        let roots = CgroupRoots::discover()?;
        leftovers::sweep(&roots);
        let (name, directory) = leftovers::claim(area)?;
        let shared = Arc::new(Shared {
            name,
            directory,
            roots: roots.clone(),
            gone: Mutex::new(false),
        });
        let made = Self::wire_up(&shared, roots);
        if made.is_err() {
            shared.tear_down();
        }
        made
    }

    fn wire_up(shared: &Arc<Shared>, roots: CgroupRoots) -> Result<Self> {
        interrupt::guard(Arc::downgrade(shared))?;
        for part in ["disk", "logs", "images"] {
            fs::create_dir(shared.directory.join(part))?;
        }
        let cgroups = Cgroups::make(&roots, &shared.name, "bridge")?;
        let bridge = Namespace::new(&cgroups.unified().join("cgroup.kill"))?;
        bridge.run(&[
            "ip",
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        bridge.run(&["ip", "link", "set", "br0", "up"])?;
        let switch = Arc::new(bridge.inside(datagram_socket)?);
        Ok(Self {
            shared: Arc::clone(shared),
            roots,
            bridge,
            switch,
            hosts: Vec::new(),
        })
    }

    /// The run's own directory, the same in every host. Removed with the test bed.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Where every host with a disk has it mounted.
    pub fn disk_mount_point(&self) -> PathBuf {
        self.shared.directory.join("disk")
    }

    pub fn logs(&self) -> PathBuf {
        self.shared.directory.join("logs")
    }

    /// Copies the logs out, for people to read after the test bed is gone.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(self.logs())? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// A command that runs where the bridge is, with a port for each host; see [`Host::port`].
    pub fn at_the_bridge(&self, program: &str) -> Command {
        self.bridge.command(program)
    }

    /// The cgroups above those of all hosts.
    pub fn cgroups(&self) -> Cgroups {
        Cgroups::of_run(&self.roots, &self.shared.name)
    }

    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Builds a host and plugs it in.
    pub fn add(&mut self, spec: HostSpec) -> Result<Arc<Host>> {
        if self.hosts.len() == HOSTS_MAX {
            bail!("a test bed has at most {HOSTS_MAX} hosts");
        }
        if self.hosts.iter().any(|host| host.name() == spec.name) {
            bail!("host {} is there already", spec.name);
        }
        let number = self.hosts.len() as u8 + 1;
        let name = spec.name.clone();
        let host = self
            .build(number, spec)
            .with_context(|| format!("building host {name}"))?;
        let host = Arc::new(host);
        self.hosts.push(Arc::clone(&host));
        Ok(host)
    }

    fn build(&self, number: u8, spec: HostSpec) -> Result<Host> {
        let cgroups = Cgroups::make(&self.roots, &self.shared.name, &spec.name)?;
        let namespace = Namespace::new(&cgroups.unified().join("cgroup.kill"))?;
        let disk = spec
            .disk_mib
            .map(|mib| {
                let image = self.shared.directory.join("images").join(&spec.name);
                Disk::make(&image, mib, &spec, &self.disk_mount_point())
            })
            .transpose()?;
        let (port, pid) = (format!("port{number}"), namespace.holder_pid().to_string());
        self.bridge.run(&[
            "ip", "link", "add", &port, "type", "veth", "peer", "name", INTERFACE, "netns", &pid,
        ])?;
        let host = Host {
            mac: [0x02, b'u', b's', 0, 0, number],
            port,
            bridge: Arc::clone(&self.switch),
            namespace,
            cgroups,
            disk,
            logs: self.logs(),
            spec,
        };
        host.first_boot()?;
        self.bridge
            .run(&["ip", "link", "set", &host.port, "master", "br0", "up"])?;
        Ok(host)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.shared.tear_down();
    }
}

fn datagram_socket() -> Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error()).context("making a socket");
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}
