//! The card of a model: what it was trained on, what it is good for, and where its threshold is.

use std::path::Path;

use serde::Deserialize;
use understudy_common::beacon::FEATURES;
use understudy_common::units::BasisPoints;

use super::PredictError;

/// Horizons of the model's hazards, in ticks.
pub const HORIZONS: [u64; 3] = [30, 90, 240];
/// Tensors of state, and their width: more than any model of this architecture has.
const STATES_MAX: usize = 8;
const WIDTH_MAX: usize = 1024;

/// The part of the card that the program uses; the rest (traces, seeds, held-out figures) is for people.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Card {
    /// Equal to the stamp in the model's file.
    pub id: String,
    /// Names in the order of the model's input.
    features: Vec<String>,
    /// Must be [`HORIZONS`].
    horizons: Vec<u64>,
    /// The horizon whose hazard is the risk.
    pub horizon: u64,
    /// A host is going bad when its risk was at least this for `debounce_ticks` ticks in a row.
    pub threshold: f32,
    pub debounce_ticks: u32,
    /// Ticks of history before a host is scored.
    pub warm_up_ticks: u64,
    pub state: Vec<State>,
}

/// A tensor that the model wants back in the next tick.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct State {
    pub name: String,
    pub width: usize,
}

impl State {
    /// The output that holds it.
    pub(super) fn next(&self) -> String {
        format!("{}_next", self.name)
    }
}

impl Card {
    /// # Errors
    /// [`PredictError::CardMissing`], [`PredictError::Card`], [`PredictError::Schema`].
    pub fn read(path: &Path) -> Result<Self, PredictError> {
        let bad = |why: String| PredictError::Card {
            path: path.to_owned(),
            why,
        };
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => PredictError::CardMissing(path.to_owned()),
            _ => bad(error.to_string()),
        })?;
        let card: Self = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        card.check().map_err(bad)?;
        card.check_features()?;
        Ok(card)
    }

    pub(super) fn horizon_index(&self) -> usize {
        HORIZONS
            .iter()
            .position(|horizon| *horizon == self.horizon)
            .unwrap_or(0)
    }

    /// The threshold as the planner compares it.
    pub fn threshold_bp(&self) -> BasisPoints {
        BasisPoints::from_probability(self.threshold).unwrap_or(BasisPoints::MAX)
    }

    fn check(&self) -> Result<(), String> {
        if self.horizons != HORIZONS {
            return Err(format!(
                "horizons {:?}, and this program knows {HORIZONS:?}",
                self.horizons
            ));
        }
        if !HORIZONS.contains(&self.horizon) {
            return Err(format!("horizon {} is none of {HORIZONS:?}", self.horizon));
        }
        if !(self.threshold > 0.0 && self.threshold < 1.0) {
            return Err(format!("threshold {} is not between 0 and 1", self.threshold));
        }
        if self.debounce_ticks == 0 {
            return Err("debounce_ticks is 0, and one tick is the least".to_owned());
        }
        if self.state.len() > STATES_MAX
            || self
                .state
                .iter()
                .any(|state| !(1..=WIDTH_MAX).contains(&state.width))
        {
            return Err(format!(
                "at most {STATES_MAX} state tensors of 1 to {WIDTH_MAX} values are allowed"
            ));
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), PredictError> {
        if self.features.len() != FEATURES.len() {
            let why = format!(
                "{} features in the card, {} here",
                self.features.len(),
                FEATURES.len()
            );
            return Err(PredictError::Schema { why });
        }
        let differs = self
            .features
            .iter()
            .zip(&FEATURES)
            .position(|(name, spec)| name != spec.name);
        match differs {
            Some(slot) => Err(PredictError::Schema {
                why: format!(
                    "feature {slot} is {} in the card and {} here",
                    self.features[slot], FEATURES[slot].name
                ),
            }),
            None => Ok(()),
        }
    }
}
