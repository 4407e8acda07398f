//! `cargo xtask bench fleet`: how many hosts one core of a leader takes, and what each costs in memory.
//!
//! The leader has core 0 to itself, the hosts and everything else have core 1. Every host is a QUIC connection with a
//! certificate of its own that sends a full beacon each second; the committed model scores all of them each second.
//! Hosts that hold leases renew and report on top of that: this is about the fleet at rest.

mod stage;

use std::time::Duration;

use anyhow::Result;

use super::Wanted;
use super::report::{Better, Judged, Kind, Row};
use crate::repo;
use crate::shell::say;
use stage::{Measured, Stage};

const HOSTS: Kind = Kind {
    id: "fleet_hosts_per_core",
    unit: "hosts",
    better: Better::Higher,
    judged: Judged::Ours,
    must: Some(5_000.0),
    goal: Some(20_000.0),
};
const BYTES: Kind = Kind {
    id: "bytes_per_host",
    unit: "B",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(65_536.0),
    goal: Some(40_000.0),
};

pub(super) const IDS: [&str; 2] = [HOSTS.id, BYTES.id];

const TICK_US_MAX: u64 = 500_000;
/// A generator that sent fewer beacons than this share measured itself.
const SENT_SHARE_MIN: f64 = 0.99;

/// How large, and for how long.
struct Scale {
    steps: &'static [usize],
    /// Hosts with a socket of their own.
    sockets: usize,
    /// At least the minute that a tick's cost is remembered for.
    seconds: u64,
    memory_hosts: usize,
    memory_every_ms: u64,
    memory_runs: usize,
}

const FULL: Scale = Scale {
    steps: &[
        3_000, 5_000, 7_500, 10_000, 12_500, 15_000, 17_500, 20_000, 22_500, 25_000, 27_500, 30_000,
    ],
    sockets: 3_000,
    seconds: 62,
    memory_hosts: 1_000,
    memory_every_ms: 100,
    memory_runs: 3,
};
const QUICK: Scale = Scale {
    steps: &[20, 40],
    sockets: 30,
    seconds: 2,
    memory_hosts: 100,
    memory_every_ms: 10,
    memory_runs: 1,
};

pub(super) fn measure(wanted: &Wanted) -> Result<Vec<Row>> {
    let scale = if wanted.quick { &QUICK } else { &FULL };
    stage::allow_sockets(scale.sockets)?;
    let mut rows = Vec::new();
    if wanted.row(HOSTS.id) {
        rows.push(hosts(wanted, scale).unwrap_or_else(|why| Row::missing(HOSTS, format!("{why:#}"))));
    }
    if wanted.row(BYTES.id) {
        rows.push(bytes(wanted, scale).unwrap_or_else(|why| Row::missing(BYTES, format!("{why:#}"))));
    }
    Ok(rows)
}

/// Steps up until something fails; the last number of hosts with which nothing did.
fn hosts(wanted: &Wanted, scale: &Scale) -> Result<Row> {
    let mut stage = Stage::open(wanted, "fleet", scale.sockets, 1_000, true)?;
    let mut held = None;
    let mut why = format!("no step beyond {:?} was tried", scale.steps.last());
    for step in scale.steps {
        let measured = stage
            .link(*step)
            .and_then(|()| stage.start())
            .and_then(|()| stage.measure(scale.seconds));
        let failed = match measured {
            Ok(measured) => {
                say("fleet", measured.line());
                fault(&measured)
            }
            Err(why) => Some(format!("{why:#}")),
        };
        if let Some(failed) = failed {
            why = format!("at {step} hosts: {failed}");
            break;
        }
        held = Some(*step as f64);
    }
    let row = Row::measured(HOSTS, held.into_iter().collect());
    Ok(row.because(why))
}

/// What a step must not show.
fn fault(measured: &Measured) -> Option<String> {
    let lost = measured.sent_ever.abs_diff(measured.received());
    if lost > 0 || measured.dropped() > 0 {
        return Some(format!(
            "of {} beacons {lost} were not received and {} were dropped",
            measured.sent_ever,
            measured.dropped()
        ));
    }
    let due = measured.hosts as f64 * measured.seconds;
    if (measured.sent as f64) < due * SENT_SHARE_MIN {
        return Some(format!(
            "the hosts' own core sent {} beacons of {due:.0}",
            measured.sent
        ));
    }
    let Some(tick) = measured.tick_us_p99() else {
        return Some("the coordinator scored nothing".to_owned());
    };
    (tick > TICK_US_MAX).then(|| format!("a tick's work took {:.0} ms (p99)", tick as f64 / 1e3))
}

/// What beacons cost a coordinator that predicts more than one that does not: hosts send to both alike, so
/// what connections take is in both, and the model is there before the first host is. Only the one that predicts counts
/// what it received: less sent to the other makes the figure larger.
fn bytes(wanted: &Wanted, scale: &Scale) -> Result<Row> {
    let mut figures = Vec::new();
    for _ in 0..scale.memory_runs {
        let [with, without] = [true, false].map(|predicts| grown(wanted, scale, predicts));
        let (with, without) = (with?, without?);
        let hosts = scale.memory_hosts as f64;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        say(
            "memory",
            format!(
                "{hosts} hosts take {:.1} MiB, and {:.1} MiB where nothing is predicted",
                mib(with),
                mib(without)
            ),
        );
        figures.push((with - without) / hosts);
    }
    Ok(Row::measured(BYTES, figures))
}

/// Bytes that a coordinator's resident memory grew by from its start until a window of every host was full.
fn grown(wanted: &Wanted, scale: &Scale, predicts: bool) -> Result<f64> {
    let mut stage = Stage::open(wanted, "memory", scale.sockets, scale.memory_every_ms, predicts)?;
    stage.link(1)?;
    let alone = stage.resident_bytes()?;
    stage.link(scale.memory_hosts)?;
    stage.start()?;
    let full_s = (stage::WINDOW_TICKS * scale.memory_every_ms).div_ceil(1_000) + 2;
    if predicts {
        let measured = stage.measure(full_s)?;
        let hosts = scale.memory_hosts as f64;
        anyhow::ensure!(
            measured.received() as f64 >= hosts * stage::WINDOW_TICKS as f64,
            "the windows are not full: {} beacons of {hosts} hosts",
            measured.received()
        );
    } else {
        std::thread::sleep(Duration::from_secs(full_s));
    }
    Ok(stage.resident_bytes()? as f64 - alone as f64)
}

/// ONNX Runtime, where `cargo xtask setup` puts it.
pub(super) fn runtime() -> std::path::PathBuf {
    repo::tools().join("onnxruntime/libonnxruntime.so")
}
