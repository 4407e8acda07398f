//! Programs that run beside a bench, and addresses for them.

use std::fs::{File, OpenOptions};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Killed when dropped, and by the kernel should the bench itself be killed.
pub(super) struct Daemon(Child);

impl Daemon {
    /// What it says goes to the end of `log`.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let errors: File = file.try_clone()?;
        let child = ends_with_us(command)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self(child))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub(super) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) fn ends_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

/// Keeps the program on one core, where the machine has it.
pub(super) fn pinned(command: &mut Command, core: usize) -> &mut Command {
    if core >= std::thread::available_parallelism().map_or(1, usize::from) {
        return command;
    }
    // SAFETY: a set of plain bits for which zero is valid; sched_setaffinity is safe between fork and exec.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut cores);
        command.pre_exec(move || {
            match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

/// Loopback addresses that were free for TCP and UDP a moment ago, all different.
pub(super) fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let mut held = Vec::new();
    while held.len() < count {
        let tcp = TcpListener::bind("127.0.0.1:0").context("a free port")?;
        let addr = tcp.local_addr()?;
        if let Ok(udp) = UdpSocket::bind(addr) {
            held.push((tcp, udp, addr));
        }
    }
    Ok(held.into_iter().map(|(.., addr)| addr).collect())
}
