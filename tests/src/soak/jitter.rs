//! `soak jitter`: stalls, loss and stolen processor time that must not move a service.
//!
//! Invariants: prediction is off; what is said to be in force was measured from outside: stopped processes in
//! `/proc`, dropped packets in nftables' counters, processor time in the neighbours' cgroup.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::stall::{STALL, Stalls};
use super::theft::Neighbours;
use crate::exercise::fault::Way;
use crate::exercise::network::{self, Packets};
use crate::exercise::stage::{Machine, Stage};
use crate::fault::Seeded;
use crate::{Cgroups, boot_ns, wait_for};

const LOSS_PERCENT: u64 = 5;
const LOOK_EVERY: Duration = Duration::from_secs(10);
const EVENTS_MAX: Duration = Duration::from_secs(60);
/// What must have been measured, or nothing was proved.
const THEFT_PERCENT_MIN: f64 = 75.0;
const LOSS_PERCENT_MIN: f64 = 4.0;
const STALLS_PER_MINUTE_MIN: f64 = 60.0;
/// The one who stops and continues others must not be stalled by the neighbours himself.
const OWN_NICE: i32 = -20;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Jitter {
    pub soak: &'static str,
    pub seed: u64,
    pub minutes: f64,
    pub false_handovers: u64,
    /// What the coordinators did about them, if any.
    pub events: Vec<String>,
    pub stalls: u64,
    /// Those in which the kernel said that the process was stopped.
    pub stalls_confirmed: u64,
    pub stall_ms_median: f64,
    pub stall_ms_max: f64,
    pub packets_seen: u64,
    pub packets_dropped: u64,
    pub loss_percent: f64,
    /// Share of all processor time that the neighbours took.
    pub theft_percent: f64,
    pub cluster_cpu_percent: f64,
    pub appends: u64,
    /// Longest time without an answer to the client.
    pub outage_ms_max: f64,
    /// Why the run proves nothing, if so.
    pub not_in_force: Vec<String>,
}

impl Jitter {
    pub fn held(&self) -> bool {
        self.false_handovers == 0 && self.not_in_force.is_empty()
    }
}

/// Runs for this long; `tell` gets a line at a time.
///
/// # Errors
/// When the soak itself failed.
pub fn run(seed: u64, long: Duration, tell: &mut dyn FnMut(&str)) -> Result<Jitter> {
    let stage = Stage::open("jitter")?;
    tell("the cluster stands");
    let machines: Vec<Machine> = stage.machines();
    for machine in &machines {
        // At the receiver, so that each packet is in danger once.
        network::lose(&stage.cluster.bed, stage.host(*machine), LOSS_PERCENT, Way::In)?;
    }
    let neighbours = Neighbours::start(&stage.cluster.bed.cgroups())?;
    // SAFETY: no memory is involved.
    let raised = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, OWN_NICE) };
    ensure!(raised == 0, "setpriority: {}", std::io::Error::last_os_error());
    let before = Before::note(&stage, &neighbours)?;
    let stalls = Stalls::default();
    let stop = AtomicBool::new(false);
    let looked = thread::scope(|scope| {
        for (n, machine) in (1..).zip(&machines) {
            let pid = stage.pid(*machine);
            let (stalls, stop, seeded) = (&stalls, &stop, Seeded::new(seed ^ n));
            scope.spawn(move || pid.map(|pid| stalls.stall(pid, seeded, stop)));
        }
        let looked = look_on(&stage, long, tell);
        stop.store(true, Ordering::SeqCst);
        looked
    });
    looked?;
    let mut jitter = before.measure(&stage, &neighbours)?;
    jitter.seed = seed;
    drop(neighbours);
    let packets = machines.iter().try_fold(Packets::default(), |sum, machine| {
        network::heal(&stage.cluster.bed, stage.host(*machine)).map(|one| sum + one)
    })?;
    jitter.took(&stalls, packets);
    Ok(jitter)
}

fn look_on(stage: &Stage, long: Duration, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < long {
        sleep(LOOK_EVERY.min(long.saturating_sub(began.elapsed())));
        let grants = stage.watch.events().grants.len();
        tell(&format!(
            "{:>5.0} s  {} appends, e{grants}",
            began.elapsed().as_secs_f64(),
            stage.traffic.appends()
        ));
    }
    Ok(())
}

/// How things stood when the faults were in force.
struct Before {
    at: Instant,
    at_ns: u64,
    grants: usize,
    texts: usize,
    appends: u64,
    stolen_ns: u64,
    used_ns: u64,
    cluster: Cgroups,
}

impl Before {
    fn note(stage: &Stage, neighbours: &Neighbours) -> Result<Self> {
        let at_ns = boot_ns();
        wait_for("the events", EVENTS_MAX, || {
            stage.watch.knows_until(at_ns).then_some(())
        })?;
        let events = stage.watch.events();
        let cluster = stage.cluster.bed.cgroups();
        Ok(Self {
            at: Instant::now(),
            at_ns: boot_ns(),
            grants: events.grants.len(),
            texts: events.texts.len(),
            appends: stage.traffic.appends(),
            stolen_ns: neighbours.usage_ns()?,
            used_ns: cluster.cpu_usage_ns()?,
            cluster,
        })
    }

    fn measure(&self, stage: &Stage, neighbours: &Neighbours) -> Result<Jitter> {
        let took = self.at.elapsed();
        let capacity_ns = took.as_nanos() as f64 * available_parallelism()?.get() as f64;
        let percent = |ns: u64| ns as f64 / capacity_ns * 100.0;
        let theft_percent = percent(neighbours.usage_ns()? - self.stolen_ns);
        let cluster_cpu_percent = percent(self.cluster.cpu_usage_ns()? - self.used_ns);
        let until_ns = boot_ns();
        wait_for("the events", EVENTS_MAX, || {
            stage.watch.knows_until(until_ns).then_some(())
        })?;
        let events = stage.watch.events();
        Ok(Jitter {
            soak: "jitter",
            minutes: took.as_secs_f64() / 60.0,
            false_handovers: (events.grants.len() - self.grants) as u64,
            events: events.texts[self.texts..].to_vec(),
            appends: stage.traffic.appends() - self.appends,
            outage_ms_max: stage.traffic.longest_gap_ns(self.at_ns) as f64 / 1e6,
            theft_percent,
            cluster_cpu_percent,
            ..Jitter::default()
        })
    }
}

impl Jitter {
    fn took(&mut self, stalls: &Stalls, packets: Packets) {
        let mut lengths = stalls
            .lengths_ns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        lengths.sort_unstable();
        let ms = |ns: Option<&u64>| ns.map_or(0.0, |ns| *ns as f64 / 1e6);
        self.stalls = lengths.len() as u64;
        self.stall_ms_median = ms(lengths.get(lengths.len() / 2));
        self.stall_ms_max = ms(lengths.last());
        self.stalls_confirmed = *stalls.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        self.packets_seen = packets.seen;
        self.packets_dropped = packets.dropped;
        self.loss_percent = packets.dropped as f64 / packets.seen.max(1) as f64 * 100.0;
        self.judge();
    }

    fn judge(&mut self) {
        let mut lack = |holds: bool, what: String| {
            if !holds {
                self.not_in_force.push(what);
            }
        };
        let (theft, loss) = (self.theft_percent, self.loss_percent);
        lack(
            theft >= THEFT_PERCENT_MIN,
            format!("only {theft:.0} % of the processors were stolen"),
        );
        lack(
            loss >= LOSS_PERCENT_MIN,
            format!("only {loss:.1} % of the packets were lost"),
        );
        let rate = self.stalls as f64 / self.minutes;
        lack(
            rate >= STALLS_PER_MINUTE_MIN && self.stalls_confirmed * 20 >= self.stalls * 19,
            format!(
                "{rate:.0} stalls a minute, {} of {} confirmed",
                self.stalls_confirmed, self.stalls
            ),
        );
        lack(
            self.stall_ms_median >= STALL.as_millis() as f64,
            format!("stalls of {:.0} ms", self.stall_ms_median),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_its_faults_proves_nothing() {
        let mut idle = Jitter {
            minutes: 1.0,
            ..Jitter::default()
        };
        idle.judge();
        assert_eq!(idle.not_in_force.len(), 4);
        assert!(!idle.held());
        let mut real = Jitter {
            minutes: 1.0,
            theft_percent: 85.0,
            loss_percent: 5.0,
            stalls: 200,
            stalls_confirmed: 199,
            stall_ms_median: 200.4,
            ..Jitter::default()
        };
        real.judge();
        assert!(real.held(), "{:?}", real.not_in_force);
    }
}
