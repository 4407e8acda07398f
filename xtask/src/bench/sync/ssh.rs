//! rsync over ssh between the hosts of a bed, with the cipher that our own connections have.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use understudy_testbed::{Host, wait_for};

use crate::setup;
use crate::shell::{ask, command, in_path};

const PORT: u16 = 2222;
const SSHD: &str = "/usr/sbin/sshd";
/// What rustls and its ring provider choose when the other side leaves it to them.
const CIPHER: &str = "aes256-gcm@openssh.com";
const READY_MAX: Duration = Duration::from_secs(10);

/// The name of the peer, which is there.
pub(super) fn provide(may_install: bool) -> Result<String> {
    if may_install {
        setup::install(&["rsync", "openssh-client", "openssh-server"])?;
    }
    if !in_path("rsync") || !in_path("ssh") || !Path::new(SSHD).exists() {
        bail!("rsync and ssh are not installed");
    }
    Ok(format!("{} over ssh", super::rsync_version()))
}

/// An ssh server in a host, for one key.
pub(super) struct Ssh {
    server: Child,
    key: PathBuf,
}

impl Ssh {
    pub(super) fn start(host: &Host, directory: &Path) -> Result<Self> {
        let key = |name: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            let mut make = command("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
            ask(&mut make).context("ssh-keygen failed")?;
            Ok(path)
        };
        let (own, client) = (key("ssh-host")?, key("ssh-client")?);
        // Its helpers are locked into that folder, which the package makes when the system starts.
        host.run(&["mkdir", "-p", "/run/sshd"])?;
        let mut server = host.command(SSHD)?;
        server
            .args(["-D", "-e", "-f", "/dev/null", "-p", &PORT.to_string(), "-h"])
            .arg(&own)
            .args(["-o", "PidFile=none", "-o", "UsePAM=no", "-o", "StrictModes=no"])
            .args(["-o", "PermitRootLogin=prohibit-password", "-o"])
            .arg(format!(
                "AuthorizedKeysFile={}",
                client.with_extension("pub").display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = server.spawn().context("starting sshd")?;
        let at = (host.address(), PORT);
        let listens = || host.inside(|| Ok(std::net::TcpStream::connect(at).is_ok()));
        let ssh = Self { server, key: client };
        wait_for("sshd to listen", READY_MAX, || listens().ok().filter(|up| *up))?;
        Ok(ssh)
    }

    /// Copies a folder to one that is not there yet; seconds.
    pub(super) fn copy(&self, from: &Host, data: &Path, to: &Host, at: &Path) -> Result<f64> {
        let shell = format!(
            "ssh -p {PORT} -c {CIPHER} -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.key.display()
        );
        let mut rsync: Command = from.command("rsync")?;
        rsync
            .args(["--archive", "--rsh", &shell])
            .arg(data.join(""))
            .arg(format!("root@{}:{}", to.address(), at.display()))
            .stdin(Stdio::null());
        let begun = Instant::now();
        let output = rsync.output().context("starting rsync")?;
        let took = begun.elapsed();
        ensure!(
            output.status.success(),
            "rsync over ssh failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(took.as_secs_f64())
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
