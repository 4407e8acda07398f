//! Control groups, disks and loads of a test's own; all of it is gone when the test is.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use procfs::process::Process;
use understudy_agent::telemetry::ScopeConfig;
use understudy_common::beacon::{Beacon, TraceHeader};

/// Why a test cannot run here.
pub struct Skip(pub String);

fn skip(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Skip {
    move |error| Skip(format!("{what}: {error}"))
}

/// A cgroup directory. Its processes are killed and it is removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn v2(name: &str) -> Result<Self, Skip> {
        Self::under(&mount_point(|mount| mount.fs_type == "cgroup2")?, name)
    }

    pub fn v1(controller: &str, name: &str) -> Result<Self, Skip> {
        let root =
            mount_point(|mount| mount.fs_type == "cgroup" && mount.super_options.contains_key(controller))?;
        Self::under(&root, name)
    }

    fn under(root: &Path, name: &str) -> Result<Self, Skip> {
        Self::create(root.join(format!("ustelemetry-{name}-{}", std::process::id())))
    }

    fn create(path: PathBuf) -> Result<Self, Skip> {
        std::fs::create_dir(&path).map_err(skip(path.display()))?;
        Ok(Self(path))
    }

    pub fn child(&self, name: &str) -> Result<Self, Skip> {
        Self::create(self.0.join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, file: &str, text: &str) -> Result<(), Skip> {
        let path = self.0.join(file);
        std::fs::write(&path, text).map_err(skip(path.display()))
    }

    /// A scope of the tasks in this cgroup2 directory.
    pub fn scope(&self) -> ScopeConfig {
        ScopeConfig {
            cgroup: Some(self.0.clone()),
            ..ScopeConfig::default()
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// A killed process leaves its cgroup a little after it was reaped.
fn remove(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..500 {
        let processes = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if std::fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    eprintln!("{} could not be removed", path.display());
}

fn mount_point(wanted: impl Fn(&procfs::process::MountInfo) -> bool) -> Result<PathBuf, Skip> {
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Skip(format!("mountinfo: {error}")))?;
    let found = mounts.iter().find(|mount| wanted(mount));
    found
        .map(|mount| mount.mount_point.clone())
        .ok_or_else(|| Skip("the control group hierarchy is not mounted".to_owned()))
}

/// A shell that runs in its cgroups from its first command on, killed when dropped.
pub struct Load(Child);

pub fn spawn_in(cgroups: &[&Cgroup], script: &str) -> Load {
    let enter: String = cgroups
        .iter()
        .map(|cgroup| format!("echo $$ > {}/cgroup.procs || exit 99; ", cgroup.0.display()))
        .collect();
    let child = Command::new("sh")
        .args(["-c", &format!("{enter}{script}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("there is a shell");
    Load(child)
}

impl Load {
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.0.wait()?;
        if status.code() == Some(99) {
            return Err(std::io::Error::other("the cgroup could not be entered"));
        }
        Ok(status)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Already reaped is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loop device with ext4, mounted. Unmounted, detached and removed when dropped.
pub struct Disk {
    dir: tempfile::TempDir,
    /// `major:minor`
    pub device: String,
}

const BLOCK: usize = 65_536;

impl Disk {
    pub fn ext4(name: &str) -> Result<Self, Skip> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("ustelemetry-{name}-"))
            .tempdir()
            .map_err(skip("a temporary directory"))?;
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image)
            .and_then(|file| file.set_len(128 << 20))
            .map_err(skip("the image"))?;
        std::fs::create_dir(&mount).map_err(skip("the mount point"))?;
        command("mkfs.ext4", &["-q", "-F"], &[&image])?;
        // The loop device goes away with its mount.
        command("mount", &["-o", "loop"], &[&image, &mount])?;
        let mut disk = Self {
            dir,
            device: String::new(),
        };
        let mounts = Process::myself().and_then(|me| me.mountinfo());
        let mounts = mounts.map_err(|error| Skip(format!("mountinfo: {error}")))?;
        let found = mounts.iter().find(|found| found.mount_point == mount);
        disk.device = found
            .map(|found| found.majmin.clone())
            .ok_or_else(|| Skip("the mount is not seen".to_owned()))?;
        Ok(disk)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mount").join(name)
    }

    /// Appends so many blocks, each with its own fsync.
    pub fn write_and_sync(&self, name: &str, blocks: usize) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path(name))
            .unwrap();
        for n in 0..blocks {
            file.write_all(&vec![n as u8; BLOCK]).unwrap();
            file.sync_all().unwrap();
        }
    }

    /// What lies behind the first `bytes` of the device is gone: reads of it fail.
    pub fn lose_all_behind(&self, bytes: u64) {
        let image = OpenOptions::new().write(true).open(self.dir.path().join("image"));
        image.and_then(|image| image.set_len(bytes)).unwrap();
    }

    pub fn drop_cache(&self, name: &str) {
        let file = File::open(self.path(name)).unwrap();
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }

    pub fn read_from_disk(&self, name: &str) {
        self.drop_cache(name);
        let mut bytes = Vec::new();
        File::open(self.path(name))
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mount = self.dir.path().join("mount");
        // Lazy, because a killed writer may hold it for a moment longer.
        let _ = Command::new("umount").arg("-l").arg(&mount).status();
    }
}

fn command(program: &str, options: &[&str], paths: &[&Path]) -> Result<(), Skip> {
    let output = Command::new(program)
        .args(options)
        .args(paths)
        .output()
        .map_err(skip(program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Skip(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// A copy of a program that every user may run, in a directory that every user may write.
pub fn public_copy(program: &str, dir: &Path) -> PathBuf {
    let copy = dir.join("agent");
    std::fs::copy(program, &copy).unwrap();
    for path in [dir, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    copy
}

/// The agent, recording on its own.
pub struct Recorder {
    child: Child,
    dir: tempfile::TempDir,
}

/// Rows that a test waits for, and how often it looks.
const ROWS: &str = "4";
const LOOKS_MAX: u32 = 40;

impl Recorder {
    /// `prefix` is what the shell does before it becomes the agent, ending in `exec` or `&& exec`.
    pub fn start(prefix: &str, config: &str, log: &str) -> Result<Self, Skip> {
        let dir = tempfile::tempdir().map_err(skip("a temporary directory"))?;
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, config).map_err(skip("the configuration"))?;
        let errors = File::create(dir.path().join("log")).map_err(skip("the log"))?;
        let agent = env!("CARGO_BIN_EXE_understudy-agent");
        let script = format!("{prefix} {agent} record --config agent.toml --out t.trace --seconds {ROWS}");
        let child = Command::new("sh")
            .args(["-c", &script])
            .current_dir(dir.path())
            .env("RUST_LOG", log)
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(skip("sh"))?;
        Ok(Self { child, dir })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Repeats `cause` until the log has the text; `false` when the recording ended without it.
    pub fn wait_for_log(&mut self, text: &str, cause: impl Fn()) -> bool {
        for _ in 0..LOOKS_MAX {
            if self.log().contains(text) {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            cause();
            std::thread::park_timeout(std::time::Duration::from_millis(200));
        }
        self.log().contains(text)
    }

    /// All rows, once the recording has ended.
    pub fn beacons(mut self) -> Result<Vec<Beacon>, Skip> {
        let status = self.child.wait().map_err(skip("the agent"))?;
        let log = self.log();
        if log.contains("unshare: ") || log.contains("RTNETLINK") {
            return Err(Skip(log));
        }
        assert!(status.success(), "{log}");
        let bytes = std::fs::read(self.dir.path().join("t.trace")).map_err(skip("the trace"))?;
        let (header, rows) = TraceHeader::read(&bytes).expect("the agent writes traces");
        Ok(header.rows(rows).expect("the agent writes rows"))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Records a network namespace of its own, in which `setup` (ending in `&&`, or empty) runs first.
pub fn record_in_netns(setup: &str) -> Result<Recorder, Skip> {
    let quoted = format!("{setup} exec \"$@\"").replace('\'', "'\\''");
    let prefix = format!("exec unshare -n sh -c '{quoted}' sh");
    Recorder::start(&prefix, "host = 1\n[telemetry.scope]\nnetns = true\n", "info")
}
