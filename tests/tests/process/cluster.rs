//! Three hosts and three coordinators as real processes, and a Redis that they keep alive.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use understudy_testbed::cluster::{Cluster as Programs, ClusterSpec};
use understudy_testbed::wait_for;

pub const PATIENCE: Duration = Duration::from_secs(90);
pub const SERVICE: &str = "redis";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub const PORT: u16 = 6379;
const ANSWER: Duration = Duration::from_millis(500);
pub const REDIS: &str = "/usr/bin/redis-server";

/// The programs, and how a test looks at their Redis.
pub struct Cluster(Programs);

impl Deref for Cluster {
    type Target = Programs;

    fn deref(&self) -> &Programs {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Programs {
        &mut self.0
    }
}

impl Cluster {
    /// All processes run, and the service is declared.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, "")
    }

    /// The same, with more in the declaration of its workload and after that.
    pub fn start_with(name: &str, more: &str) -> Result<Self> {
        let mut cluster = Self::plug(&ClusterSpec::new(name))?;
        cluster.start_all()?;
        cluster.until_alive(3)?;
        cluster.declare_redis("1, 2, 3", more)?;
        Ok(cluster)
    }

    /// Nothing runs yet.
    pub fn plug(spec: &ClusterSpec) -> Result<Self> {
        let cluster = Self(Programs::plug(spec)?);
        let data = cluster.data();
        for host in &cluster.hosts {
            fs::create_dir_all(host.path(&data))?;
        }
        Ok(cluster)
    }

    fn data(&self) -> PathBuf {
        self.bed.disk_mount_point().join("data")
    }

    /// Waits until so many hosts are heard of.
    pub fn until_alive(&self, hosts: usize) -> Result<()> {
        self.until("all hosts to join", |status| {
            let alive = |host: &&Value| host["alive"] == true;
            (status["hosts"].as_array()?.iter().filter(alive).count() == hosts).then_some(())
        })
    }

    /// The Redis, on the hosts of these numbers.
    pub fn declare_redis(&self, hosts: &str, more: &str) -> Result<()> {
        self.declare(&format!(
            r#"name = "{SERVICE}"
paths = ["{data}"]
address = "{ADDRESS}/24"
interface = "{interface}"
hosts = [{hosts}]
[workload]
start = ["{REDIS}", "--port", "{PORT}", "--bind", "0.0.0.0", "--protected-mode", "no", "--appendonly", "yes",
  "--save", "", "--dir", "{data}"]
health = {{ tcp = "127.0.0.1:{PORT}" }}
{more}"#,
            data = self.data().display(),
            interface = self.hosts[0].interface(),
        ))
    }

    pub fn ask(&self, words: &[&str]) -> Result<String> {
        self.operator().ask(words)
    }

    /// Waits for a condition on what `understudy status` says.
    pub fn until<T>(&self, what: &str, condition: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        self.operator().until(what, PATIENCE, condition)
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
        let asked = self.operator().host().inside(|| {
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
