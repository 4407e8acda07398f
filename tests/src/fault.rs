//! Faults and harmless look-alikes for hosts of the test bed: what they are, at which rates, and how they are started.
//!
//! Invariants: the rates used for training (`TRAIN_*`) and the ones shown in the demo (`DEMO_*`) never overlap; a plan
//! is a pure function of its seed; nothing here touches a host outside its own cgroups, namespaces and disk. Memory
//! and reads are the work of `understudy-fault` (see [`crate::fault_child`]), which runs in the host and ends when the
//! [`Running`] that holds its standard input is dropped; a disk is throttled from outside.

use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{Host, boot_ns, wait_for};

pub type Range = RangeInclusive<u64>;

/// Growth of a leak, KiB per second.
pub const TRAIN_LEAK_KIB_S: [Range; 2] = [2_048..=6_144, 14_336..=24_576];
pub const DEMO_LEAK_KIB_S: Range = 8_192..=12_288;
/// Seconds between two steps of a dying disk.
pub const TRAIN_THROTTLE_INTERVAL_MS: [Range; 2] = [3_000..=6_500, 11_000..=16_000];
pub const DEMO_THROTTLE_INTERVAL_MS: Range = 8_000..=9_500;
/// What a step leaves of the speed before it, in percent.
pub const TRAIN_THROTTLE_STEP_PERCENT: [Range; 2] = [45..=60, 74..=82];
pub const DEMO_THROTTLE_STEP_PERCENT: Range = 65..=70;
/// Speed before the first step. Both ends use the same: it is what the disk can do, not how it fails.
pub const THROTTLE_START_KIB_S: Range = 20_480..=32_768;
/// At this speed the disk counts as failed.
pub const THROTTLE_FLOOR_KIB_S: u64 = 512;
/// A fault that would take longer or shorter is drawn again.
pub const TRAIN_THROTTLE_TOTAL_S: Range = 30..=170;
pub const TRAIN_BACKUP_KIB_S: [Range; 2] = [4_096..=16_384, 40_960..=122_880];
pub const DEMO_BACKUP_KIB_S: Range = 20_480..=32_768;
pub const TRAIN_WARM_UP_KIB_S: [Range; 2] = [2_048..=7_168, 16_384..=81_920];
pub const DEMO_WARM_UP_KIB_S: Range = 9_216..=14_336;
/// Where a warm-up ends, resident part included, in percent of the memory limit.
pub const TRAIN_WARM_UP_TOP_PERCENT: Range = 30..=66;
/// Anonymous memory that the demo's warm-up ends with, on top of the service.
pub const DEMO_WARM_UP_MIB: u64 = 160;
/// Memory limit of a host in the demo.
pub const DEMO_MEMORY_LIMIT_MIB: u64 = 1_024;
/// How often a fault process acts.
pub const PACE: Duration = Duration::from_millis(50);
const END_MAX: Duration = Duration::from_secs(2);

/// SplitMix64: small, seedable, the same everywhere.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn within(&mut self, range: &Range) -> u64 {
        range.start() + self.draw() % (range.end() - range.start() + 1)
    }

    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[(self.draw() % choices.len() as u64) as usize]
    }

    fn of_either(&mut self, ranges: &[Range; 2]) -> u64 {
        let range = self.one_of(ranges).clone();
        self.within(&range)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    Leak,
    Throttle,
    Backup,
    WarmUp,
    Quiet,
}

impl Class {
    pub const FAULTS: [Self; 2] = [Self::Leak, Self::Throttle];
    pub const LOOK_ALIKES: [Self; 2] = [Self::Backup, Self::WarmUp];

    pub fn is_fault(self) -> bool {
        Self::FAULTS.contains(&self)
    }
}

/// One fault or look-alike, fully decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case")]
pub enum Plan {
    /// Anonymous memory grows until the limit of the cgroup kills something.
    Leak { kib_s: u64 },
    /// The disk gets slower step by step until the floor.
    Throttle {
        start_kib_s: u64,
        step_percent: u64,
        interval_ms: u64,
    },
    /// A big set of files is read in sequence.
    Backup { kib_s: u64, mib: u64 },
    /// Anonymous memory grows, and stops at a harmless level.
    WarmUp { kib_s: u64, mib: u64 },
    /// Only what runs on the host anyway.
    Quiet,
}

impl Plan {
    /// A plan with training rates, for a host with this memory limit on which this much is resident anyway.
    pub fn for_training(class: Class, seed: u64, limit_mib: u64, resident_mib: u64) -> Self {
        let mut seeded = Seeded::new(seed);
        match class {
            Class::Leak => Self::Leak {
                kib_s: seeded.of_either(&TRAIN_LEAK_KIB_S),
            },
            Class::Throttle => loop {
                let plan = Self::Throttle {
                    start_kib_s: seeded.within(&THROTTLE_START_KIB_S),
                    step_percent: seeded.of_either(&TRAIN_THROTTLE_STEP_PERCENT),
                    interval_ms: seeded.of_either(&TRAIN_THROTTLE_INTERVAL_MS),
                };
                let total = plan
                    .throttle_steps()
                    .last()
                    .map_or(0, |step| step.after.as_secs());
                if TRAIN_THROTTLE_TOTAL_S.contains(&total) {
                    break plan;
                }
            },
            Class::Backup => Self::Backup {
                kib_s: seeded.of_either(&TRAIN_BACKUP_KIB_S),
                mib: seeded.within(&(160..=384)),
            },
            Class::WarmUp => {
                let top_mib = limit_mib * seeded.within(&TRAIN_WARM_UP_TOP_PERCENT) / 100;
                Self::WarmUp {
                    kib_s: seeded.of_either(&TRAIN_WARM_UP_KIB_S),
                    mib: top_mib.saturating_sub(resident_mib).max(32),
                }
            }
            Class::Quiet => Self::Quiet,
        }
    }

    /// A plan of the demo: rates that no training run had.
    pub fn for_demo(class: Class, seed: u64) -> Self {
        let mut seeded = Seeded::new(seed);
        match class {
            Class::Leak => Self::Leak {
                kib_s: seeded.within(&DEMO_LEAK_KIB_S),
            },
            Class::Throttle => Self::Throttle {
                start_kib_s: seeded.within(&THROTTLE_START_KIB_S),
                step_percent: seeded.within(&DEMO_THROTTLE_STEP_PERCENT),
                interval_ms: seeded.within(&DEMO_THROTTLE_INTERVAL_MS),
            },
            Class::Backup => Self::Backup {
                kib_s: seeded.within(&DEMO_BACKUP_KIB_S),
                mib: 256,
            },
            Class::WarmUp => Self::WarmUp {
                kib_s: seeded.within(&DEMO_WARM_UP_KIB_S),
                mib: DEMO_WARM_UP_MIB,
            },
            Class::Quiet => Self::Quiet,
        }
    }

    /// The speeds of a throttled disk and when each begins, the last one being the floor; empty for other plans.
    pub fn throttle_steps(&self) -> Vec<Step> {
        let Self::Throttle {
            start_kib_s,
            step_percent,
            interval_ms,
        } = *self
        else {
            return Vec::new();
        };
        let percent = step_percent.clamp(1, 99);
        let mut steps = vec![Step {
            after: Duration::ZERO,
            kib_s: start_kib_s,
        }];
        let mut kib_s = start_kib_s;
        while kib_s > THROTTLE_FLOOR_KIB_S {
            kib_s = (kib_s * percent / 100).max(THROTTLE_FLOOR_KIB_S);
            let after = Duration::from_millis(interval_ms.saturating_mul(steps.len() as u64));
            steps.push(Step { after, kib_s });
        }
        steps
    }

    /// What the fault process is told; none for a plan that needs no process.
    fn arguments(&self, scratch: &Path) -> Option<Vec<String>> {
        let set = scratch.join("backup-set").display().to_string();
        match self {
            Self::Leak { kib_s } => Some(words("grow", &[*kib_s, 0])),
            Self::WarmUp { kib_s, mib } => Some(words("grow", &[*kib_s, *mib])),
            Self::Backup { kib_s, mib } => {
                Some([words("read", &[]), vec![set], words_of(&[*kib_s, *mib])].concat())
            }
            Self::Throttle { .. } | Self::Quiet => None,
        }
    }
}

fn words(mode: &str, numbers: &[u64]) -> Vec<String> {
    std::iter::once(mode.to_owned())
        .chain(words_of(numbers))
        .collect()
}

fn words_of(numbers: &[u64]) -> Vec<String> {
    numbers.iter().map(ToString::to_string).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub after: Duration,
    pub kib_s: u64,
}

/// What runs on a host anyway, harmless by definition: some processor time, files written with fsync, talk over
/// loopback, a resident size, and now and then a burst.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Background {
    pub seed: u64,
    pub cpu_percent: u64,
    pub resident_mib: u64,
    /// How fast the resident part is filled at the start.
    pub load_kib_s: u64,
    pub write_kib_s: u64,
    pub fsync_ms: u64,
    pub requests_s: u64,
    /// Mean seconds between two bursts (a bulk write, a bulk copy, a processor burst); 0 for none.
    pub burst_s: u64,
    /// What the disk sees of a host that takes part in keeping a service.
    #[serde(default)]
    pub part: Part,
    /// Generations a second of that part.
    #[serde(default)]
    pub generations_s: u64,
}

/// A host's part in the replication of a service, as its disk feels it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    #[default]
    None,
    /// A log is appended to all the time, synced once a second, and what is dirty is written back for every
    /// generation.
    Primary,
    /// Every generation is a journal that is synced, pre-images that are synced, and a file that is patched.
    Shadow,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Primary => "primary",
            Self::Shadow => "shadow",
        }
    }

    /// # Errors
    /// A word that names no part.
    pub fn from_word(word: &str) -> Result<Self> {
        [Self::None, Self::Primary, Self::Shadow]
            .into_iter()
            .find(|part| part.word() == word)
            .with_context(|| format!("{word} is no part in a replication"))
    }
}

impl Background {
    pub fn for_training(seed: u64, limit_mib: u64) -> Self {
        let mut seeded = Seeded::new(seed ^ 0xBAC6);
        let resident_percent = *seeded.one_of(&[3, 10, 20, 30, 35, 40, 55]);
        let fsync_ms = *seeded.one_of(&[100, 250, 500, 1_000]);
        Self {
            seed,
            cpu_percent: seeded.within(&(1..=9)),
            resident_mib: limit_mib * resident_percent / 100,
            load_kib_s: *seeded.one_of(&[8_192, 40_960, 163_840, 327_680]),
            write_kib_s: seeded.within(&(300..=4_096)),
            fsync_ms,
            requests_s: *seeded.one_of(&[0, 100, 400, 1_000]),
            burst_s: *seeded.one_of(&[0, 40, 80]),
            part: *seeded.one_of(&[Part::None, Part::Primary, Part::Primary, Part::Shadow]),
            generations_s: seeded.within(&(4..=20)),
        }
    }

    /// The ordinary writer that every host of the demo has.
    pub fn for_demo(seed: u64) -> Self {
        Self {
            seed,
            cpu_percent: 2,
            resident_mib: 24,
            load_kib_s: 40_960,
            write_kib_s: 4_096,
            fsync_ms: 100,
            requests_s: 20,
            burst_s: 0,
            part: Part::None,
            generations_s: 0,
        }
    }

    fn arguments(&self, scratch: &Path) -> Vec<String> {
        let numbers = [
            self.seed,
            self.cpu_percent,
            self.resident_mib,
            self.load_kib_s,
            self.write_kib_s,
            self.fsync_ms,
            self.requests_s,
            self.burst_s,
            self.generations_s,
        ];
        [
            words("work", &[]),
            vec![scratch.display().to_string(), self.part.word().to_owned()],
            words_of(&numbers),
        ]
        .concat()
    }
}

/// What a fault process said, stamped with the boot clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub event: Event,
    pub boot_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Set-up (a file set to read) is done; the fault itself begins now.
    Started,
    /// A step of the throttle.
    Stepped,
    /// The throttle's floor, a warm-up's plateau, the end of a read.
    Reached,
}

/// A fault at work on a host. Dropping it ends it; a throttled disk gets its speed back.
pub struct Running {
    work: Work,
    said: Arc<Mutex<Vec<Said>>>,
}

enum Work {
    /// Ends when its standard input closes.
    Process { child: Child, stdin: Option<ChildStdin> },
    /// Ends when the sender is dropped.
    Thread {
        stop: Option<Sender<()>>,
        thread: Option<JoinHandle<()>>,
    },
}

impl Running {
    /// Starts a fault or look-alike; `program` is `understudy-fault`, which is built beside the other binaries.
    pub fn fault(program: &Path, host: &Arc<Host>, plan: &Plan) -> Result<Self> {
        match plan.arguments(&scratch(host)?) {
            Some(arguments) => Self::process(program, host, &arguments),
            None => Self::steps(host, plan.throttle_steps()),
        }
    }

    /// Starts what runs on a host anyway.
    pub fn background(program: &Path, host: &Arc<Host>, background: &Background) -> Result<Self> {
        Self::process(program, host, &background.arguments(&scratch(host)?))
    }

    fn process(program: &Path, host: &Arc<Host>, arguments: &[String]) -> Result<Self> {
        let mut command = host.command(program)?;
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {} on host {}", program.display(), host.name()))?;
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(stdout) = child.stdout.take() {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let (Ok(event), Ok(mut said)) = (serde_json::from_str(&line), said.lock()) {
                        said.push(event);
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        Ok(Self {
            work: Work::Process { child, stdin },
            said,
        })
    }

    fn steps(host: &Arc<Host>, steps: Vec<Step>) -> Result<Self> {
        let device = host
            .disk()
            .context("a host without a disk has none to throttle")?
            .numbers()
            .to_owned();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (host, log) = (Arc::clone(host), Arc::clone(&said));
        let thread = std::thread::spawn(move || {
            let limit = |bps: Option<u64>| {
                // A host that lost its power meanwhile has no limits either.
                let _ = host.cgroups().set_write_bps(&device, bps);
                let _ = host.cgroups().set_read_bps(&device, bps);
            };
            let started = Instant::now();
            for (n, step) in steps.iter().enumerate() {
                if stopped.recv_timeout(step.after.saturating_sub(started.elapsed()))
                    != Err(RecvTimeoutError::Timeout)
                {
                    return limit(None);
                }
                limit(Some(step.kib_s * 1024));
                let event = match n {
                    0 => Event::Started,
                    n if n + 1 == steps.len() => Event::Reached,
                    _ => Event::Stepped,
                };
                if let Ok(mut log) = log.lock() {
                    log.push(Said {
                        event,
                        boot_ns: boot_ns(),
                    });
                }
            }
            let _ = stopped.recv();
            limit(None);
        });
        Ok(Self {
            work: Work::Thread {
                stop: Some(stop),
                thread: Some(thread),
            },
            said,
        })
    }

    pub fn said(&self) -> Vec<Said> {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// When `event` was first reported, on the boot clock.
    pub fn when(&self, event: Event) -> Option<u64> {
        self.said()
            .iter()
            .find(|said| said.event == event)
            .map(|said| said.boot_ns)
    }

    /// True once the process is gone: a leak that was killed for its memory.
    pub fn ended(&mut self) -> bool {
        match &mut self.work {
            Work::Process { child, .. } => !matches!(child.try_wait(), Ok(None)),
            Work::Thread { thread, .. } => thread.as_ref().is_none_or(JoinHandle::is_finished),
        }
    }
}

/// Where faults and background keep their files on a host.
fn scratch(host: &Host) -> Result<PathBuf> {
    let disk = host.disk().context("faults need a host with a disk")?;
    Ok(disk.mount_point().join("background"))
}

impl Drop for Running {
    fn drop(&mut self) {
        match &mut self.work {
            Work::Process { child, stdin } => {
                drop(stdin.take());
                // A process that hangs in a throttled write answers no closed pipe.
                let ended = wait_for("a fault to end", END_MAX, || child.try_wait().ok().flatten());
                if ended.is_err() {
                    let _ = child.kill();
                }
                let _ = child.wait();
            }
            Work::Thread { stop, thread } => {
                drop(stop.take());
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(a: &Range, b: &Range) -> bool {
        a.start() <= b.end() && b.start() <= a.end()
    }

    #[test]
    fn rates_shown_in_the_demo_were_never_trained_on() {
        for (train, demo) in [
            (&TRAIN_LEAK_KIB_S, &DEMO_LEAK_KIB_S),
            (&TRAIN_THROTTLE_INTERVAL_MS, &DEMO_THROTTLE_INTERVAL_MS),
            (&TRAIN_THROTTLE_STEP_PERCENT, &DEMO_THROTTLE_STEP_PERCENT),
            (&TRAIN_BACKUP_KIB_S, &DEMO_BACKUP_KIB_S),
            (&TRAIN_WARM_UP_KIB_S, &DEMO_WARM_UP_KIB_S),
        ] {
            assert!(
                train.iter().all(|range| !overlap(range, demo)),
                "{train:?} and {demo:?}"
            );
        }
    }

    #[test]
    fn a_plan_depends_on_nothing_but_its_seed() {
        for class in [Class::Leak, Class::Throttle, Class::Backup, Class::WarmUp] {
            assert_eq!(
                Plan::for_training(class, 7, 1024, 100),
                Plan::for_training(class, 7, 1024, 100)
            );
            assert_ne!(Plan::for_training(class, 7, 1024, 100), Plan::for_demo(class, 7));
        }
    }

    #[test]
    fn a_demo_disk_takes_between_forty_seconds_and_two_minutes_to_die() {
        for seed in 0..500 {
            let steps = Plan::for_demo(Class::Throttle, seed).throttle_steps();
            let last = steps.last().expect("a throttle has steps");
            assert_eq!(last.kib_s, THROTTLE_FLOOR_KIB_S);
            assert!(
                (40..=120).contains(&last.after.as_secs()),
                "seed {seed}: {last:?}"
            );
        }
    }

    #[test]
    fn a_disk_only_gets_slower() {
        let steps = Plan::for_training(Class::Throttle, 3, 1024, 100).throttle_steps();
        assert!(
            steps
                .windows(2)
                .all(|pair| pair[1].kib_s < pair[0].kib_s && pair[1].after > pair[0].after)
        );
    }
}
