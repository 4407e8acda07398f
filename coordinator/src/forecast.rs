//! The thread that runs the model: beacons in, scores out, once a tick, beside the event loop.
//!
//! Invariants: inference never holds up raft or leases. Every coordinator runs it, so that a new
//! leader predicts at once; what is proposed is the loop's affair. Without a model, or after an error
//! of it, there are no scores and the status says why.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use understudy_common::beacon::{Beacon, TICK_MS};
use understudy_common::id::HostId;
use understudy_common::units::BasisPoints;

use crate::config;
use crate::coordinator::Event;
use crate::predict::{PredictError, Predictor, Score};
use crate::window::Window;

/// Beacons that wait for the thread; more are dropped.
const BEACONS_MAX: usize = 8_192;
const TICK: Duration = Duration::from_millis(TICK_MS);

/// What there is to say about prediction, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Prediction {
    /// `lstm-onnx` or `off`.
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_bp: Option<BasisPoints>,
}

impl Prediction {
    fn on(threshold: BasisPoints) -> Self {
        Self {
            state: "lstm-onnx",
            why: None,
            threshold_bp: Some(threshold),
        }
    }

    fn off(why: impl Into<String>) -> Self {
        Self {
            state: "off",
            why: Some(why.into()),
            threshold_bp: None,
        }
    }
}

/// The scores of one tick, or why there are none.
pub type Tick = Result<Vec<(HostId, BasisPoints)>, String>;

/// Loads the model that the configuration names, if it names one. Never an error: services are then
/// moved only after their host is gone, and the status says so.
pub fn load(config: Option<&config::Prediction>) -> (Option<Predictor>, Prediction) {
    let Some(config) = config else {
        return (
            None,
            Prediction::off("no [prediction] in the coordinator's configuration"),
        );
    };
    match Predictor::load(&config.model, &config.card, config.onnxruntime.as_deref()) {
        Ok(predictor) => {
            let threshold = predictor.card().threshold_bp();
            tracing::info!(model = %config.model.display(), ?threshold, "predicts");
            (Some(predictor), Prediction::on(threshold))
        }
        Err(error) => {
            tracing::error!(%error, "no prediction: services move only after their host is gone");
            (None, Prediction::off(error.to_string()))
        }
    }
}

/// Follows the outcome of a tick.
pub fn follow(prediction: &mut Prediction, threshold: Option<BasisPoints>, tick: &Tick) {
    let next = match (tick, threshold) {
        (Ok(_), Some(threshold)) => Prediction::on(threshold),
        (Ok(_), None) => return,
        (Err(why), _) => Prediction::off(why.as_str()),
    };
    if *prediction != next {
        tracing::warn!(state = next.state, why = next.why, "prediction changed");
        *prediction = next;
    }
}

/// Starts the thread. It ends when all senders of beacons are gone.
///
/// # Errors
/// When the system gives no thread.
pub fn start(predictor: Predictor, events: mpsc::Sender<Event>) -> std::io::Result<SyncSender<Beacon>> {
    let (sender, beacons) = sync_channel(BEACONS_MAX);
    let mut forecaster = Forecaster {
        predictor,
        window: Window::default(),
        stepped: BTreeMap::new(),
    };
    std::thread::Builder::new()
        .name("forecast".to_owned())
        .spawn(move || forecaster.run(&beacons, &events))?;
    Ok(sender)
}

struct Forecaster {
    predictor: Predictor,
    window: Window,
    /// The last tick of each host that the model has seen.
    stepped: BTreeMap<HostId, u64>,
}

impl Forecaster {
    fn run(&mut self, beacons: &Receiver<Beacon>, events: &mpsc::Sender<Event>) {
        let mut next = Instant::now() + TICK;
        loop {
            match beacons.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(beacon) => {
                    if let Err(full) = self.window.push(beacon) {
                        tracing::warn!("{full}");
                    }
                    if Instant::now() < next {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let tick = self.tick().map_err(|error| error.to_string());
            if events.blocking_send(Event::Scores(tick)).is_err() {
                return;
            }
            // After a pause there is nothing to catch up on: the window has all beacons.
            next = (next + TICK).max(Instant::now());
        }
    }

    /// Steps the model over everything that it has not seen.
    fn tick(&mut self) -> Result<Vec<(HostId, BasisPoints)>, PredictError> {
        let unseen: Vec<(HostId, Vec<&Beacon>)> = self
            .window
            .hosts()
            .map(|(host, ticks)| (host, unseen(ticks, self.stepped.get(&host).copied())))
            .filter(|(_, ticks)| !ticks.is_empty())
            .collect();
        let mut scores = Vec::new();
        for round in rounds(&unseen) {
            match self.predictor.tick(&round) {
                Ok(found) => scores = found,
                Err(error) => {
                    // The model begins anew; so does its view of the window.
                    self.stepped.clear();
                    return Err(error);
                }
            }
        }
        for (host, ticks) in unseen {
            if let Some(last) = ticks.last() {
                self.stepped.insert(host, last.tick);
            }
        }
        Ok(scores
            .into_iter()
            .filter_map(|(host, score)| Some((host, quantised(score)?)))
            .collect())
    }
}

fn quantised(score: Score) -> Option<BasisPoints> {
    BasisPoints::from_probability(score.risk)
}

/// A host that booted counts its ticks from the start again.
fn unseen(ticks: &VecDeque<Beacon>, stepped: Option<u64>) -> Vec<&Beacon> {
    let stepped = stepped.filter(|stepped| ticks.back().is_some_and(|last| last.tick >= *stepped));
    ticks
        .iter()
        .filter(|beacon| stepped.is_none_or(|stepped| beacon.tick > stepped))
        .collect()
}

/// One beacon of each host at a time, so that the newest of all are in the last round: the model
/// drops hosts that are silent for some rounds.
fn rounds<'a>(unseen: &[(HostId, Vec<&'a Beacon>)]) -> Vec<Vec<(HostId, &'a Beacon)>> {
    let longest = unseen.iter().map(|(_, ticks)| ticks.len()).max().unwrap_or(0);
    (0..longest)
        .map(|round| {
            unseen
                .iter()
                .filter_map(|(host, ticks)| {
                    let at = (round + ticks.len()).checked_sub(longest)?;
                    Some((*host, *ticks.get(at)?))
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beacons(host: u32, ticks: &[u64]) -> VecDeque<Beacon> {
        ticks
            .iter()
            .map(|tick| Beacon::new(HostId(host), *tick, *tick))
            .collect()
    }

    fn seen(ticks: &[&Beacon]) -> Vec<u64> {
        ticks.iter().map(|beacon| beacon.tick).collect()
    }

    #[test]
    fn only_what_the_model_has_not_seen_is_stepped_and_a_boot_begins_anew() {
        let ticks = beacons(1, &[4, 5, 6]);
        assert_eq!(seen(&unseen(&ticks, Some(5))), [6]);
        assert_eq!(seen(&unseen(&ticks, None)), [4, 5, 6]);
        assert_eq!(seen(&unseen(&ticks, Some(90))), [4, 5, 6]);
        assert!(unseen(&ticks, Some(6)).is_empty());
    }

    #[test]
    fn the_newest_beacons_of_all_hosts_are_in_the_last_round() {
        let (a, b) = (beacons(1, &[4, 5, 6]), beacons(2, &[9]));
        let unseen = [(HostId(1), a.iter().collect()), (HostId(2), b.iter().collect())];
        let rounds: Vec<Vec<u64>> = rounds(&unseen)
            .iter()
            .map(|round| round.iter().map(|(_, b)| b.tick).collect())
            .collect();
        assert_eq!(rounds, [vec![4], vec![5], vec![6, 9]]);
    }

    #[test]
    fn a_missing_model_leaves_prediction_off_and_says_why() {
        let at = |name: &str| std::path::PathBuf::from(format!("/nowhere/{name}"));
        let config = config::Prediction {
            model: at("m.onnx"),
            card: at("m.json"),
            onnxruntime: None,
        };
        let (predictor, prediction) = load(Some(&config));
        assert!(predictor.is_none());
        assert_eq!(prediction.state, "off");
        assert!(prediction.why.is_some_and(|why| why.contains("/nowhere/m.json")));
    }
}
