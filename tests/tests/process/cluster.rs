//! Three hosts and three coordinators as real processes, and a Redis that they keep alive.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use understudy_testbed::{Host, HostSpec, Process, Testbed, wait_for};

pub const PATIENCE: Duration = Duration::from_secs(90);
pub const SERVICE: &str = "redis";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub const PORT: u16 = 6379;
const ANSWER: Duration = Duration::from_millis(500);
pub const REDIS: &str = "/usr/bin/redis-server";

pub struct Cluster {
    // Before the test bed, so that everything has ended when that is torn down.
    agents: Vec<Option<Process>>,
    coordinators: Vec<Option<Process>>,
    pub hosts: Vec<Arc<Host>>,
    coordinator_hosts: Vec<Arc<Host>>,
    outside: Arc<Host>,
    config: PathBuf,
    pub bed: Testbed,
}

/// A program that `cargo xtask test` built beside this test.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().nth(2).context("cargo's layout")?.join(name);
    ensure!(
        found.exists(),
        "{} is not built: cargo build --workspace",
        found.display()
    );
    Ok(found)
}

impl Cluster {
    /// All processes run, and the service is declared.
    pub fn start(name: &str) -> Result<Self> {
        let mut bed = Testbed::start(name)?;
        let at = |last| Ipv4Addr::new(10, 77, 0, last);
        let coordinator_hosts = (1..=3)
            .map(|n| bed.add(HostSpec::new(&format!("coordinator{n}"), at(n))))
            .collect::<Result<Vec<_>>>()?;
        let outside = bed.add(HostSpec::new("outside", at(50)))?;
        let hosts = ["a", "b", "c"]
            .iter()
            .zip(11..)
            .map(|(name, last)| bed.add(HostSpec::new(name, at(last)).disk_mib(160)))
            .collect::<Result<Vec<_>>>()?;
        let mut cluster = Self {
            agents: (0..3).map(|_| None).collect(),
            coordinators: (0..3).map(|_| None).collect(),
            config: bed.directory().join("cluster"),
            hosts,
            coordinator_hosts,
            outside,
            bed,
        };
        cluster.configure()?;
        for n in 0..3 {
            cluster.start_coordinator(n)?;
            cluster.start_agent(n)?;
        }
        cluster.until("all hosts to join", |status| {
            let alive = |host: &&Value| host["alive"] == true;
            (status["hosts"].as_array()?.iter().filter(alive).count() == 3).then_some(())
        })?;
        let service = cluster.config.join("service.toml");
        cluster.ask(&["apply", &service.display().to_string()])?;
        Ok(cluster)
    }

    fn configure(&self) -> Result<()> {
        let mut init = self.outside.command(program("understudy")?)?;
        init.arg("init").arg("--dir").arg(&self.config);
        for host in &self.hosts {
            let named = format!("{}={}:7401", host.name(), host.address());
            init.args(["--host", &named]);
        }
        for host in &self.coordinator_hosts {
            init.args(["--coordinator", &format!("{}:7400", host.address())]);
        }
        let output = init.output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let disk = self.bed.disk_mount_point();
        for (n, host) in (1..).zip(&self.hosts) {
            fs::create_dir_all(host.path(&disk.join("data")))?;
            let unified = host.cgroups().unified();
            self.edit(&format!("host-{n}.toml"), |text| {
                let state = disk.join("understudy");
                let text = text.replace("/srv/understudy", &state.display().to_string());
                let text = text.replace("/sys/fs/cgroup/understudy", &unified.display().to_string());
                format!(
                    "{text}\n[telemetry.scope]\ncgroup = \"{}\"\nnetns = true\n",
                    unified.display()
                )
            })?;
        }
        for n in 1..=3 {
            let data = self.bed.directory().join(format!("coordinator-{n}"));
            self.edit(&format!("coordinator-{n}.toml"), |text| {
                let default = format!("/var/lib/understudy/coordinator-{n}");
                text.replace(&default, &data.display().to_string())
            })?;
        }
        let (data, interface) = (disk.join("data"), self.hosts[0].interface());
        let service = format!(
            r#"name = "{SERVICE}"
paths = ["{data}"]
address = "{ADDRESS}/24"
interface = "{interface}"
hosts = [1, 2, 3]
[workload]
start = ["{REDIS}", "--port", "{PORT}", "--bind", "0.0.0.0", "--protected-mode", "no", "--appendonly", "yes",
  "--save", "", "--dir", "{data}"]
health = {{ tcp = "127.0.0.1:{PORT}" }}
"#,
            data = data.display(),
        );
        Ok(fs::write(self.config.join("service.toml"), service)?)
    }

    fn edit(&self, name: &str, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.config.join(name);
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(path, change(text))?)
    }

    pub fn start_agent(&mut self, n: usize) -> Result<()> {
        let host = &self.hosts[n];
        let mut command = host.command(program("understudy-agent")?)?;
        command
            .arg("--config")
            .arg(self.config.join(format!("host-{}.toml", n + 1)));
        self.agents[n] = Some(host.spawn("agent", command)?);
        Ok(())
    }

    /// SIGKILL. What the agent started lives on.
    pub fn kill_agent(&mut self, n: usize) {
        self.agents[n] = None;
    }

    pub fn start_coordinator(&mut self, n: usize) -> Result<()> {
        let host = &self.coordinator_hosts[n];
        let mut command = host.command(program("understudy-coordinator")?)?;
        command
            .arg("--config")
            .arg(self.config.join(format!("coordinator-{}.toml", n + 1)));
        self.coordinators[n] = Some(host.spawn("coordinator", command)?);
        Ok(())
    }

    pub fn kill_coordinator(&mut self, n: usize) {
        self.coordinators[n] = None;
    }

    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.outside.command(program("understudy")?)?;
        let cluster = self.config.join("cluster.toml");
        let output = command.arg("--cluster").arg(cluster).args(words).output()?;
        if !output.status.success() {
            bail!(
                "understudy {}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits for a condition on what `understudy status` says.
    pub fn until<T>(&self, what: &str, mut condition: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        let mut last = String::new();
        let waited = wait_for(what, PATIENCE, || {
            last = self.ask(&["status", "--json"]).ok()?;
            condition(&serde_json::from_str(&last).ok()?)
        });
        waited.with_context(|| format!("the last status was {last}"))
    }

    /// Waits until the host serves, numbered from 0, and the others can take over.
    pub fn until_whole(&self, holder: usize) -> Result<()> {
        self.until("a holder and two ready shadows", |status| {
            let service = &status["services"][0];
            let ready = |shadow: &&Value| shadow["copy"] == "ready" && shadow["promotable"] == true;
            let serves = service["serving"] == true && service["holder"] == holder as u64 + 1;
            // What is said of a silent host may be old.
            let heard = status["hosts"]
                .as_array()?
                .iter()
                .all(|host| host["alive"] == true);
            (serves && heard && service["shadows"].as_array()?.iter().filter(ready).count() == 2)
                .then_some(())
        })
    }

    /// Waits until the coordinators miss the host.
    pub fn until_silent(&self, n: usize) -> Result<()> {
        self.until("a host to be missed", |status| {
            (status["hosts"][n]["alive"] == false).then_some(())
        })
    }

    /// Whether a process of the service lives on the host.
    pub fn workload_lives(&self, n: usize) -> Result<bool> {
        let procs = self.hosts[n]
            .cgroups()
            .unified()
            .join(SERVICE)
            .join("cgroup.procs");
        Ok(!fs::read_to_string(procs)?.is_empty())
    }

    pub fn leader(&self) -> Result<usize> {
        self.until("a leader", |status| {
            let coordinators = status["coordinators"].as_array()?;
            let leader = coordinators.iter().find(|one| one["role"] == "leader")?;
            Some(leader["id"].as_u64()? as usize - 1)
        })
    }

    /// Lines about errors in the logs of all programs.
    pub fn errors(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.bed.logs())? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            let bad = text
                .lines()
                .filter(|line| line.contains(" ERROR ") || line.contains("panicked"));
            found.extend(bad.map(|line| format!("{}: {line}", path.display())));
        }
        Ok(found)
    }

    /// Asks the service at its address; `None` when nobody answers.
    pub fn redis(&self, command: &str) -> Option<String> {
        self.redis_at((ADDRESS, PORT).into(), command)
    }

    /// Asks whatever listens on a host itself.
    pub fn redis_on(&self, n: usize, command: &str) -> Option<String> {
        self.redis_at((self.hosts[n].address(), PORT).into(), command)
    }

    fn redis_at(&self, at: SocketAddr, command: &str) -> Option<String> {
        let asked = self.outside.inside(|| {
            let mut stream = TcpStream::connect_timeout(&at, ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(format!("{command}\r\n").as_bytes())?;
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.starts_with('$') && !line.starts_with("$-1") {
                line.clear();
                reader.read_line(&mut line)?;
            }
            Ok(line.trim_end().to_owned())
        });
        asked.ok().filter(|line| !line.is_empty())
    }

    /// Writes until the service says +OK.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        wait_for("a write to be answered", PATIENCE, || {
            let answer = self.redis(&format!("SET {key} {value}"))?;
            (answer == "+OK").then_some(())
        })
    }

    pub fn get(&self, key: &str) -> Result<String> {
        wait_for("a read to be answered", PATIENCE, || {
            self.redis(&format!("GET {key}"))
                .filter(|answer| !answer.starts_with('-'))
        })
    }
}
