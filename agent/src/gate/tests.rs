//! The real programs on a real interface.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use understudy_common::id::Epoch;

use super::testnet::{CLIENT, INTERFACE, Net, PATIENCE, SERVICE, boot_now, eventually};
use super::*;

const SHORT: Duration = Duration::from_millis(300);
const FOREVER: Duration = Duration::from_secs(3_600);

/// A cgroup of this test's own; emptied and removed at the end.
struct TestCgroup(PathBuf);

impl TestCgroup {
    fn new(name: &str) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup/unified");
        let root = if root.exists() {
            root
        } else {
            PathBuf::from("/sys/fs/cgroup")
        };
        let path = root.join(format!("usgate-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        eventually("the test's cgroup can be removed", || {
            std::fs::remove_dir(&self.0).is_ok()
        });
    }
}

fn service(port: u16) -> SocketAddr {
    SocketAddr::from((SERVICE, port))
}

fn guard(cgroup: &TestCgroup) -> Guard {
    Guard {
        address: SERVICE,
        interface: INTERFACE.to_owned(),
        cgroup: cgroup.0.clone(),
    }
}

/// A host with the service's address, a listener at it, and a gate that was never opened.
fn guarded(net: &Net, cgroup: &TestCgroup) -> KernelGate {
    let gate = net.a.run(|| {
        let gate = KernelGate::load(&net.pin_dir()).unwrap();
        gate.guard(&guard(cgroup)).unwrap();
        gate
    });
    net.a.ip(&format!("addr add {SERVICE}/24 dev {INTERFACE}"));
    net.a.listen(service(7000));
    gate
}

/// So that what is looked at is the gate, not a failed ARP.
fn fix_neighbour(net: &Net) {
    net.client.ip(&format!(
        "neigh replace {SERVICE} lladdr {} dev {INTERFACE} nud permanent",
        net.a.mac()
    ));
}

fn connects(net: &Net) -> bool {
    net.client.connect(service(7000), SHORT).is_ok()
}

fn eventually_connects(net: &Net) {
    eventually("a client connects through the open gate", || connects(net));
}

/// Whether a datagram sent from the service's address reaches the client.
fn reaches_client(net: &Net) -> bool {
    let at_client = net.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    at_client.set_read_timeout(Some(SHORT)).unwrap();
    let to = at_client.local_addr().unwrap();
    let from = net.a.run(|| UdpSocket::bind((SERVICE, 0)).unwrap());
    let _ = from.send_to(b"x", to);
    at_client.recv(&mut [0]).is_ok()
}

#[test]
fn a_closed_gate_lets_nothing_through_and_an_open_one_everything() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("closed");
    let gate = guarded(&net, &cgroup);

    assert!(!connects(&net), "armed is closed");
    let neighbours = net.client.ip(&format!("neigh show {SERVICE}"));
    assert!(!neighbours.contains("lladdr"), "ARP was answered: {neighbours}");
    let arp = gate.counters().unwrap();
    assert!(arp.dropped_arp > 0 && arp.passed == 0, "{arp:?}");

    fix_neighbour(&net);
    assert!(!connects(&net));
    assert!(!reaches_client(&net));
    let closed = gate.counters().unwrap();
    assert!(
        closed.dropped_ingress > 0 && closed.dropped_egress > 0 && closed.passed == 0,
        "{closed:?}"
    );
    assert_eq!(closed.resets, 0, "nobody vouched for an RST");

    assert!(gate.open(SERVICE, Epoch(1), boot_now() + FOREVER).unwrap());
    eventually_connects(&net);
    eventually("datagrams leave", || reaches_client(&net));
    net.client.ip(&format!("neigh del {SERVICE} dev {INTERFACE}"));
    eventually_connects(&net);
    assert!(gate.counters().unwrap().passed > 0);
}

#[test]
fn a_fenced_epoch_never_opens_again_and_the_next_one_does() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("floor");
    let gate = guarded(&net, &cgroup);
    fix_neighbour(&net);
    let later = boot_now() + FOREVER;
    assert!(gate.open(SERVICE, Epoch(3), later).unwrap());
    eventually_connects(&net);
    gate.fence(SERVICE, Epoch(3)).unwrap();
    assert!(!connects(&net));
    assert!(!gate.open(SERVICE, Epoch(3), later).unwrap());
    assert!(!gate.open(SERVICE, Epoch(2), later).unwrap());
    assert!(!connects(&net));
    gate.fence(SERVICE, Epoch(1)).unwrap();
    assert_eq!(gate.entry(SERVICE).unwrap().unwrap().floor, 3);
    assert!(gate.open(SERVICE, Epoch(4), later).unwrap());
    eventually_connects(&net);
}

#[test]
fn a_closed_gate_refuses_at_once_while_its_agent_is_alive_and_is_silent_after() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("reset");
    let gate = guarded(&net, &cgroup);
    fix_neighbour(&net);
    gate.open(SERVICE, Epoch(1), boot_now() + FOREVER).unwrap();
    let mut established = None;
    eventually("a client connects", || {
        established = net.client.connect(service(7000), SHORT).ok();
        established.is_some()
    });
    gate.keep_alive(boot_now() + FOREVER).unwrap();
    gate.fence(SERVICE, Epoch(1)).unwrap();

    let mut best = Duration::MAX;
    for _ in 0..10 {
        let asked = Instant::now();
        let error = net.client.connect(service(7000), PATIENCE).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        best = best.min(asked.elapsed());
    }
    println!("refused after {best:?} at best");
    // A segment that is not answered is sent again after 1 s at the earliest.
    assert!(best < Duration::from_millis(500), "{best:?}");
    let established: &mut TcpStream = established.as_mut().unwrap();
    established.set_read_timeout(Some(PATIENCE)).unwrap();
    established
        .write_all(b"written before the fence was known")
        .unwrap();
    assert_eq!(
        established.read(&mut [0]).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(gate.counters().unwrap().resets >= 11);

    gate.keep_alive(boot_now()).unwrap();
    let silence = net.client.connect(service(7000), SHORT).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_closed_workload_reaches_nothing_but_loopback() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("workload");
    let gate = guarded(&net, &cgroup);
    let at_client = net.client.run(|| UdpSocket::bind((CLIENT, 5000)).unwrap());
    at_client.set_read_timeout(Some(SHORT)).unwrap();
    let at_loopback = net.a.run(|| UdpSocket::bind("127.0.0.1:5000").unwrap());
    at_loopback.set_read_timeout(Some(PATIENCE)).unwrap();
    // Not from the service's address, so that it is the cgroup's program alone that can stop it; and
    // from a cgroup below, where a service may put its workers.
    let say = |to: &str| {
        let script = "mkdir -p $0/below && echo $$ > $0/below/cgroup.procs && echo x > /dev/udp/$1/5000";
        net.a.run(|| {
            Command::new("bash")
                .args(["-c", script])
                .arg(&cgroup.0)
                .arg(to)
                .output()
                .unwrap()
        });
    };
    say("127.0.0.1");
    at_loopback.recv(&mut [0]).expect("loopback stays open");
    say(&CLIENT.to_string());
    assert!(at_client.recv(&mut [0]).is_err());
    assert!(gate.counters().unwrap().dropped_workload > 0);
    gate.open(SERVICE, Epoch(1), boot_now() + FOREVER).unwrap();
    eventually("the workload reaches the client", || {
        say(&CLIENT.to_string());
        at_client.recv(&mut [0]).is_ok()
    });
    std::fs::remove_dir(cgroup.0.join("below")).unwrap();
}

#[test]
fn removed_pins_and_a_new_interface_are_repaired_and_reported() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("repair");
    let gate = guarded(&net, &cgroup);
    fix_neighbour(&net);
    let repair = || net.a.run(|| gate.repair().unwrap());
    assert_eq!(repair(), []);
    let pins = || {
        let mut pins: Vec<_> = std::fs::read_dir(net.pin_dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        pins.sort();
        pins
    };
    let all = pins();
    assert_eq!(all.len(), 5, "{all:?}");
    for pin in &all {
        std::fs::remove_file(pin).unwrap();
        assert!(
            !connects(&net),
            "a removed pin opens nothing while the agent lives"
        );
        if pin.ends_with("GATE") || pin.ends_with("COUNTERS") {
            assert_eq!(repair(), [Repair::Pin(pin.clone())]);
        } else {
            assert!(!repair().is_empty());
        }
        assert_eq!(pins(), all);
    }
    net.a.ip(&format!("link del {INTERFACE}"));
    net.a
        .ip(&format!("link add {INTERFACE} type veth peer name peer0"));
    assert_eq!(repair(), [Repair::Interface(INTERFACE.to_owned())]);
    assert_eq!(repair(), []);
}

#[test]
fn a_directory_that_is_not_on_a_bpffs_is_refused_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let Err(error) = KernelGate::load(&dir.path().join("pins")) else {
        panic!("it was taken")
    };
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
    assert!(!dir.path().join("pins").exists());
}

const LOADER_DIR: &str = "US_GATE_TEST_DIR";
const LOADER_CGROUP: &str = "US_GATE_TEST_CGROUP";
const LOADER_DEADLINE: &str = "US_GATE_TEST_DEADLINE";

/// Stands for an agent: guards, opens epoch 7 until the deadline and waits to be killed.
#[test]
#[ignore = "a process of its own for other tests"]
fn loader_process() {
    let Some(dir) = std::env::var_os(LOADER_DIR) else {
        return;
    };
    let cgroup = PathBuf::from(std::env::var_os(LOADER_CGROUP).unwrap());
    let deadline = BootTime(std::env::var(LOADER_DEADLINE).unwrap().parse().unwrap());
    let gate = KernelGate::load(Path::new(&dir)).unwrap();
    gate.guard(&Guard {
        address: SERVICE,
        interface: INTERFACE.to_owned(),
        cgroup,
    })
    .unwrap();
    gate.fence(SERVICE, Epoch(6)).unwrap();
    assert!(gate.open(SERVICE, Epoch(7), deadline).unwrap());
    std::thread::sleep(FOREVER);
}

struct Loader(Child);

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually_guarded(net: &Net) {
    eventually("the loader guards the address", || {
        net.pin_dir().join("workload-10:99:0:100").exists()
    });
}

fn start_loader(net: &Net, cgroup: &TestCgroup, deadline: BootTime) -> Loader {
    let loader = net.a.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "gate::tests::loader_process",
                "--ignored",
                "--nocapture",
            ])
            .env(LOADER_DIR, net.pin_dir())
            .env(LOADER_CGROUP, &cgroup.0)
            .env(LOADER_DEADLINE, deadline.0.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    net.a.ip(&format!("addr add {SERVICE}/24 dev {INTERFACE}"));
    net.a.listen(service(7000));
    fix_neighbour(net);
    Loader(loader)
}

fn the_gate_closes_by_itself(name: &str, end: fn(&mut Loader)) {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new(name);
    let deadline = boot_now() + Duration::from_secs(10);
    let mut loader = start_loader(&net, &cgroup, deadline);
    eventually_guarded(&net);
    eventually_connects(&net);
    end(&mut loader);
    let open_after_its_end = connects(&net);
    assert!(
        open_after_its_end || boot_now() >= deadline,
        "the lease outlives the agent until its deadline"
    );
    eventually("the deadline passes", || boot_now() >= deadline);
    assert!(!connects(&net), "and not a moment longer");
}

#[test]
fn a_deadline_closes_the_gate_of_a_killed_agent() {
    the_gate_closes_by_itself("killed", |loader| {
        loader.0.kill().unwrap();
        loader.0.wait().unwrap();
    });
}

#[test]
fn a_deadline_closes_the_gate_of_a_stopped_agent() {
    the_gate_closes_by_itself("stopped", |loader| {
        let pid = nix::unistd::Pid::from_raw(loader.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    });
}

#[test]
fn a_restarted_agent_finds_its_lease_and_its_floor_again() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("restart");
    let deadline = boot_now() + FOREVER;
    let mut loader = start_loader(&net, &cgroup, deadline);
    eventually_guarded(&net);
    eventually_connects(&net);
    loader.0.kill().unwrap();
    loader.0.wait().unwrap();
    let gate = net.a.run(|| KernelGate::load(&net.pin_dir()).unwrap());
    net.a.run(|| gate.guard(&guard(&cgroup)).unwrap());
    let entry = gate.entry(SERVICE).unwrap().unwrap();
    assert_eq!((entry.epoch, entry.floor, entry.deadline_ns), (7, 6, deadline.0));
    eventually_connects(&net);
    gate.fence(SERVICE, Epoch(7)).unwrap();
    assert!(!connects(&net), "the restarted agent's fence counts");
}

#[test]
fn a_promise_keeps_a_later_epoch_closed_until_it_is_over_also_without_its_agent() {
    let Some(net) = Net::new() else { return };
    let cgroup = TestCgroup::new("promise");
    let gate = guarded(&net, &cgroup);
    fix_neighbour(&net);
    assert!(gate.see(SERVICE, Epoch(3), 10).unwrap());
    let now = boot_now();
    let until = now + Duration::from_secs(4);
    assert!(gate.promise(SERVICE, now, Epoch(3), until).unwrap());
    drop(gate);
    let gate = net.a.run(|| KernelGate::load(&net.pin_dir()).unwrap());
    net.a.run(|| gate.guard(&guard(&cgroup)).unwrap());
    assert!(gate.see(SERVICE, Epoch(4), 11).unwrap());
    assert!(gate.open(SERVICE, Epoch(4), boot_now() + FOREVER).unwrap());
    assert!(
        !gate
            .promise(SERVICE, boot_now(), Epoch(3), until + FOREVER)
            .unwrap(),
        "it saw a later epoch"
    );
    assert!(!gate.see(SERVICE, Epoch(3), 99).unwrap());
    let open_at_once = connects(&net);
    assert!(!open_at_once || boot_now() >= until, "the promise is kept");
    eventually_connects(&net);
    assert!(boot_now() >= until, "and not a moment less");
}
