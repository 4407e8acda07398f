//! A cluster of the real programs on a test bed: coordinators, hosts with disks of their own, and an
//! operator who asks them.
//!
//! Invariants: what runs is what `understudy init` configured, moved onto the bed and changed in nothing
//! else; the processes end before the bed goes.

mod configure;
mod keep;
mod operator;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{Host, HostSpec, Process, Testbed, wait_for};

pub use operator::Operator;

/// Last bytes of the addresses in 10.77.0.0/24.
const COORDINATOR_FIRST: u8 = 1;
const HOST_FIRST: u8 = 11;
const OPERATOR: u8 = 51;
/// How long coordinators may take until all know what a token is.
const TOKEN_MAX: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Becomes part of every name on the machine.
    pub area: String,
    pub host_names: Vec<String>,
    pub host_disk_mib: u64,
    pub host_memory_limit: Option<u64>,
    pub coordinators: u8,
    /// Without one the coordinators write into the bed's directory.
    pub coordinator_disk_mib: Option<u64>,
    /// Appended to each coordinator's configuration.
    pub coordinator_more: String,
    /// `RUST_LOG` of the agents.
    pub agent_log: String,
}

impl ClusterSpec {
    /// Three hosts `a`, `b` and `c`, three coordinators, no prediction.
    pub fn new(area: &str) -> Self {
        Self {
            area: area.to_owned(),
            host_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            host_disk_mib: 160,
            host_memory_limit: None,
            coordinators: 3,
            coordinator_disk_mib: None,
            coordinator_more: String::new(),
            agent_log: "info".to_owned(),
        }
    }
}

pub struct Cluster {
    // Before the test bed, so that everything has ended when that is torn down.
    agents: Vec<Option<Process>>,
    coordinators: Vec<Option<Process>>,
    pub hosts: Vec<Arc<Host>>,
    pub coordinator_hosts: Vec<Arc<Host>>,
    operator: Operator,
    config: PathBuf,
    /// The hosts' files, which are elsewhere for those that joined.
    host_configs: Vec<PathBuf>,
    agent_log: String,
    pub bed: Testbed,
}

impl Cluster {
    /// Everything plugged in and configured; nothing runs yet.
    pub fn plug(spec: &ClusterSpec) -> Result<Self> {
        let mut bed = Testbed::start(&spec.area)?;
        let at = |last: u8| Ipv4Addr::new(10, 77, 0, last);
        let coordinator_hosts = (0..spec.coordinators)
            .map(|n| {
                let name = format!("coordinator{}", n + 1);
                bed.add(HostSpec {
                    disk_mib: spec.coordinator_disk_mib,
                    ..HostSpec::new(&name, at(COORDINATOR_FIRST + n))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let from = bed.add(HostSpec::new("operator", at(OPERATOR)))?;
        let hosts = spec
            .host_names
            .iter()
            .zip(HOST_FIRST..OPERATOR)
            .map(|(name, last)| {
                bed.add(HostSpec {
                    disk_mib: Some(spec.host_disk_mib),
                    memory_limit: spec.host_memory_limit,
                    ..HostSpec::new(name, at(last))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let config = bed.directory().join("cluster");
        let made = Self {
            agents: hosts.iter().map(|_| None).collect(),
            coordinators: coordinator_hosts.iter().map(|_| None).collect(),
            operator: Operator::new(from, program("understudy")?, config.join("cluster.toml")),
            host_configs: (1..=hosts.len())
                .map(|n| config.join(format!("host-{n}.toml")))
                .collect(),
            hosts,
            coordinator_hosts,
            config,
            agent_log: spec.agent_log.clone(),
            bed,
        };
        made.configure(&spec.coordinator_more)?;
        Ok(made)
    }

    /// Starts every program that does not run.
    pub fn start_all(&mut self) -> Result<()> {
        for n in 0..self.coordinators.len() {
            if self.coordinators[n].is_none() {
                self.start_coordinator(n)?;
            }
        }
        for n in 0..self.agents.len() {
            if self.agents[n].is_none() {
                self.start_agent(n)?;
            }
        }
        Ok(())
    }

    /// Hosts are numbered from 0 here, from 1 by the programs.
    pub fn start_agent(&mut self, n: usize) -> Result<()> {
        self.start_agent_with(n, &[])
    }

    /// With more in its environment.
    pub fn start_agent_with(&mut self, n: usize, environment: &[(&str, OsString)]) -> Result<()> {
        let host = &self.hosts[n];
        let mut command = host.command(program("understudy-agent")?)?;
        command
            .arg("--config")
            .arg(&self.host_configs[n])
            .env("RUST_LOG", &self.agent_log)
            .envs(environment.iter().cloned());
        self.agents[n] = Some(host.spawn("agent", command)?);
        Ok(())
    }

    /// The machine joins the cluster that runs, as a new host of that name, with a token: what `understudy
    /// init` made for it is not used any more.
    pub fn join(&mut self, n: usize, name: &str) -> Result<()> {
        let token = wait_for("a token", TOKEN_MAX, || self.operator.ask(&["token"]).ok())?;
        let host = Arc::clone(&self.hosts[n]);
        let dir = self.bed.directory().join(format!("joined-{name}"));
        let mut join = host.command(self.operator.program())?;
        join.args(["join", token.trim(), "--name", name, "--dir"])
            .arg(&dir);
        let output = join.output().context("starting `understudy join`")?;
        ensure!(
            output.status.success(),
            "understudy join: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let files = std::fs::read_dir(&dir)?.collect::<std::io::Result<Vec<_>>>()?;
        let toml = files
            .iter()
            .map(std::fs::DirEntry::path)
            .find(|path| path.extension().is_some_and(|end| end == "toml"));
        let toml = toml.context("`understudy join` wrote no configuration")?;
        self.configure_host(&toml, &host)?;
        self.host_configs[n] = toml;
        Ok(())
    }

    /// The configuration of a host's agent.
    pub fn host_config(&self, n: usize) -> &Path {
        &self.host_configs[n]
    }

    pub fn start_coordinator(&mut self, n: usize) -> Result<()> {
        self.start_coordinator_with(n, &[])
    }

    /// With more in its environment.
    pub fn start_coordinator_with(&mut self, n: usize, environment: &[(&str, OsString)]) -> Result<()> {
        let host = &self.coordinator_hosts[n];
        let mut command = host.command(program("understudy-coordinator")?)?;
        command
            .arg("--config")
            .arg(self.config.join(format!("coordinator-{}.toml", n + 1)))
            .envs(environment.iter().cloned());
        self.coordinators[n] = Some(host.spawn("coordinator", command)?);
        Ok(())
    }

    /// SIGKILL. What the agent started lives on.
    pub fn kill_agent(&mut self, n: usize) {
        self.agents[n] = None;
    }

    pub fn kill_coordinator(&mut self, n: usize) {
        self.coordinators[n] = None;
    }

    /// The host's power is lost, with its agent and all that this started.
    pub fn cut_host_power(&mut self, n: usize) -> Result<()> {
        let done = self.hosts[n].cut_power();
        self.agents[n] = None;
        done
    }

    pub fn cut_coordinator_power(&mut self, n: usize) -> Result<()> {
        let done = self.coordinator_hosts[n].cut_power();
        self.coordinators[n] = None;
        done
    }

    pub fn agent(&self, n: usize) -> Option<&Process> {
        self.agents[n].as_ref()
    }

    pub fn coordinator(&self, n: usize) -> Option<&Process> {
        self.coordinators[n].as_ref()
    }

    /// Logs of programs that were started and have ended by themselves. They count as stopped from now on.
    pub fn ended(&mut self) -> Vec<PathBuf> {
        let slots = self.agents.iter_mut().chain(&mut self.coordinators);
        let over = |slot: &mut Option<Process>| {
            if slot.as_mut()?.is_running() {
                return None;
            }
            slot.take().map(|process| process.log().to_owned())
        };
        slots.filter_map(over).collect()
    }

    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Where the configuration files are.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Declares a service as an operator does: from a file.
    pub fn declare(&self, toml: &str) -> Result<()> {
        let path = self.config.join("service.toml");
        std::fs::write(&path, toml).with_context(|| path.display().to_string())?;
        self.operator.ask(&["apply", &path.display().to_string()])?;
        Ok(())
    }
}

/// A program that was built beside the one that runs, which may be a test.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    ensure!(
        found.is_some(),
        "`{name}` is not built beside {}: cargo build --workspace",
        own.display()
    );
    found.context("checked above")
}
