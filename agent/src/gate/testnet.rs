//! A little network for tests: nodes in namespaces of their own on one bridge. Nothing has a name
//! outside this process, so the kernel removes all of it when the test ends, however it ends.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) use crate::clock::boot_time as boot_now;

/// How long a test waits for what must happen, on a machine that is busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const INTERFACE: &str = "eth0";

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "still not so after {PATIENCE:?}: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace, kept by a thread that does nothing.
pub(crate) struct Netns {
    file: File,
    tid: i32,
    _keep: mpsc::Sender<()>,
}

impl Netns {
    fn new() -> nix::Result<Self> {
        let (keep, parked) = mpsc::channel::<()>();
        let (ready, made) = mpsc::channel();
        thread::spawn(move || {
            let namespace = unshare(CloneFlags::CLONE_NEWNET).map(|()| {
                let file = File::open("/proc/thread-self/ns/net").unwrap();
                (file, nix::unistd::gettid().as_raw())
            });
            ready.send(namespace).unwrap();
            let _ = parked.recv();
        });
        let (file, tid) = made.recv().unwrap()?;
        let namespace = Self {
            file,
            tid,
            _keep: keep,
        };
        namespace.ip("link set lo up");
        Ok(namespace)
    }

    /// Runs on a thread in this namespace.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(
                output.status.success(),
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        })
    }

    pub(crate) fn mac(&self) -> String {
        let text = self.ip("-o link show eth0");
        text.split("link/ether ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn connect(&self, to: SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, limit))
    }

    /// Accepts for ever and keeps what it accepted, so that nothing but the gate ends a connection.
    pub(crate) fn listen(&self, at: SocketAddr) {
        let listener = self.run(|| TcpListener::bind(at).unwrap());
        thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    }
}

/// Two hosts and a client on a bridge, and a bpffs that only this test sees.
pub(crate) struct Net {
    pub(crate) a: Netns,
    pub(crate) b: Netns,
    pub(crate) client: Netns,
    _switch: Netns,
    bpffs: tempfile::TempDir,
}

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 9);
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);

impl Net {
    /// `None`, and a line that says why, where namespaces or a bpffs cannot be made.
    pub(crate) fn new() -> Option<Self> {
        match Self::make() {
            Ok(net) => Some(net),
            Err(error @ (nix::Error::EPERM | nix::Error::ENODEV | nix::Error::EINVAL)) => {
                println!("skipped: namespaces and a bpffs need root: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn make() -> nix::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let bpffs = tempfile::tempdir().unwrap();
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), none)?;
        let (switch, a, b, client) = (Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?);
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        for (node, port, address) in [
            (&a, "port1", "10.99.0.1/24"),
            (&b, "port2", "10.99.0.2/24"),
            (&client, "port3", "10.99.0.9/24"),
        ] {
            switch.ip(&format!(
                "link add name {port} type veth peer name {INTERFACE} netns {}",
                node.tid
            ));
            switch.ip(&format!("link set {port} master br0 up"));
            node.ip(&format!("link set {INTERFACE} up"));
            node.ip(&format!("addr add {address} dev {INTERFACE}"));
        }
        let net = Self {
            a,
            b,
            client,
            _switch: switch,
            bpffs,
        };
        // The bridge forwards once it has seen its ports come up.
        net.a.listen(SocketAddr::from(([10, 99, 0, 1], 1)));
        eventually("the bridge forwards", || {
            net.client
                .connect(SocketAddr::from(([10, 99, 0, 1], 1)), Duration::from_millis(200))
                .is_ok()
        });
        Ok(net)
    }

    pub(crate) fn pin_dir(&self) -> PathBuf {
        self.bpffs.path().join("understudy/1")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // The mount is this process' own; without it the directory can be removed.
        let _ = nix::mount::umount2(self.bpffs.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
