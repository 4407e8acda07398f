//! The risk of every host, once a tick, from an ONNX LSTM.
//!
//! Invariants: nothing here decides anything (the planner compares risk and threshold); nothing blocks but the
//! inference itself; a score is always a finite number in 0..=1, and a host without enough history has none; the
//! reactive path never depends on this module, so each error is typed and leaves the next tick usable.
//!
//! One batch holds all hosts of a tick. The model is a step of a recurrent network: each host's state (the tensors
//! that the card lists) is kept here between ticks and dropped after a gap, because a state that skipped time
//! would see a jump where nothing happened.

mod card;
mod hosts;
mod runtime;

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2, Ix2};
use ort::session::Session;
use ort::value::{TensorElementType, TensorRef, ValueType};
use understudy_common::beacon::{Beacon, FEATURE_COUNT};
use understudy_common::id::HostId;

pub use card::{Card, HORIZONS};
use hosts::Hosts;

/// Hosts in one batch. More are refused: a fleet of that size needs more coordinators.
pub const HOSTS_MAX: usize = crate::state::HOSTS_MAX;
/// A host that was silent for more ticks than this begins anew.
pub const GAP_TICKS_MAX: u64 = 3;

#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    #[error("no ONNX Runtime library: looked at {}; run `cargo xtask setup`, or set `onnxruntime` in coordinator.toml or ORT_DYLIB_PATH", list(.searched))]
    LibraryMissing { searched: Vec<PathBuf> },
    #[error("{} is not a usable ONNX Runtime library: {why}", .path.display())]
    Library { path: PathBuf, why: String },
    #[error("there is no model at {}: train one with `cargo xtask train` or correct `prediction.model`", .0.display())]
    ModelMissing(PathBuf),
    #[error("{} is not a usable model: {why}", .path.display())]
    Model { path: PathBuf, why: String },
    #[error("there is no model card at {}: it belongs beside the model; correct `prediction.card`", .0.display())]
    CardMissing(PathBuf),
    #[error("{} is not a usable model card: {why}", .path.display())]
    Card { path: PathBuf, why: String },
    #[error("the model was trained on other features than this program measures: {why}; train it again")]
    Schema { why: String },
    #[error("the model's {tensor} has the shape {found}, and the card asks for {expected}")]
    Shape {
        tensor: String,
        found: String,
        expected: String,
    },
    #[error("the model's answer for {host} is not a number; prediction starts anew for it")]
    NotFinite { host: HostId },
    #[error("{count} hosts in one tick, and at most {HOSTS_MAX} can be scored")]
    TooManyHosts { count: usize },
    #[error("inference failed: {why}")]
    Inference { why: String },
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What the model says about one host in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Probability of a hard failure within each of [`HORIZONS`] ticks.
    pub hazards: [f32; HORIZONS.len()],
    /// The one of `hazards` that the card's threshold is for.
    pub risk: f32,
}

/// The model, and what it remembers of each host.
pub struct Predictor {
    session: Session,
    card: Card,
    hosts: Hosts,
}

impl Predictor {
    /// Loads ONNX Runtime (once per process), the model and its card, and checks that they belong together and to
    /// the features that this program measures.
    ///
    /// # Errors
    /// Every [`PredictError`] but those of a tick.
    pub fn load(model: &Path, card: &Path, onnxruntime: Option<&Path>) -> Result<Self, PredictError> {
        let card = Card::read(card)?;
        if !model.is_file() {
            return Err(PredictError::ModelMissing(model.to_owned()));
        }
        let environment = runtime::environment(onnxruntime)?;
        let session = runtime::session(&environment, model)?;
        let bad = |why: String| PredictError::Model {
            path: model.to_owned(),
            why,
        };
        let stamp = session
            .metadata()
            .ok()
            .and_then(|metadata| metadata.custom("understudy_id"));
        if stamp.as_deref() != Some(card.id.as_str()) {
            let stamp = stamp.unwrap_or_else(|| "nothing".to_owned());
            return Err(bad(format!(
                "it is stamped {stamp} and its card {}: they come from different trainings",
                card.id
            )));
        }
        check_shapes(&session, &card)?;
        let widths: Vec<_> = card.state.iter().map(|state| state.width).collect();
        let hosts = Hosts::new(&widths);
        Ok(Self { session, card, hosts })
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// One step for all hosts that sent a beacon in this tick. Hosts with less history than the card asks for are
    /// stepped but not scored; a beacon that was stepped before is answered with the score it had.
    ///
    /// # Errors
    /// [`PredictError::NotFinite`], [`PredictError::TooManyHosts`], [`PredictError::Shape`],
    /// [`PredictError::Inference`].
    pub fn tick(&mut self, beacons: &[(HostId, &Beacon)]) -> Result<Vec<(HostId, Score)>, PredictError> {
        if beacons.len() > HOSTS_MAX {
            return Err(PredictError::TooManyHosts { count: beacons.len() });
        }
        let fresh: Vec<(HostId, &Beacon)> = beacons
            .iter()
            .copied()
            .filter(|(host, beacon)| self.hosts.admit(*host, beacon.tick))
            .collect();
        if !fresh.is_empty() {
            self.step(&fresh)?;
        }
        self.hosts.forget_silent();
        let warm_up = self.card.warm_up_ticks;
        Ok(beacons
            .iter()
            .filter_map(|(host, _)| Some((*host, self.hosts.score(*host, warm_up)?)))
            .collect())
    }

    fn step(&mut self, fresh: &[(HostId, &Beacon)]) -> Result<(), PredictError> {
        let mut values = Array2::zeros((fresh.len(), FEATURE_COUNT));
        let mut mask = Array2::zeros((fresh.len(), FEATURE_COUNT));
        for (row, (_, beacon)) in fresh.iter().enumerate() {
            for (slot, value) in beacon.values().iter().enumerate() {
                values[[row, slot]] = *value;
                mask[[row, slot]] = f32::from(u8::from(beacon.mask() >> slot & 1 == 1));
            }
        }
        let rows: Vec<HostId> = fresh.iter().map(|(host, _)| *host).collect();
        let states: Vec<Array2<f32>> = (0..self.card.state.len())
            .map(|tensor| self.hosts.gather(&rows, tensor))
            .collect();
        let (hazards, next) = infer(&mut self.session, &self.card, &values, &mask, &states)?;
        for (row, host) in rows.iter().enumerate() {
            let finite = hazards.row(row).iter().all(|p| p.is_finite())
                && next
                    .iter()
                    .all(|state| state.row(row).iter().all(|value| value.is_finite()));
            if !finite {
                self.hosts.forget_all();
                return Err(PredictError::NotFinite { host: *host });
            }
        }
        for (row, host) in rows.iter().enumerate() {
            let hazards: [f32; HORIZONS.len()] = std::array::from_fn(|n| hazards[[row, n]].clamp(0.0, 1.0));
            let score = Score {
                hazards,
                risk: hazards[self.card.horizon_index()],
            };
            self.hosts.keep(*host, &next, row, score);
        }
        Ok(())
    }
}

fn infer(
    session: &mut Session,
    card: &Card,
    values: &Array2<f32>,
    mask: &Array2<f32>,
    states: &[Array2<f32>],
) -> Result<(Array2<f32>, Vec<Array2<f32>>), PredictError> {
    let failed = |error: ort::Error| PredictError::Inference {
        why: error.to_string(),
    };
    let mut inputs = ort::inputs![
        "values" => TensorRef::from_array_view(values).map_err(failed)?,
        "mask" => TensorRef::from_array_view(mask).map_err(failed)?,
    ];
    for (state, value) in card.state.iter().zip(states) {
        inputs.push((
            state.name.clone().into(),
            TensorRef::from_array_view(value).map_err(failed)?.into(),
        ));
    }
    let outputs = session.run(inputs).map_err(failed)?;
    let take = |name: &str, width: usize| -> Result<Array2<f32>, PredictError> {
        let view = outputs
            .get(name)
            .ok_or_else(|| PredictError::Inference {
                why: format!("no output {name}"),
            })?
            .try_extract_array::<f32>()
            .map_err(failed)?;
        let expected = [values.nrows(), width];
        let shape = || PredictError::Shape {
            tensor: name.to_owned(),
            found: format!("{:?}", view.shape()),
            expected: format!("{expected:?}"),
        };
        let view: ArrayView2<'_, f32> = view.clone().into_dimensionality::<Ix2>().map_err(|_| shape())?;
        if view.shape() == expected {
            Ok(view.to_owned())
        } else {
            Err(shape())
        }
    };
    let hazards = take("hazard", HORIZONS.len())?;
    let next = card
        .state
        .iter()
        .map(|state| take(&state.next(), state.width))
        .collect::<Result<_, _>>()?;
    Ok((hazards, next))
}

/// Names and widths of the graph's inputs and outputs, before the first host depends on them.
fn check_shapes(session: &Session, card: &Card) -> Result<(), PredictError> {
    let inputs = [
        ("values".to_owned(), FEATURE_COUNT),
        ("mask".to_owned(), FEATURE_COUNT),
    ]
    .into_iter()
    .chain(card.state.iter().map(|state| (state.name.clone(), state.width)));
    let outputs = [("hazard".to_owned(), HORIZONS.len())]
        .into_iter()
        .chain(card.state.iter().map(|state| (state.next(), state.width)));
    for (found, wanted) in [
        (session.inputs(), inputs.collect::<Vec<_>>()),
        (session.outputs(), outputs.collect::<Vec<_>>()),
    ] {
        for (name, width) in wanted {
            let dtype = found
                .iter()
                .find(|outlet| outlet.name() == name)
                .map(ort::value::Outlet::dtype);
            if !dtype.is_some_and(|dtype| is_rows_of(dtype, width)) {
                return Err(PredictError::Shape {
                    tensor: name,
                    found: dtype.map_or("nothing".to_owned(), ToString::to_string),
                    expected: format!("rows of {width} f32"),
                });
            }
        }
        if found.len()
            != card.state.len()
                + if std::ptr::eq(found, session.inputs()) {
                    2
                } else {
                    1
                }
        {
            let names = found
                .iter()
                .map(|outlet| outlet.name())
                .collect::<Vec<_>>()
                .join(", ");
            return Err(PredictError::Shape {
                tensor: "signature".to_owned(),
                found: names,
                expected: "values, mask and the state in; hazard and the state out".to_owned(),
            });
        }
    }
    Ok(())
}

fn is_rows_of(dtype: &ValueType, width: usize) -> bool {
    match dtype {
        ValueType::Tensor {
            ty: TensorElementType::Float32,
            shape,
            ..
        } => shape.len() == 2 && shape[0] == -1 && shape[1] == width as i64,
        _ => false,
    }
}
