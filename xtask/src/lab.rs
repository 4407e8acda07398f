//! `cargo xtask lab`: labelled runs of real faults and look-alikes, recorded through the real agent.
//!
//! Invariants: a run is a pure function of its number, so a recording that was broken off goes on where it stopped;
//! a run is there whole or not at all; no host runs the service or the client of the demo.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use understudy_testbed::fault::{Background, Class, Event, Plan, Running, Seeded};
use understudy_testbed::{Host, HostSpec, Testbed, boot_ns, wait_for};

use crate::shell::{become_root, is_root};
use crate::{ebpf, train};

const SEED: u64 = 0x0511_1AB0;
const LIMIT_MIB: std::ops::RangeInclusive<u64> = 512..=1_536;
const DISK_MIB: u64 = 768;
/// Seconds from the start of the recording to the fault.
const START_S: std::ops::RangeInclusive<u64> = 20..=70;
/// Seconds of a run without a failure.
const HARMLESS_S: std::ops::RangeInclusive<u64> = 110..=230;
/// A leak that would take longer or shorter is drawn again.
const LEAK_S: std::ops::RangeInclusive<u64> = 22..=170;
const FAULT_S_MAX: u64 = 260;
const AFTER_FAILURE: Duration = Duration::from_millis(2_500);
/// Of ten runs in a row.
const CLASSES: [Class; 10] = [
    Class::Leak,
    Class::Throttle,
    Class::WarmUp,
    Class::Leak,
    Class::Throttle,
    Class::Quiet,
    Class::Leak,
    Class::Throttle,
    Class::Backup,
    Class::WarmUp,
];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object at the end; everything else goes to stderr.
    #[arg(long)]
    json: bool,
    /// Runs in the set, those already recorded included.
    #[arg(long, default_value_t = 136)]
    runs: u64,
    /// Begin no run after this many minutes.
    #[arg(long, default_value_t = 50)]
    minutes: u64,
    /// Hosts at a time.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Where the compact traces go; a run that is there is not recorded again. Default: the committed ones.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Everything is built: set by the lab itself when it becomes root
    #[arg(long, hide = true)]
    built: bool,
}

/// What is known about a run beside its trace.
#[derive(Serialize)]
struct Label {
    run: u64,
    class: Class,
    plan: Plan,
    background: Background,
    limit_mib: u64,
    /// Second of the boot clock at which the fault or look-alike began, and at which the host failed.
    start_tick: Option<u64>,
    failure_tick: Option<u64>,
    /// One-minute load of the machine when the run ended: other work shares it.
    machine_load: String,
}

#[derive(Serialize)]
struct Outcome {
    recorded: u64,
    present: u64,
    failed: u64,
    seconds: u64,
}

struct Lab {
    folder: PathBuf,
    packed: PathBuf,
    agent: PathBuf,
    fault: PathBuf,
    next: AtomicU64,
    recorded: AtomicU64,
    present: AtomicU64,
    failed: AtomicU64,
    begun: Instant,
}

pub fn run(root: &Path, args: &Args) -> Result<ExitCode> {
    if !args.built {
        build(root)?;
    }
    if !is_root() {
        return Err(become_root("the lab"));
    }
    if let Some(reason) = understudy_testbed::missing() {
        bail!("the lab cannot run here: {reason}");
    }
    let binaries = std::env::current_exe()?
        .parent()
        .context("xtask lies in a folder")?
        .to_owned();
    let lab = Lab {
        folder: root.join("target/lab"),
        packed: args.out.clone().unwrap_or_else(|| train::traces(root)),
        agent: binaries.join("understudy-agent"),
        fault: binaries.join("understudy-fault"),
        next: AtomicU64::new(0),
        recorded: AtomicU64::new(0),
        present: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        begun: Instant::now(),
    };
    std::fs::create_dir_all(&lab.folder)?;
    std::thread::scope(|scope| {
        for _ in 0..args.parallel.max(1) {
            scope.spawn(|| lab.record_until_done(args));
        }
    });
    train::pack(root, &lab.folder, &lab.packed)?;
    let outcome = Outcome {
        recorded: lab.recorded.into_inner(),
        present: lab.present.into_inner(),
        failed: lab.failed.into_inner(),
        seconds: lab.begun.elapsed().as_secs(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(if outcome.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build(root: &Path) -> Result<()> {
    ebpf::run()?;
    let built = Command::new("cargo")
        // As the tests are built: nothing is compiled twice.
        .args(["build", "--workspace", "--bins"])
        .current_dir(root)
        .status()
        .context("starting cargo")?;
    if !built.success() {
        bail!("building the agent and the fault program failed");
    }
    Ok(())
}

impl Lab {
    fn record_until_done(&self, args: &Args) {
        while self.begun.elapsed() < Duration::from_secs(args.minutes * 60) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= args.runs {
                return;
            }
            if self.is_recorded(number) {
                self.present.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match self.record(number) {
                Ok(line) => {
                    self.recorded.fetch_add(1, Ordering::Relaxed);
                    eprintln!("[{:>5} s] run {number:04} {line}", self.begun.elapsed().as_secs());
                }
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    eprintln!(
                        "[{:>5} s] run {number:04} failed: {error:#}",
                        self.begun.elapsed().as_secs()
                    );
                }
            }
        }
    }

    fn is_recorded(&self, number: u64) -> bool {
        self.label_path(number).exists() || self.packed.join(format!("run-{number:04}.trace.xz")).exists()
    }

    fn label_path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("run-{number:04}.json"))
    }

    fn record(&self, number: u64) -> Result<String> {
        let draw = Draw::of(number);
        let partial = self.folder.join(format!("run-{number:04}.partial"));
        let _ = std::fs::remove_file(&partial);
        let mut bed = Testbed::start("lab")?;
        let address = "10.78.0.2".parse()?;
        let host = bed.add(
            HostSpec::new("h", address)
                .disk_mib(DISK_MIB)
                .memory_limit(draw.limit_mib << 20),
        )?;
        let config = bed.directory().join("agent.toml");
        std::fs::write(&config, agent_config(&host)?)?;
        let mut command = host.command(&self.agent)?;
        command
            .arg("record")
            .arg("--config")
            .arg(&config)
            .arg("--out")
            .arg(&partial);
        let mut agent = host.spawn("agent", command)?;
        wait_for("the agent's trace", Duration::from_secs(30), || {
            partial.exists().then_some(())
        })?;
        let background = Running::background(&self.fault, &host, &draw.background)?;
        std::thread::sleep(Duration::from_secs(draw.start_s));
        if !agent.is_running() {
            bail!("the agent ended: {}", tail(agent.log()));
        }
        let (start_tick, failure_tick) = self.fault(&draw, &host)?;
        drop(background);
        agent.signal(15)?;
        let status = agent.wait(Duration::from_secs(20))?;
        if !status.success() {
            bail!("the agent ended with {status}: {}", tail(agent.log()));
        }
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let label = Label {
            run: number,
            class: draw.class,
            plan: draw.plan,
            background: draw.background,
            limit_mib: draw.limit_mib,
            start_tick,
            failure_tick,
            machine_load: load.split(' ').next().unwrap_or_default().to_owned(),
        };
        std::fs::rename(&partial, partial.with_extension("trace"))?;
        // The label last: a run that has one is whole.
        std::fs::write(self.label_path(number), serde_json::to_string(&label)?)?;
        let lasted = failure_tick
            .zip(start_tick)
            .map(|(failed, started)| failed - started);
        Ok(format!(
            "{:?} limit {} MiB, failed after {lasted:?} s",
            label.plan, label.limit_mib
        ))
    }

    /// Lets the fault or look-alike run; the seconds of the boot clock at which it began and the host failed.
    fn fault(&self, draw: &Draw, host: &Arc<Host>) -> Result<(Option<u64>, Option<u64>)> {
        let second = |ns: u64| ns / 1_000_000_000;
        let mut running = match draw.class {
            Class::Quiet => None,
            _ => Some(Running::fault(&self.fault, host, &draw.plan)?),
        };
        if !draw.class.is_fault() {
            std::thread::sleep(Duration::from_secs(draw.harmless_s));
            return Ok((
                running
                    .and_then(|running| running.when(Event::Started))
                    .map(second),
                None,
            ));
        }
        let running = running.as_mut().context("a fault runs")?;
        let failed = wait_for(
            "the host to fail",
            Duration::from_secs(FAULT_S_MAX),
            || match draw.class {
                Class::Leak => running.ended().then(boot_ns),
                _ => running.when(Event::Reached),
            },
        )?;
        std::thread::sleep(AFTER_FAILURE);
        Ok((running.when(Event::Started).map(second), Some(second(failed))))
    }
}

/// Everything about a run that chance decides.
struct Draw {
    class: Class,
    plan: Plan,
    background: Background,
    limit_mib: u64,
    start_s: u64,
    harmless_s: u64,
}

impl Draw {
    fn of(number: u64) -> Self {
        let mut seeded = Seeded::new(SEED.wrapping_add(number));
        let class = CLASSES[(number % CLASSES.len() as u64) as usize];
        loop {
            let limit_mib = seeded.within(&LIMIT_MIB);
            let background = Background::for_training(seeded.draw(), limit_mib);
            let plan = Plan::for_training(class, seeded.draw(), limit_mib, background.resident_mib);
            let draw = Self {
                class,
                plan,
                limit_mib,
                start_s: seeded.within(&START_S),
                harmless_s: seeded.within(&HARMLESS_S),
                background,
            };
            if draw.is_bounded() {
                return draw;
            }
        }
    }

    fn is_bounded(&self) -> bool {
        match self.plan {
            Plan::Leak { kib_s } => {
                LEAK_S.contains(&((self.limit_mib - self.background.resident_mib) * 1024 / kib_s))
            }
            _ => true,
        }
    }
}

fn agent_config(host: &Host) -> Result<String> {
    let v1 = |controller: &str| {
        host.cgroups()
            .v1(controller)
            .unwrap_or_else(|| host.cgroups().unified())
            .display()
            .to_string()
    };
    let disk = host.disk().context("lab hosts have a disk")?;
    Ok(format!(
        "host = 1\n[telemetry]\nbpf = true\n[telemetry.scope]\ncgroup = \"{}\"\nmemory = \"{}\"\ncpu = \"{}\"\n\
         devices = [\"{}\"]\nnetns = true\n",
        host.cgroups().unified().display(),
        v1("memory"),
        v1("cpu"),
        disk.numbers(),
    ))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_decided_by_its_number() {
        for number in 0..40 {
            let (a, b) = (Draw::of(number), Draw::of(number));
            assert_eq!(
                (a.plan, a.background, a.limit_mib),
                (b.plan, b.background, b.limit_mib)
            );
        }
    }

    #[test]
    fn every_class_is_in_the_set() {
        for class in [
            Class::Leak,
            Class::Throttle,
            Class::Backup,
            Class::WarmUp,
            Class::Quiet,
        ] {
            assert!(CLASSES.contains(&class));
        }
    }
}
