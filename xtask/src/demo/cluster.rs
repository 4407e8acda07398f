//! The demo's machines: three hosts, three coordinators, a client, an operator and the probes, and
//! the real programs on them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use understudy_testbed::cluster::{Cluster as Programs, ClusterSpec, Operator, program};
use understudy_testbed::fault::{Background, DEMO_MEMORY_LIMIT_MIB, Running};
use understudy_testbed::{Host, HostSpec, Process, Testbed, wait_for};

use super::redis::{Redis, Reply};
use crate::repo;

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
pub(super) const SERVICE: &str = "redis";
const PORT: u16 = 6379;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const DISK_MIB: u64 = 3_072;
const VALUES: usize = 200_000;
const VALUE_BYTES: usize = 1_024;
const LOAD_BATCH: usize = 500;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Cluster {
    // Before the programs, whose hosts they run on.
    background: Vec<Option<Running>>,
    programs: Programs,
    pub(super) probes: Vec<Arc<Host>>,
    pub(super) client: Arc<Host>,
    seed: u64,
}

impl Cluster {
    /// Everything plugged in and configured; nothing runs yet.
    pub(super) fn build(seed: u64) -> Result<Self> {
        let mut programs = Programs::plug(&ClusterSpec {
            host_names: NAMES.map(str::to_owned).to_vec(),
            host_disk_mib: DISK_MIB,
            host_memory_limit: Some(DEMO_MEMORY_LIMIT_MIB << 20),
            coordinator_more: prediction(),
            agent_log: "info,understudy_agent::generation=debug".to_owned(),
            ..ClusterSpec::new("demo")
        })?;
        let at = |last: u8| Ipv4Addr::new(10, 77, 0, last);
        let client = programs.bed.add(HostSpec::new("client", at(50)))?;
        let probes = (1..=3)
            .map(|n| programs.bed.add(HostSpec::new(&format!("probe{n}"), at(60 + n))))
            .collect::<Result<Vec<_>>>()?;
        for (probe, host) in probes.iter().zip(&programs.hosts) {
            probe.pin_neighbour(ADDRESS, &host.mac())?;
        }
        let made = Self {
            background: NAMES.iter().map(|_| None).collect(),
            programs,
            probes,
            client,
            seed,
        };
        for host in made.hosts() {
            fs::create_dir_all(host.path(&made.data()))?;
        }
        Ok(made)
    }

    pub(super) fn hosts(&self) -> &[Arc<Host>] {
        &self.programs.hosts
    }

    pub(super) fn bed(&self) -> &Testbed {
        &self.programs.bed
    }

    pub(super) fn operator(&self) -> &Operator {
        self.programs.operator()
    }

    pub(super) fn service_address(&self) -> SocketAddr {
        (ADDRESS, PORT).into()
    }

    pub(super) fn memory_limit(&self) -> u64 {
        DEMO_MEMORY_LIMIT_MIB << 20
    }

    fn data(&self) -> PathBuf {
        self.bed().disk_mount_point().join("redis")
    }

    /// Redis' own log, of all hosts one after the other.
    fn redis_log(&self) -> PathBuf {
        self.bed().logs().join("redis.log")
    }

    pub(super) fn agent_log(&self, index: usize) -> PathBuf {
        self.bed().logs().join(format!("{}-agent.log", NAMES[index]))
    }

    fn redis_words(&self) -> Vec<String> {
        let (data, log) = (self.data(), self.redis_log());
        let fixed = [
            "/usr/bin/redis-server",
            "--port",
            "6379",
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--save",
            "",
            "--auto-aof-rewrite-percentage",
            "0",
            "--databases",
            "1",
        ];
        let mut words: Vec<String> = fixed.map(str::to_owned).to_vec();
        words.extend(["--dir".to_owned(), data.display().to_string()]);
        words.extend(["--logfile".to_owned(), log.display().to_string()]);
        words
    }

    fn service_toml(&self) -> String {
        let words: Vec<String> = self
            .redis_words()
            .iter()
            .map(|word| format!("{word:?}"))
            .collect();
        format!(
            "name = \"{SERVICE}\"\npaths = [\"{data}\"]\naddress = \"{ADDRESS}/24\"\ninterface = \"{interface}\"\n\
             consistency = \"freeze\"\nack = \"written\"\nhosts = [1, 2, 3]\n\n[workload]\nstart = [{start}]\n\
             health = {{ tcp = \"127.0.0.1:{PORT}\" }}\n",
            data = self.data().display(),
            interface = self.hosts()[0].interface(),
            start = words.join(", "),
        )
    }

    /// The service as it was before anyone protected it: 200k values of 1 KiB in its files on A.
    pub(super) fn load(&self) -> Result<()> {
        let host = &self.hosts()[0];
        let words = self.redis_words();
        let mut command = host.command(&words[0])?;
        command.args(&words[1..]);
        let mut redis = host.spawn("load", command)?;
        host.inside(|| fill((Ipv4Addr::LOCALHOST, PORT).into()))?;
        redis.signal(libc::SIGTERM)?;
        redis.wait(PATIENCE)?;
        Ok(())
    }

    pub(super) fn start_coordinators(&mut self) -> Result<()> {
        (0..self.programs.coordinator_hosts.len()).try_for_each(|n| self.programs.start_coordinator(n))
    }

    /// What a host does when it starts: its agent, and the ordinary work that it has anyway.
    pub(super) fn start_host(&mut self, index: usize) -> Result<()> {
        self.programs.start_agent(index)?;
        let background = Background::for_demo(self.seed.wrapping_add(index as u64));
        let fault = program("understudy-fault")?;
        let running = Running::background(&fault, &self.programs.hosts[index], &background)?;
        self.background[index] = Some(running);
        Ok(())
    }

    pub(super) fn cut_power(&mut self, index: usize) -> Result<()> {
        let done = self.programs.cut_host_power(index);
        self.background[index] = None;
        done
    }

    pub(super) fn agent_pid(&self, index: usize) -> Option<u32> {
        self.programs.agent(index).map(Process::pid)
    }

    /// A program that should run and does not is an error with the end of its log.
    pub(super) fn check_programs(&mut self) -> Result<()> {
        if let Some(path) = self.programs.ended().first() {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            let end: Vec<&str> = lines.into_iter().rev().collect();
            bail!("{} ended; its log ends with:\n{}", path.display(), end.join("\n"));
        }
        Ok(())
    }

    pub(super) fn declare_service(&self) -> Result<()> {
        self.programs.declare(&self.service_toml())
    }

    /// Resident bytes of the service on a host; none when it does not run there.
    pub(super) fn service_resident(&self, index: usize) -> Option<u64> {
        processes(&self.hosts()[index].cgroups().unified())
            .into_iter()
            .find_map(|pid| {
                let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
                if read("comm")?.trim() != "redis-server" {
                    return None;
                }
                let status = read("status")?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
                let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
                Some(kib * 1024)
            })
    }

    /// How long Redis took to read its data, start by start, in milliseconds.
    pub(super) fn redis_loads_ms(&self) -> Vec<f64> {
        let log = fs::read_to_string(self.redis_log()).unwrap_or_default();
        log.lines().filter_map(load_ms).collect()
    }
}

/// The committed model, and the runtime that `cargo xtask setup` unpacked.
fn prediction() -> String {
    let models = repo::root().join("coordinator/models");
    format!(
        "\n[prediction]\nmodel = \"{}\"\ncard = \"{}\"\nonnxruntime = \"{}\"\n",
        models.join("fast.onnx").display(),
        models.join("fast.card.json").display(),
        repo::tools().join("onnxruntime/libonnxruntime.so").display(),
    )
}

fn fill(at: SocketAddr) -> Result<()> {
    let mut redis = wait_for("Redis to answer", PATIENCE, || {
        Redis::connect(at, Duration::from_millis(200), PATIENCE).ok()
    })?;
    for batch in 0..VALUES / LOAD_BATCH {
        for n in batch * LOAD_BATCH..(batch + 1) * LOAD_BATCH {
            redis.queue(&[b"SET", format!("value:{n}").as_bytes(), &value(n)]);
        }
        redis.flush()?;
        for _ in 0..LOAD_BATCH {
            let reply = redis.answer()?;
            ensure!(reply.is_ok(), "Redis answered a value with {reply:?}");
        }
    }
    // As after any rewrite: what is old is in the base file, what is new is appended beside it.
    redis.ask(&[b"BGREWRITEAOF"])?;
    wait_for("Redis to rewrite its file", PATIENCE, || {
        let Reply::Bulk(Some(text)) = redis.ask(&[b"INFO", b"persistence"]).ok()? else {
            return None;
        };
        let text = String::from_utf8_lossy(&text);
        let is_over = |what: &str| text.contains(&format!("aof_rewrite_{what}:0"));
        (is_over("in_progress") && is_over("scheduled")).then_some(())
    })
}

/// Different for each number and not compressible by repetition within a page.
fn value(n: usize) -> Vec<u8> {
    let mut state = n as u64 ^ 0x9E37_79B9_7F4A_7C15;
    (0..VALUE_BYTES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b'a' + (state % 26) as u8
        })
        .collect()
}

/// All processes of a cgroup2 directory and below.
fn processes(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// `DB loaded from append only file: 0.612 seconds`
fn load_ms(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("DB loaded from append only file: ")?;
    let seconds: f64 = rest.split(' ').next()?.parse().ok()?;
    Some(seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_says_how_long_it_read() {
        let line = "7:M 21 Nov 2026 05:00:00.000 * DB loaded from append only file: 0.612 seconds";
        assert_eq!(load_ms(line), Some(612.0));
        assert_eq!(load_ms("7:M * Ready to accept connections"), None);
    }

    #[test]
    fn values_differ() {
        assert_ne!(value(1), value(2));
        assert_eq!(value(1).len(), VALUE_BYTES);
    }
}
