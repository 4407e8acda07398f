//! The thread that runs the model: beacons in, scores out, once a tick, beside the event loop.
//!
//! Invariants: inference never holds up raft or leases. Every coordinator runs it, so that a new
//! leader predicts at once; what is proposed is the loop's affair. Without a model, or after an error
//! of it, there are no scores and the status says why.

mod inbox;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use understudy_common::beacon::{Beacon, TICK_MS};
use understudy_common::id::HostId;
use understudy_common::units::BasisPoints;

use crate::clock::boot_now;
use crate::config;
use crate::coordinator::Event;
use crate::predict::{PredictError, Predictor, Score};
use crate::window::{History, Window};

pub use inbox::{Inbox, TickCosts};

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

/// What the loop knows of the forecast, for people.
pub struct ForecastStatus {
    prediction: Prediction,
    threshold: Option<BasisPoints>,
    /// None: nobody predicts.
    inbox: Option<Arc<Inbox>>,
    costs: TickCosts,
}

impl ForecastStatus {
    pub fn new(prediction: Prediction, inbox: Option<Arc<Inbox>>) -> Self {
        Self {
            threshold: prediction.threshold_bp,
            prediction,
            inbox,
            costs: TickCosts::default(),
        }
    }

    /// Follows the outcome of a tick.
    pub fn follow(&mut self, tick: &Tick) {
        let next = match (tick, self.threshold) {
            (Ok(_), Some(threshold)) => Prediction::on(threshold),
            (Ok(_), None) => return,
            (Err(why), _) => Prediction::off(why.as_str()),
        };
        if self.prediction != next {
            tracing::warn!(state = next.state, why = next.why, "prediction changed");
            self.prediction = next;
        }
    }

    /// A tick's scores have been handled, so long after its work began.
    pub fn ticked(&mut self, cost: Duration) {
        self.costs.push(cost);
    }

    pub fn prediction(&self) -> &Prediction {
        &self.prediction
    }

    /// Beacons and ticks; none where nobody predicts.
    pub fn beacons(&self) -> Option<serde_json::Value> {
        Some(self.inbox.as_ref()?.figures(&self.costs))
    }
}

/// Starts the thread. It ends when the loop does.
///
/// # Errors
/// When the system gives no thread.
pub fn start(predictor: Predictor, events: mpsc::Sender<Event>) -> std::io::Result<Arc<Inbox>> {
    let inbox = Arc::new(Inbox::default());
    let mut forecaster = Forecaster {
        predictor,
        inbox: Arc::clone(&inbox),
        window: Window::default(),
        stepped: BTreeMap::new(),
    };
    std::thread::Builder::new()
        .name("forecast".to_owned())
        .spawn(move || forecaster.run(&events))?;
    Ok(inbox)
}

struct Forecaster {
    predictor: Predictor,
    inbox: Arc<Inbox>,
    window: Window,
    /// The last tick of each host that the model has seen.
    stepped: BTreeMap<HostId, u64>,
}

impl Forecaster {
    fn run(&mut self, events: &mpsc::Sender<Event>) {
        let mut next = Instant::now() + TICK;
        loop {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let began = boot_now();
            self.take_in();
            let tick = self.tick().map_err(|error| error.to_string());
            if events.blocking_send(Event::Scores { tick, began }).is_err() {
                return;
            }
            // After a pause there is nothing to catch up on: the window has all beacons.
            next = (next + TICK).max(Instant::now());
        }
    }

    fn take_in(&mut self) {
        let mut refused = None;
        for beacon in self.inbox.take() {
            if let Err(full) = self.window.push(beacon) {
                self.inbox.drop_one();
                refused = Some(full);
            }
        }
        if let Some(full) = refused {
            tracing::warn!("{full}");
        }
        self.inbox.set_hosts(self.window.hosts().count());
    }

    /// Steps the model over everything that it has not seen.
    fn tick(&mut self) -> Result<Vec<(HostId, BasisPoints)>, PredictError> {
        let unseen: Vec<(HostId, Vec<Beacon>)> = self
            .window
            .hosts()
            .map(|(host, history)| (host, unseen(history, self.stepped.get(&host).copied())))
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
fn unseen(history: &History, stepped: Option<u64>) -> Vec<Beacon> {
    history.after(stepped.filter(|stepped| history.newest().tick >= *stepped))
}

/// One beacon of each host at a time, so that the newest of all are in the last round: the model
/// drops hosts that are silent for some rounds.
fn rounds(unseen: &[(HostId, Vec<Beacon>)]) -> Vec<Vec<(HostId, &Beacon)>> {
    let longest = unseen.iter().map(|(_, ticks)| ticks.len()).max().unwrap_or(0);
    (0..longest)
        .map(|round| {
            unseen
                .iter()
                .filter_map(|(host, ticks)| {
                    let at = (round + ticks.len()).checked_sub(longest)?;
                    Some((*host, ticks.get(at)?))
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beacons(host: u32, ticks: &[u64]) -> Vec<Beacon> {
        ticks
            .iter()
            .map(|tick| Beacon::new(HostId(host), *tick, *tick))
            .collect()
    }

    #[test]
    fn only_what_the_model_has_not_seen_is_stepped_and_a_boot_begins_anew() {
        let mut window = Window::default();
        for beacon in beacons(1, &[4, 5, 6]) {
            window.push(beacon).unwrap();
        }
        let (_, history) = window.hosts().next().unwrap();
        let seen = |stepped| {
            unseen(history, stepped)
                .iter()
                .map(|beacon| beacon.tick)
                .collect::<Vec<_>>()
        };
        assert_eq!(seen(Some(5)), [6]);
        assert_eq!(seen(None), [4, 5, 6]);
        assert_eq!(seen(Some(90)), [4, 5, 6]);
        assert!(seen(Some(6)).is_empty());
    }

    #[test]
    fn the_newest_beacons_of_all_hosts_are_in_the_last_round() {
        let unseen = [(HostId(1), beacons(1, &[4, 5, 6])), (HostId(2), beacons(2, &[9]))];
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
