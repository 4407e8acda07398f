//! A network and a mount namespace, kept alive by a process that does nothing else.
//!
//! The holder reads a pipe whose only other end is in this process. When this process is gone, in
//! whatever way, the holder kills the cgroup it was given and ends; the namespaces, their mounts
//! and their links go with it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{io, ptr, thread};

use anyhow::{Context, Result, anyhow, bail};

pub(crate) struct Namespace {
    holder: Child,
    net: File,
    mounts: File,
}

impl Namespace {
    /// `kill_file` is the `cgroup.kill` of the cgroup that dies with this process.
    pub(crate) fn new(kill_file: &Path) -> Result<Self> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read -r _; echo 1 >\"$0\""])
            .arg(kill_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        // SAFETY: only system calls between fork and exec.
        unsafe { command.pre_exec(leave_namespaces) };
        let holder = command
            .spawn()
            .context("making a network and a mount namespace")?;
        let open = |kind: &str| {
            let path = format!("/proc/{}/ns/{kind}", holder.id());
            File::open(&path).with_context(|| path.clone())
        };
        Ok(Self {
            net: open("net")?,
            mounts: open("mnt")?,
            holder,
        })
    }

    pub(crate) fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    /// How a path of the namespace is reached from outside.
    pub(crate) fn seen_from_outside(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap_or(path);
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(inside)
    }

    /// A command that runs in the namespaces.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let (net, mounts) = (self.net.as_raw_fd(), self.mounts.as_raw_fd());
        // SAFETY: only system calls between fork and exec, on descriptors that outlive the spawn
        // because `self` does in every caller; a closed one makes the spawn fail.
        unsafe {
            command.pre_exec(move || {
                enter(net, libc::CLONE_NEWNET)?;
                enter(mounts, libc::CLONE_NEWNS)
            });
        }
        command
    }

    /// Runs `work` on a thread that is inside the namespaces. A socket made there stays there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let (net, mounts) = (self.net.as_raw_fd(), self.mounts.as_raw_fd());
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // SAFETY: no memory is involved; a thread that shares its root with others may
                // not enter a mount namespace, so it stops sharing first.
                if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                    bail!("unshare: {}", io::Error::last_os_error());
                }
                enter(net, libc::CLONE_NEWNET).context("entering the network namespace")?;
                enter(mounts, libc::CLONE_NEWNS).context("entering the mount namespace")?;
                work()
            });
            inside
                .join()
                .map_err(|_| anyhow!("the thread inside the namespace panicked"))?
        })
    }

    /// Runs a program to its end; an exit status other than 0 is an error with what it printed.
    pub(crate) fn run(&self, line: &[&str]) -> Result<()> {
        let output = self
            .command(line[0])
            .args(&line[1..])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting `{}`", line.join(" ")))?;
        if !output.status.success() {
            bail!(
                "`{}`: {}",
                line.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn leave_namespaces() -> io::Result<()> {
    // SAFETY: plain system calls with constant arguments.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) != 0 {
            return Err(io::Error::last_os_error());
        }
        let root = c"/".as_ptr();
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(ptr::null(), root, ptr::null(), flags, ptr::null()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn enter(namespace: i32, kind: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::setns(namespace, kind) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
