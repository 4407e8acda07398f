//! Coordinator processes on the loopback address, stopped and removed with the value.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use understudy_common::identity::Principal;
use understudy_coordinator::authority::{Authority, Pair, Validity};
use understudy_coordinator::cli::{HostArg, InitArgs, init};

/// Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const SERVICE: &str = r#"
name = "store"
paths = ["/srv/store"]
address = "192.0.2.50/24"
interface = "eth0"
hosts = [1, 2]
[workload]
start = ["/bin/true"]
health = { exec = ["/bin/true"] }
"#;

pub struct Cluster {
    pub dir: tempfile::TempDir,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Certificates and files of `size` coordinators and two hosts; nothing runs yet.
    pub fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cluster");
        let sockets: Vec<_> = (0..size)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let coordinators = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap())
            .collect();
        let host = |name: &str, port| HostArg {
            name: name.to_owned(),
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        init(&InitArgs {
            dir: at.clone(),
            hosts: vec![host("a", 1), host("b", 2)],
            coordinators,
            valid_days: 1,
        })
        .unwrap();
        let cluster = Self {
            dir,
            children: (0..size).map(|_| None).collect(),
        };
        for n in 1..=size {
            cluster.place(n);
        }
        cluster
    }

    /// Gives a coordinator its own data directory.
    pub fn place(&self, n: usize) {
        let path = self.path(&format!("coordinator-{n}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace(
            &format!("/var/lib/understudy/coordinator-{n}"),
            &self.dir.path().join(format!("disk-{n}")).display().to_string(),
        );
        std::fs::write(&path, text).unwrap();
    }

    /// Adds to the end of a coordinator's configuration, which is its `[issuer]`.
    pub fn append(&self, n: usize, more: &str) {
        let path = self.path(&format!("coordinator-{n}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + more).unwrap();
    }

    /// Replaces the certificate of `host-1`, say, by one that is valid for so many seconds from now.
    pub fn shorten(&self, label: &str, valid_s: i64) {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap();
        let issuer = Authority::issuer_from_pair(Pair {
            certificate: read("issuer.pem"),
            key: read("issuer.key"),
        })
        .unwrap();
        let validity = Validity::from(OffsetDateTime::now_utc(), time::Duration::seconds(valid_s));
        let pair = issuer
            .issue(Principal::from_label(label).unwrap(), validity)
            .unwrap();
        std::fs::write(self.path(&format!("{label}.pem")), pair.certificate).unwrap();
        std::fs::write(self.path(&format!("{label}.key")), pair.key).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("cluster").join(name)
    }

    pub fn start(&mut self, n: usize) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("log-{n}")))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_understudy-coordinator"))
            .arg("--config")
            .arg(self.path(&format!("coordinator-{n}.toml")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let size = self.children.len().max(n);
        self.children.resize_with(size, || None);
        self.children[n - 1] = Some(child);
    }

    pub fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("log-{n}"))).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self, n: usize) {
        let mut child = self.children[n - 1].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn pid(&self, n: usize) -> u32 {
        self.children[n - 1].as_ref().unwrap().id()
    }

    /// SIGTERM.
    pub fn stop(&self, n: usize) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid(n)).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Waits for an exit by itself.
    pub fn exit_code(&mut self, n: usize) -> Option<i32> {
        let child = self.children[n - 1].as_mut().unwrap();
        let status = wait(&format!("coordinator-{n} to exit"), || child.try_wait().unwrap());
        self.children[n - 1] = None;
        status.code()
    }

    pub fn understudy(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_understudy"))
            .arg("--cluster")
            .arg(self.path("cluster.toml"))
            .args(args)
            .output()
            .unwrap()
    }

    pub fn status(&self) -> Option<Value> {
        let output = self.understudy(&["status", "--json"]);
        if !output.status.success() {
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until somebody leads, other than `not`.
    pub fn leader(&self, not: Option<usize>) -> usize {
        wait(&format!("a leader; logs:\n{}", self.log(1)), || {
            let leader = usize::try_from(self.status()?["leader"].as_u64()?).unwrap();
            (Some(leader) != not).then_some(leader)
        })
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for n in 1..=self.children.len() {
                eprintln!("--- log of coordinator-{n}\n{}", self.log(n));
            }
        }
    }
}

/// Waits until `ready` gives something, at most [`PATIENCE`].
pub fn wait<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
