//! The cluster under exercise with its ledger, and how it is looked at.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::fault::Who;
use super::traffic::Traffic;
use super::watch::Watch;
use crate::cluster::{Cluster, ClusterSpec, program};
use crate::fault::Seeded;
use crate::{Host, HostSpec, Process, wait_for};

pub const SERVICE: &str = "ledger";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const PORT: u16 = 7000;
const CLIENT: u8 = 50;
const PROBE_FIRST: u8 = 61;
const HOST_DISK_MIB: u64 = 96;
/// raft-engine rewrites its files from 32 MiB on.
const COORDINATOR_DISK_MIB: u64 = 128;
/// The first copy of an almost empty ledger.
const START_MAX: Duration = Duration::from_secs(90);
const STATUS_MAX: Duration = Duration::from_secs(30);
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";
const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

/// Where Debian's libfaketime is, if it is.
pub fn faketime() -> Option<PathBuf> {
    let places = LIBRARIES
        .iter()
        .map(|folder| PathBuf::from(folder).join(FAKETIME));
    places.into_iter().find(|path| path.is_file())
}

/// A machine that a fault can hit, by its number from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    Host(usize),
    Coordinator(usize),
}

pub struct Stage {
    // Before the cluster, whose hosts they run on.
    pub traffic: Traffic,
    pub watch: Watch,
    pub cluster: Cluster,
    pub data: PathBuf,
}

impl Stage {
    /// All programs run, the ledger is served and both shadows could take over.
    pub fn open(area: &str) -> Result<Self> {
        let mut cluster = Cluster::plug(&ClusterSpec {
            host_disk_mib: HOST_DISK_MIB,
            coordinator_disk_mib: Some(COORDINATOR_DISK_MIB),
            agent_log: "info,understudy_agent::generation=debug".to_owned(),
            ..ClusterSpec::new(area)
        })?;
        let at = |last: u8| Ipv4Addr::new(10, 77, 0, last);
        let client = cluster.bed.add(HostSpec::new("client", at(CLIENT)))?;
        let mut probes = Vec::new();
        for (n, host) in (0..).zip(&cluster.hosts) {
            let probe = HostSpec::new(&format!("probe{}", n + 1), at(PROBE_FIRST + n));
            let probe = cluster.bed.add(probe)?;
            probe.pin_neighbour(ADDRESS, &host.mac())?;
            probes.push(probe);
        }
        let mount = cluster.bed.disk_mount_point();
        let data = mount.join(SERVICE);
        for (n, host) in (1..).zip(&cluster.hosts) {
            fs::create_dir_all(host.path(&data))?;
            let mut number = File::create(host.path(&mount.join("number")))?;
            writeln!(number, "{n}")?;
            // It is there before the first power cut.
            number.sync_all()?;
            File::open(host.path(&mount))?.sync_all()?;
        }
        for machine in cluster.hosts.iter().chain(&cluster.coordinator_hosts) {
            // libfaketime leaves files there when its process is killed.
            machine.run(&["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"])?;
        }
        let service = SocketAddr::from((ADDRESS, PORT));
        let mut stage = Self {
            traffic: Traffic::start(&client, &probes, service),
            watch: Watch::start(cluster.operator().clone()),
            cluster,
            data,
        };
        for machine in stage.machines() {
            stage.set_clock(machine, 0)?;
            stage.start(machine)?;
        }
        stage.until("all hosts to join", START_MAX, |status| {
            let hosts = status["hosts"].as_array()?;
            let joined = hosts.len() == 3 && hosts.iter().all(|host| host["alive"] == true);
            joined.then_some(())
        })?;
        stage
            .cluster
            .declare(&stage.service_toml(&program("understudy-ledger")?))?;
        stage.until_whole(START_MAX)?;
        Ok(stage)
    }

    fn service_toml(&self, ledger: &std::path::Path) -> String {
        let number = self.cluster.bed.disk_mount_point().join("number");
        format!(
            "name = \"{SERVICE}\"\npaths = [\"{data}\"]\naddress = \"{ADDRESS}/24\"\ninterface = \"{interface}\"\n\
             consistency = \"freeze\"\nack = \"written\"\nhosts = [1, 2, 3]\n\n[workload]\n\
             start = [\"{ledger}\", \"{data}\", \"{PORT}\", \"{number}\"]\n\
             health = {{ tcp = \"127.0.0.1:{PORT}\" }}\n",
            data = self.data.display(),
            interface = self.cluster.hosts[0].interface(),
            ledger = ledger.display(),
            number = number.display(),
        )
    }

    pub fn machines(&self) -> Vec<Machine> {
        let coordinators = (0..self.cluster.coordinator_hosts.len()).map(Machine::Coordinator);
        coordinators
            .chain((0..self.cluster.hosts.len()).map(Machine::Host))
            .collect()
    }

    pub fn host(&self, machine: Machine) -> &Arc<Host> {
        match machine {
            Machine::Host(n) => &self.cluster.hosts[n],
            Machine::Coordinator(n) => &self.cluster.coordinator_hosts[n],
        }
    }

    /// Starts its program.
    pub fn start(&mut self, machine: Machine) -> Result<()> {
        let environment = self.clock_environment(machine);
        let environment: Vec<(&str, OsString)> = environment
            .iter()
            .map(|(name, value)| (*name, value.clone()))
            .collect();
        match machine {
            Machine::Host(n) => self.cluster.start_agent_with(n, &environment),
            Machine::Coordinator(n) => self.cluster.start_coordinator_with(n, &environment),
        }
    }

    /// SIGKILL to its program.
    pub fn kill(&mut self, machine: Machine) {
        match machine {
            Machine::Host(n) => self.cluster.kill_agent(n),
            Machine::Coordinator(n) => self.cluster.kill_coordinator(n),
        }
    }

    pub fn is_started(&self, machine: Machine) -> bool {
        self.process(machine).is_some()
    }

    /// Process id of its program, while that runs.
    pub fn pid(&self, machine: Machine) -> Option<u32> {
        self.process(machine).map(Process::pid)
    }

    fn process(&self, machine: Machine) -> Option<&Process> {
        match machine {
            Machine::Host(n) => self.cluster.agent(n),
            Machine::Coordinator(n) => self.cluster.coordinator(n),
        }
    }

    pub fn signal(&self, machine: Machine, signal: i32) -> Result<()> {
        self.process(machine)
            .map_or(Ok(()), |process| process.signal(signal))
    }

    /// The file that a program's wall clock is read from, beside the real one.
    fn clock(&self, machine: Machine) -> PathBuf {
        let name = format!("clock-{}", self.host(machine).name());
        self.cluster.bed.directory().join(name)
    }

    /// How far the wall clock of the machine's programs is ahead of the real one.
    pub fn set_clock(&self, machine: Machine, seconds: i64) -> Result<()> {
        let path = self.clock(machine);
        fs::write(&path, format!("{seconds:+}\n")).with_context(|| path.display().to_string())
    }

    /// Only the wall clock is faked: leases are on the boot clock.
    fn clock_environment(&self, machine: Machine) -> Vec<(&'static str, OsString)> {
        let Some(library) = faketime() else {
            return Vec::new();
        };
        vec![
            ("LD_PRELOAD", library.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.clock(machine).into()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_DONT_RESET", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }

    pub fn until<T>(
        &self,
        what: &str,
        at_most: Duration,
        condition: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        self.cluster.operator().until(what, at_most, condition)
    }

    /// Waits until the service is served, everybody is heard and every other host could take over.
    pub fn until_whole(&self, at_most: Duration) -> Result<()> {
        self.until("a holder and two ready shadows", at_most, is_whole)
    }

    /// A host in safe mode is given back to the cluster, as an operator would.
    pub fn end_safe_modes(&self) -> Result<()> {
        let status = self.cluster.operator().document(&["status"])?;
        for host in status["hosts"].as_array().map(Vec::as_slice).unwrap_or_default() {
            if let (true, Some(name)) = (host["safe_mode"] == true, host["name"].as_str()) {
                self.cluster.operator().ask(&["restore", name])?;
            }
        }
        Ok(())
    }

    /// The machine that this is now, other than `but`.
    pub fn find(&self, who: Who, but: Option<Machine>, seeded: &mut Seeded) -> Result<Machine> {
        let found = match who {
            Who::Holder | Who::Shadow => {
                let holder = self.until("a holder", STATUS_MAX, |status| {
                    Some(status["services"][0]["holder"].as_u64()? as usize - 1)
                })?;
                let all = (0..self.cluster.hosts.len()).map(Machine::Host).collect();
                (Machine::Host(holder), who == Who::Holder, all)
            }
            Who::Leader | Who::Follower => {
                let leader = self.leader()?;
                let all = (0..self.cluster.coordinator_hosts.len())
                    .map(Machine::Coordinator)
                    .collect();
                (Machine::Coordinator(leader), who == Who::Leader, all)
            }
        };
        let (first, wants_first, all): (_, _, Vec<_>) = found;
        if wants_first && Some(first) != but {
            return Ok(first);
        }
        let others: Vec<_> = all
            .into_iter()
            .filter(|machine| *machine != first && Some(*machine) != but)
            .collect();
        Ok(*seeded.one_of(&others))
    }

    pub fn leader(&self) -> Result<usize> {
        self.until("a leader", STATUS_MAX, |status| {
            Some(status["leader"].as_u64()? as usize - 1)
        })
    }

    /// Processes of the workload on a host.
    pub fn workload(&self, n: usize) -> Vec<i32> {
        let cgroup = self.cluster.hosts[n].cgroups().unified().join(SERVICE);
        let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How the workload stands on each host, for people: states of its processes, and of its freezer.
    pub fn workloads(&self) -> String {
        let one = |(n, host): (usize, &Arc<Host>)| {
            let cgroup = host.cgroups().unified().join(SERVICE);
            let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
            let state = |pid: &i32| {
                let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let stat = read("stat");
                let state = stat.rsplit_once(") ").map_or("?", |(_, rest)| &rest[..1]);
                format!("{pid} {state} in {}", read("wchan"))
            };
            let states: Vec<String> = self.workload(n).iter().map(state).collect();
            format!(
                "{}: {} [{}]",
                host.name(),
                events.trim().replace('\n', ", "),
                states.join("; ")
            )
        };
        let all: Vec<String> = self.cluster.hosts.iter().enumerate().map(one).collect();
        all.join("; ")
    }

    /// Waits until an append that was sent from now on is answered.
    pub fn until_served(&self, since_ns: u64, at_most: Duration) -> Result<()> {
        wait_for("an append to be answered", at_most, || {
            self.traffic.served_since(since_ns).then_some(())
        })
    }
}

fn is_whole(status: &Value) -> Option<()> {
    let service = &status["services"][0];
    let ready = |shadow: &&Value| shadow["copy"] == "ready" && shadow["promotable"] == true;
    let shadows = service["shadows"].as_array()?.iter().filter(ready).count();
    let all = |what: &str, word: &str| {
        let list = status[what].as_array()?;
        Some(!list.is_empty() && list.iter().all(|one| one[word] == true))
    };
    // What is said of a silent host may be old.
    let heard = all("hosts", "alive")? && all("coordinators", "reachable")?;
    (service["serving"] == true && service["phase"] == "steady" && shadows == 2 && heard).then_some(())
}
