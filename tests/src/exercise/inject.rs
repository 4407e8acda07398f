//! Doing faults, and ending them.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::fault::{Fault, From, Step, Way, Who};
use super::network;
use super::stage::{Machine, SERVICE, Stage};
use crate::fault::{Range, Seeded};

const SLOW_KIB_S: [u64; 3] = [64, 256, 1_024];
const LOSS_PERCENT: Range = 5..=40;
const DELAY_KBIT_S: Range = 64..=512;
const CLOCK_STEP_S: Range = 2..=20_000;
/// A step of a move that does not come within this time is not waited for.
const STEP_MAX: Duration = Duration::from_secs(10);
const STEP_POLL: Duration = Duration::from_millis(1);
const FILLER: &str = "filler";

/// A fault that has begun.
#[derive(Debug)]
pub struct Begun {
    pub fault: Fault,
    pub machine: Option<Machine>,
    /// For people: what was drawn.
    pub detail: String,
    stopped: Vec<i32>,
}

impl Begun {
    fn on(fault: Fault, machine: Machine) -> Self {
        Self {
            fault,
            machine: Some(machine),
            detail: String::new(),
            stopped: Vec::new(),
        }
    }
}

/// What a fault was seen to do, over a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct InForce {
    pub packets_dropped: u64,
    pub packets_delayed: u64,
    pub disk_filled_mib: u64,
    /// Moves of which the step was not seen, so that no leader was killed.
    pub steps_missed: u64,
}

impl Stage {
    /// Begins a fault on a machine other than `but`.
    pub fn begin(
        &mut self,
        fault: Fault,
        but: Option<Machine>,
        seeded: &mut Seeded,
        in_force: &mut InForce,
    ) -> Result<Begun> {
        let who = match fault {
            Fault::Kill(who)
            | Fault::Stop(who)
            | Fault::PowerCut(who)
            | Fault::Partition { who, .. }
            | Fault::Delay(who)
            | Fault::Loss(who)
            | Fault::DiskFull(who)
            | Fault::SlowDisk(who)
            | Fault::ClockStep(who) => who,
            Fault::KillWorkload | Fault::StopWorkload => Who::Holder,
            Fault::Move | Fault::LeaderKilledIn(_) => return self.move_service(fault, in_force),
        };
        let machine = self.find(who, but, seeded)?;
        let mut begun = Begun::on(fault, machine);
        match fault {
            Fault::Kill(_) => self.kill(machine),
            Fault::Stop(_) => self.signal(machine, libc::SIGSTOP)?,
            Fault::KillWorkload => drop(self.signal_workload(machine, libc::SIGKILL)),
            Fault::StopWorkload => begun.stopped = self.signal_workload(machine, libc::SIGSTOP),
            Fault::PowerCut(_) => self.cut_power(machine)?,
            Fault::Partition { from, way, .. } => self.partition(machine, from, way)?,
            Fault::Delay(_) => {
                let kbit_s = seeded.within(&DELAY_KBIT_S);
                network::delay(self.host(machine), kbit_s)?;
                begun.detail = format!("{kbit_s} kbit/s");
            }
            Fault::Loss(_) => {
                let percent = seeded.within(&LOSS_PERCENT);
                network::lose(&self.cluster.bed, self.host(machine), percent, Way::Both)?;
                begun.detail = format!("{percent} %");
            }
            Fault::DiskFull(_) => {
                let mib = self.fill_disk(machine)? >> 20;
                in_force.disk_filled_mib += mib;
                begun.detail = format!("{mib} MiB filled");
            }
            Fault::SlowDisk(_) => {
                let kib_s = *seeded.one_of(&SLOW_KIB_S);
                self.slow_disk(machine, Some(kib_s << 10))?;
                begun.detail = format!("{kib_s} KiB/s");
            }
            Fault::ClockStep(_) => {
                let step = seeded.within(&CLOCK_STEP_S) as i64;
                let step = if seeded.draw().is_multiple_of(2) {
                    step
                } else {
                    -step
                };
                self.set_clock(machine, step)?;
                begun.detail = format!("{step:+} s");
            }
            Fault::Move | Fault::LeaderKilledIn(_) => {}
        }
        Ok(begun)
    }

    /// Ends a fault. Programs that ended by it are started again by [`Stage::revive`].
    pub fn end(&mut self, begun: Begun, in_force: &mut InForce) -> Result<()> {
        let Some(machine) = begun.machine else {
            return Ok(());
        };
        match begun.fault {
            Fault::Stop(_) => self.signal(machine, libc::SIGCONT)?,
            Fault::StopWorkload => {
                for pid in begun.stopped {
                    // SAFETY: no memory is involved; a stopped process keeps its number until it is killed, and a
                    // SIGCONT to one that runs does nothing.
                    unsafe { libc::kill(pid, libc::SIGCONT) };
                }
            }
            Fault::PowerCut(_) => self.host(machine).restore_power()?,
            Fault::Partition {
                from: From::Everybody,
                ..
            } => self.host(machine).set_link(true)?,
            Fault::Partition { .. } | Fault::Loss(_) => {
                in_force.packets_dropped += network::heal(&self.cluster.bed, self.host(machine))?.dropped;
            }
            Fault::Delay(_) => in_force.packets_delayed += network::hurry(self.host(machine))?,
            Fault::DiskFull(_) => fs::remove_file(self.filler(machine)?)?,
            Fault::SlowDisk(_) => self.slow_disk(machine, None)?,
            Fault::ClockStep(_) => self.set_clock(machine, 0)?,
            Fault::Kill(_) | Fault::KillWorkload | Fault::Move | Fault::LeaderKilledIn(_) => {}
        }
        Ok(())
    }

    /// Starts every program that does not run; returns the logs of those that had ended by themselves.
    pub fn revive(&mut self) -> Result<Vec<String>> {
        let ended = self.cluster.ended();
        for machine in self.machines() {
            if !self.is_started(machine) {
                self.start(machine)?;
            }
        }
        let name = |path: &std::path::PathBuf| {
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        Ok(ended.iter().map(name).collect())
    }

    fn signal_workload(&self, machine: Machine, signal: i32) -> Vec<i32> {
        let Machine::Host(n) = machine else {
            return Vec::new();
        };
        let pids = self.workload(n);
        for pid in &pids {
            // SAFETY: no memory is involved; the cgroup named the process an instant ago.
            unsafe { libc::kill(*pid, signal) };
        }
        pids
    }

    fn cut_power(&mut self, machine: Machine) -> Result<()> {
        match machine {
            Machine::Host(n) => self.cluster.cut_host_power(n),
            Machine::Coordinator(n) => self.cluster.cut_coordinator_power(n),
        }
    }

    fn partition(&self, machine: Machine, from: From, way: Way) -> Result<()> {
        let peers = match from {
            From::Everybody => return self.host(machine).set_link(false),
            From::Coordinators => &self.cluster.coordinator_hosts,
            From::Hosts => &self.cluster.hosts,
        };
        let addresses = peers.iter().map(|host| host.address());
        network::cut(
            &self.cluster.bed,
            self.host(machine),
            &addresses.collect::<Vec<_>>(),
            way,
        )
    }

    fn filler(&self, machine: Machine) -> Result<std::path::PathBuf> {
        let host = self.host(machine);
        let disk = host.disk().context("every machine has a disk")?;
        Ok(host.path(&disk.mount_point().join(FILLER)))
    }

    /// Bytes that were left, and are no more.
    fn fill_disk(&self, machine: Machine) -> Result<u64> {
        let file = File::create(self.filler(machine)?)?;
        let (mut filled, mut piece) = (0_u64, 64 << 20);
        while piece >= 4_096 {
            // SAFETY: no memory is involved; the descriptor is open.
            let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, filled as i64, piece) };
            if done == 0 {
                filled += piece as u64;
            } else {
                piece /= 2;
            }
        }
        Ok(filled)
    }

    fn slow_disk(&self, machine: Machine, bps: Option<u64>) -> Result<()> {
        let host = self.host(machine);
        let disk = host.disk().context("every machine has a disk")?;
        host.cgroups().set_write_bps(disk.numbers(), bps)
    }

    /// A planned move to whichever host is best, and the end of the leader in one of its steps.
    fn move_service(&mut self, fault: Fault, in_force: &mut InForce) -> Result<Begun> {
        let leader = Machine::Coordinator(self.leader()?);
        let log = self
            .cluster
            .bed
            .logs()
            .join(format!("{}-coordinator.log", self.host(leader).name()));
        let from = fs::metadata(&log)?.len();
        let mut begun = Begun {
            fault,
            machine: None,
            detail: String::new(),
            stopped: Vec::new(),
        };
        if let Err(why) = self.cluster.operator().ask(&["handover", SERVICE]) {
            in_force.steps_missed += 1;
            begun.detail = format!("refused: {why:#}");
            return Ok(begun);
        }
        let Fault::LeaderKilledIn(step) = fault else {
            return Ok(begun);
        };
        if comes(&log, from, step)? {
            self.kill(leader);
            begun.machine = Some(leader);
        } else {
            in_force.steps_missed += 1;
            begun.detail = "the step did not come".to_owned();
        }
        Ok(begun)
    }
}

/// Waits until the leader proposes this step.
fn comes(log: &std::path::Path, from: u64, step: Step) -> Result<bool> {
    let change = match step {
        // The operator was told that it is committed.
        Step::Begun => return Ok(true),
        Step::HolderFenced => "HolderFenced",
        Step::FinalCut => "FinalCut",
        Step::Grant => "Grant",
        Step::Served => "Served",
    };
    let wanted = format!("proposes change={change} ");
    let until = Instant::now() + STEP_MAX;
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = String::new();
    while Instant::now() < until {
        file.read_to_string(&mut text)?;
        if text.contains(&wanted) {
            return Ok(true);
        }
        std::thread::sleep(STEP_POLL);
    }
    Ok(false)
}
