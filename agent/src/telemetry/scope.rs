//! What an agent watches: its configuration as written, and the checked scope.
//!
//! Without a scope it is the whole host. With one, each signal needs the part of the scope that tells it apart, and
//! is masked without it.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use procfs::process::Process;

/// Devices of one scope; the kernel programs compare with each.
pub const DEVICES_MAX: usize = 4;

/// The `[telemetry]` table.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Load the kernel programs. Without them the signals that only they can give are masked.
    #[serde(default = "yes")]
    pub bpf: bool,
    /// Have the kernel measure the programs' run time; costs every program on the machine two clock reads a run.
    #[serde(default)]
    pub bpf_stats: bool,
    /// Let the programs write diagnostics to the log, at level debug.
    #[serde(default)]
    pub bpf_log: bool,
    #[serde(default)]
    pub scope: Option<ScopeConfig>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            bpf: true,
            bpf_stats: false,
            bpf_log: false,
            scope: None,
        }
    }
}

const fn yes() -> bool {
    true
}

/// The `[telemetry.scope]` table.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeConfig {
    /// A cgroup2 directory: tasks, CPU time and pressure.
    pub cgroup: Option<PathBuf>,
    /// The directory with the memory controller's files, v1 or v2. Default: `cgroup`.
    pub memory: Option<PathBuf>,
    /// The directory with the CPU controller's files, v1 or v2. Default: `cgroup`.
    pub cpu: Option<PathBuf>,
    /// Block devices as `major:minor`, at most [`DEVICES_MAX`].
    #[serde(default)]
    pub devices: Vec<String>,
    /// TCP and interfaces are those of the agent's own network namespace.
    #[serde(default)]
    pub netns: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("telemetry.scope.{key}: {path} cannot be read ({why})")]
    Unreadable {
        key: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("telemetry.scope.cgroup: {0} is not a directory of the cgroup2 file system")]
    NotCgroup2(PathBuf),
    #[error("telemetry.scope.devices: `{0}` is not of the form major:minor")]
    Device(String),
    #[error("telemetry.scope.devices: {0} devices are more than {DEVICES_MAX}")]
    TooManyDevices(usize),
}

/// A block device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl Device {
    /// As the kernel's `dev_t` holds it, unlike `stat`'s.
    pub const fn kernel(self) -> u32 {
        self.major << 20 | self.minor & 0xf_ffff
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let wrong = || ScopeError::Device(text.to_owned());
        let (major, minor) = text.split_once(':').ok_or_else(wrong)?;
        let device = Self {
            major: major.parse().map_err(|_| wrong())?,
            minor: minor.parse().map_err(|_| wrong())?,
        };
        // Device 0:0 is no device, and the kernel has 12 bits for the major and 20 for the minor number.
        let fits = device.major < 1 << 12 && device.minor < 1 << 20 && device.kernel() != 0;
        fits.then_some(device).ok_or_else(wrong)
    }
}

/// A cgroup2 directory as the kernel programs compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub path: PathBuf,
    pub id: u64,
    /// Depth below the root of the hierarchy.
    pub level: u32,
}

/// A checked scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub cgroup: Option<Cgroup>,
    pub memory: Option<PathBuf>,
    pub cpu: Option<PathBuf>,
    pub devices: Vec<Device>,
    /// Inode of the agent's network namespace.
    pub netns: Option<u32>,
}

impl Scope {
    /// Checks a configuration against this machine.
    ///
    /// # Errors
    /// [`ScopeError`] with the key that is wrong.
    pub fn resolve(config: &ScopeConfig) -> Result<Self, ScopeError> {
        if config.devices.len() > DEVICES_MAX {
            return Err(ScopeError::TooManyDevices(config.devices.len()));
        }
        let cgroup = config.cgroup.as_deref().map(resolve_cgroup).transpose()?;
        let controller = |key, path: &Option<PathBuf>, file: &str| match path {
            Some(path) => readable(key, path).map(|_| Some(path.clone())),
            // A v2 directory has the controller's files only where the controller is enabled.
            None => Ok(config.cgroup.clone().filter(|path| path.join(file).exists())),
        };
        Ok(Self {
            memory: controller("memory", &config.memory, "memory.current")?,
            cpu: controller("cpu", &config.cpu, "cpu.max")?,
            cgroup,
            devices: config
                .devices
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            netns: config.netns.then(own_netns).transpose()?,
        })
    }
}

fn readable(key: &'static str, path: &Path) -> Result<std::fs::Metadata, ScopeError> {
    let unreadable = |why: String| ScopeError::Unreadable {
        key,
        path: path.to_owned(),
        why,
    };
    let found = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if key != "netns" && !found.is_dir() {
        return Err(unreadable("not a directory".to_owned()));
    }
    Ok(found)
}

fn own_netns() -> Result<u32, ScopeError> {
    let inode = readable("netns", Path::new("/proc/self/ns/net"))?.ino();
    Ok(u32::try_from(inode).expect("namespace inodes are 32 bits in the kernel"))
}

fn resolve_cgroup(path: &Path) -> Result<Cgroup, ScopeError> {
    let id = readable("cgroup", path)?.ino();
    let stranger = || ScopeError::NotCgroup2(path.to_owned());
    let real = path.canonicalize().map_err(|_| stranger())?;
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|_| stranger())?;
    let mount = mounts
        .iter()
        .filter(|mount| mount.fs_type == "cgroup2")
        .find(|mount| real.starts_with(&mount.mount_point))
        .ok_or_else(stranger)?;
    let below = real.strip_prefix(&mount.mount_point).map_err(|_| stranger())?;
    // The mount may show a part of the hierarchy only; `root` says which.
    let above = Path::new(mount.root.trim_start_matches('/'));
    Ok(Cgroup {
        path: path.to_owned(),
        id,
        level: (above.components().count() + below.components().count()) as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_checked_where_they_are_read() {
        assert_eq!("7:3".parse(), Ok(Device { major: 7, minor: 3 }));
        assert_eq!(Device { major: 7, minor: 3 }.kernel(), 7 << 20 | 3);
        for wrong in ["", "7", "7:", "a:b", "7:-1", "0:0", "5000:1", "7:1048576"] {
            assert_eq!(wrong.parse::<Device>(), Err(ScopeError::Device(wrong.to_owned())));
        }
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let config = ScopeConfig {
            cgroup: Some(dir.path().to_owned()),
            ..ScopeConfig::default()
        };
        assert_eq!(
            Scope::resolve(&config),
            Err(ScopeError::NotCgroup2(dir.path().to_owned()))
        );
        let missing = ScopeConfig {
            memory: Some(dir.path().join("gone")),
            ..ScopeConfig::default()
        };
        assert!(
            Scope::resolve(&missing)
                .unwrap_err()
                .to_string()
                .starts_with("telemetry.scope.memory: ")
        );
    }
}
