//! What was measured, what must hold, and how both are shown.

use serde_json::{Value, json};

use super::timeline::Timeline;

const LEAD_S_MIN: f64 = 10.0;
const WRITE_PAUSE_MS_MAX: f64 = 2_000.0;
const PAUSE_WITHOUT_LOAD_MS_MAX: f64 = 400.0;
const LAG_MS_MAX: f64 = 1_000.0;
const OUTAGE_MS_MAX: f64 = 3_000.0;
const LOST_WINDOW_MS_MAX: f64 = 1_000.0;
/// Redis syncs its file once a second, and may put that off by as much while a sync is under way.
const REDIS_OWN_MS_MAX: f64 = 2_000.0;
const PROGRAMS_MIN: u64 = 6;
/// Moves that a series of predicted runs must reach.
pub(super) const MOVED_SHARE_MIN: f64 = 0.9;

/// None is "not measured", which fails whatever must hold of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) seed: u64,
    pub(super) look_alike: Option<String>,
    pub(super) fault: Option<String>,
    pub(super) ebpf_programs: Option<u64>,
    pub(super) ebpf_source: Option<String>,
    pub(super) telemetry_cpu_percent: Option<f64>,
    pub(super) full_bytes: Option<u64>,
    pub(super) lag_ms_p50: Option<f64>,
    pub(super) lag_ms_p99: Option<f64>,
    pub(super) freeze_ms_p99: Option<f64>,
    /// Files that were compared for want of certainty, at most, of any holder.
    pub(super) unknown: Option<u64>,
    /// Every holder had its dirty ranges from the kernel.
    pub(super) tracked: Option<bool>,
    pub(super) false_moves: Option<u64>,
    pub(super) planned: Planned,
    pub(super) crash: Crash,
    pub(super) served_stale: Option<u64>,
    pub(super) stale_reads: Option<u64>,
    pub(super) raft_commits: Option<u64>,
    pub(super) split_brain_instants: Option<usize>,
    pub(super) writes: usize,
    pub(super) writes_per_s: Option<f64>,
    pub(super) reconnects: u64,
    pub(super) seconds: f64,
    /// Why the story ended early.
    pub(super) broken_off: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Planned {
    pub(super) model: Option<String>,
    pub(super) risk: Option<f64>,
    pub(super) lead_s: Option<f64>,
    pub(super) write_pause_ms: Option<f64>,
    pub(super) load_ms: Option<f64>,
    pub(super) final_delta_bytes: Option<u64>,
    pub(super) lost_acked_writes: Option<usize>,
    pub(super) safe_mode: Option<bool>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Crash {
    pub(super) outage_ms: Option<f64>,
    pub(super) lost_acked_writes: Option<usize>,
    pub(super) lost_is_suffix: Option<bool>,
    pub(super) lost_window_ms: Option<f64>,
    pub(super) redis_own_ms: Option<f64>,
}

/// One thing that must hold.
pub(super) struct Must {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) rule: String,
    pub(super) met: bool,
}

fn at_most(key: &'static str, value: Option<f64>, max: f64) -> Must {
    let met = value.is_some_and(|value| value <= max);
    Must {
        key,
        value: show(value),
        rule: format!("<= {max}"),
        met,
    }
}

fn at_least(key: &'static str, value: Option<f64>, min: f64) -> Must {
    let met = value.is_some_and(|value| value >= min);
    Must {
        key,
        value: show(value),
        rule: format!(">= {min}"),
        met,
    }
}

fn is<T: PartialEq + std::fmt::Display>(key: &'static str, value: Option<T>, wanted: T) -> Must {
    let shown = value.as_ref().map_or("not measured".to_owned(), T::to_string);
    Must {
        key,
        rule: wanted.to_string(),
        met: value == Some(wanted),
        value: shown,
    }
}

fn show(value: Option<f64>) -> String {
    value.map_or("not measured".to_owned(), |value| format!("{:.1}", value))
}

const WRITES_PER_S_MIN: f64 = 1_000.0;
const SECONDS_MAX: f64 = 480.0;

impl Measured {
    pub(super) fn musts(&self) -> Vec<Must> {
        let (planned, crash) = (&self.planned, &self.crash);
        let beyond_load = planned
            .write_pause_ms
            .zip(planned.load_ms)
            .map(|(pause, load)| pause - load);
        vec![
            is("ebpf.source", self.ebpf_source.clone(), "tp_btf".to_owned()),
            at_least(
                "ebpf.programs",
                self.ebpf_programs.map(|n| n as f64),
                PROGRAMS_MIN as f64,
            ),
            is("false_moves", self.false_moves, 0),
            is("planned.lost_acked_writes", planned.lost_acked_writes, 0),
            at_least("planned.lead_s", planned.lead_s, LEAD_S_MIN),
            at_most(
                "planned.write_pause_ms",
                planned.write_pause_ms,
                WRITE_PAUSE_MS_MAX,
            ),
            at_most(
                "planned pause - load (ms)",
                beyond_load,
                PAUSE_WITHOUT_LOAD_MS_MAX,
            ),
            is("planned: A ends in safe mode", planned.safe_mode, true),
            at_most("sync.lag_ms_p99", self.lag_ms_p99, LAG_MS_MAX),
            at_most("crash.outage_ms", crash.outage_ms, OUTAGE_MS_MAX),
            at_most("crash.lost_window_ms", crash.lost_window_ms, LOST_WINDOW_MS_MAX),
            at_most("crash.redis_own_ms", crash.redis_own_ms, REDIS_OWN_MS_MAX),
            is("crash.lost_is_suffix", crash.lost_is_suffix, true),
            is("sync.tracked", self.tracked, true),
            is("rejoin.served_stale", self.served_stale, 0),
            is("split_brain_instants", self.split_brain_instants, 0),
            is("planned.model", planned.model.clone(), "lstm-onnx".to_owned()),
            at_least("client.writes_per_s", self.writes_per_s, WRITES_PER_S_MIN),
            at_most(
                "seconds",
                Some(self.seconds).filter(|long| *long > 0.0),
                SECONDS_MAX,
            ),
        ]
    }

    pub(super) fn json(&self) -> Value {
        let (planned, crash) = (&self.planned, &self.crash);
        let failed: Vec<&str> = self
            .musts()
            .iter()
            .filter(|must| !must.met)
            .map(|must| must.key)
            .collect();
        json!({
            "seed": self.seed,
            "look_alike": self.look_alike,
            "fault": self.fault,
            "ebpf": { "programs": self.ebpf_programs, "source": self.ebpf_source },
            "telemetry": { "cpu_percent": self.telemetry_cpu_percent },
            "sync": {
                "full_bytes": self.full_bytes,
                "lag_ms_p50": self.lag_ms_p50,
                "lag_ms_p99": self.lag_ms_p99,
                "freeze_ms_p99": self.freeze_ms_p99,
                "unknown": self.unknown,
                "tracked": self.tracked,
            },
            "false_moves": self.false_moves,
            "planned": {
                "model": planned.model,
                "risk": planned.risk,
                "lead_s": planned.lead_s,
                "write_pause_ms": planned.write_pause_ms,
                "load_ms": planned.load_ms,
                "final_delta_bytes": planned.final_delta_bytes,
                "lost_acked_writes": planned.lost_acked_writes,
                "safe_mode": planned.safe_mode,
            },
            "crash": {
                "outage_ms": crash.outage_ms,
                "lost_acked_writes": crash.lost_acked_writes,
                "lost_is_suffix": crash.lost_is_suffix,
                "lost_window_ms": crash.lost_window_ms,
                "redis_own_ms": crash.redis_own_ms,
            },
            "rejoin": { "served_stale": self.served_stale, "reads": self.stale_reads },
            "raft": { "commits": self.raft_commits },
            "split_brain_instants": self.split_brain_instants,
            "client": {
                "writes": self.writes,
                "writes_per_s": self.writes_per_s,
                "reconnects": self.reconnects,
            },
            "seconds": self.seconds,
            "broken_off": self.broken_off,
            "failed": failed,
        })
    }

    pub(super) fn table(&self, timeline: &mut Timeline) {
        timeline.chapter("What must hold");
        for must in self.musts() {
            let word = timeline.verdict(must.met, if must.met { "ok  " } else { "FAIL" });
            timeline.plain(&format!(
                "  {word}  {:<30} {:>14}   {}",
                must.key, must.value, must.rule
            ));
        }
        timeline.chapter("Beside that");
        for (key, value) in self.beside() {
            timeline.plain(&format!("        {key:<30} {value:>14}"));
        }
    }

    fn beside(&self) -> Vec<(&'static str, String)> {
        let whole = |value: Option<u64>| value.map_or("not measured".to_owned(), |n| n.to_string());
        let lost = self.crash.lost_acked_writes.map(|n| n as u64);
        vec![
            (
                "planned.model",
                self.planned.model.clone().unwrap_or("none".to_owned()),
            ),
            (
                "planned.risk",
                self.planned
                    .risk
                    .map_or("-".to_owned(), |risk| format!("{risk:.3}")),
            ),
            ("planned.load_ms", show(self.planned.load_ms)),
            ("planned.final_delta_bytes", whole(self.planned.final_delta_bytes)),
            ("crash.lost_acked_writes", whole(lost)),
            ("sync.full_bytes", whole(self.full_bytes)),
            ("sync.lag_ms_p50", show(self.lag_ms_p50)),
            ("sync.freeze_ms_p99", show(self.freeze_ms_p99)),
            ("sync.unknown", whole(self.unknown)),
            ("telemetry.cpu_percent", show(self.telemetry_cpu_percent)),
            ("raft.commits", whole(self.raft_commits)),
            ("client.writes", self.writes.to_string()),
            ("client.writes_per_s", show(self.writes_per_s)),
            ("rejoin: answers looked at", whole(self.stale_reads)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Measured {
        Measured {
            ebpf_programs: Some(6),
            ebpf_source: Some("tp_btf".to_owned()),
            false_moves: Some(0),
            lag_ms_p99: Some(1_000.0),
            tracked: Some(true),
            planned: Planned {
                lead_s: Some(10.0),
                write_pause_ms: Some(1_000.0),
                load_ms: Some(700.0),
                lost_acked_writes: Some(0),
                safe_mode: Some(true),
                model: Some("lstm-onnx".to_owned()),
                ..Planned::default()
            },
            crash: Crash {
                outage_ms: Some(2_999.0),
                lost_is_suffix: Some(true),
                lost_window_ms: Some(80.0),
                redis_own_ms: Some(0.0),
                ..Crash::default()
            },
            served_stale: Some(0),
            split_brain_instants: Some(0),
            writes_per_s: Some(1_250.0),
            seconds: 240.0,
            ..Measured::default()
        }
    }

    #[test]
    fn a_good_run_fails_nothing() {
        let failed: Vec<_> = good().musts().into_iter().filter(|must| !must.met).collect();
        assert!(
            failed.is_empty(),
            "{:?}",
            failed.iter().map(|must| must.key).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_was_not_measured_fails() {
        assert!(Measured::default().musts().iter().all(|must| !must.met));
    }

    #[test]
    fn the_pause_counts_without_redis_reading_its_data() {
        let mut slow = good();
        slow.planned.load_ms = Some(500.0);
        let failed = slow.json()["failed"].clone();
        assert_eq!(failed, json!(["planned pause - load (ms)"]));
    }
}
