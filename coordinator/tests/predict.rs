//! The predictor against what the trainer computed, and against everything that may be wrong with its files.
//! The fixtures come from `xtask/train/fixture.py`. Without ONNX Runtime these tests say that they were skipped.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use understudy_common::beacon::{Beacon, FEATURES};
use understudy_common::id::HostId;
use understudy_coordinator::predict::{GAP_TICKS_MAX, HOSTS_MAX, PredictError, Predictor, Score};

/// ONNX Runtime and the trainer round differently in the last digits.
const TOLERANCE: f32 = 1e-4;
const WARM_UP: usize = 2;

#[derive(Deserialize)]
struct Expected {
    values: Vec<Vec<Vec<f32>>>,
    mask: Vec<Vec<Vec<u8>>>,
    hazards: Vec<Vec<[f32; 3]>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn load(model: &str, card: &Path) -> Option<Result<Predictor, PredictError>> {
    match Predictor::load(&fixture(model), card, None) {
        Err(error @ PredictError::LibraryMissing { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        loaded => Some(loaded),
    }
}

fn small() -> Option<Predictor> {
    load("small.onnx", &fixture("small.card.json")).map(|loaded| loaded.expect("the fixture loads"))
}

fn expected() -> Expected {
    let text = std::fs::read_to_string(fixture("small.expected.json")).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn beacon(host: HostId, tick: u64, values: &[f32], mask: &[u8]) -> Beacon {
    let mut beacon = Beacon::new(host, tick, tick);
    for (spec, (value, present)) in FEATURES.iter().zip(values.iter().zip(mask)) {
        if *present == 1 {
            beacon.set(spec.feature, *value);
        }
    }
    beacon
}

impl Expected {
    fn beacon(&self, tick: usize, host: usize, at: u64) -> Beacon {
        beacon(
            HostId(host as u32 + 1),
            at,
            &self.values[tick][host],
            &self.mask[tick][host],
        )
    }

    fn hosts(&self) -> usize {
        self.values[0].len()
    }
}

fn step(predictor: &mut Predictor, beacons: &[Beacon]) -> Vec<(HostId, Score)> {
    let rows: Vec<_> = beacons.iter().map(|beacon| (beacon.host, beacon)).collect();
    predictor.tick(&rows).expect("the fixture's numbers are finite")
}

/// A card that differs from the fixture's in one place.
fn card_with(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(fixture("small.card.json")).expect("the fixture is there");
    let mut card = serde_json::from_str(&text).expect("the fixture is JSON");
    change(&mut card);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), card.to_string()).expect("a temporary file takes bytes");
    file
}

#[test]
fn the_exported_model_answers_as_the_trainer_did_for_every_host_and_tick() {
    let Some(mut predictor) = small() else { return };
    let expected = expected();
    for tick in 0..expected.values.len() {
        let beacons: Vec<_> = (0..expected.hosts())
            .map(|host| expected.beacon(tick, host, 100 + tick as u64))
            .collect();
        let scores = step(&mut predictor, &beacons);
        assert_eq!(
            scores.len(),
            if tick < WARM_UP { 0 } else { expected.hosts() },
            "tick {tick}"
        );
        for (row, (host, score)) in scores.iter().enumerate() {
            assert_eq!(*host, beacons[row].host);
            for (ours, theirs) in score.hazards.iter().zip(expected.hazards[tick][row]) {
                assert!(
                    (ours - theirs).abs() < TOLERANCE,
                    "tick {tick} {host}: {ours} and {theirs}"
                );
            }
            assert_eq!(score.risk, score.hazards[0]);
        }
    }
}

#[test]
fn hosts_that_come_and_go_do_not_mix_their_states() {
    let Some(mut predictor) = small() else { return };
    let expected = expected();
    let mut last = None;
    for tick in 0..expected.values.len() {
        let mut beacons = vec![expected.beacon(tick, 1, tick as u64)];
        if tick % 2 == 0 {
            beacons.insert(0, expected.beacon(tick, 0, tick as u64));
        }
        last = step(&mut predictor, &beacons)
            .iter()
            .find(|(host, _)| *host == HostId(2))
            .map(|(_, score)| *score);
    }
    let theirs = expected.hazards.last().expect("ticks")[1];
    assert!((last.expect("a score").risk - theirs[0]).abs() < TOLERANCE);
}

#[test]
fn a_host_begins_anew_after_a_gap_or_when_its_clock_went_back() {
    for jump in [GAP_TICKS_MAX as i64 + 1, -50] {
        let Some(mut predictor) = small() else { return };
        let expected = expected();
        for tick in 0..4 {
            step(&mut predictor, &[expected.beacon(tick, 0, 100 + tick as u64)]);
        }
        let again = (103 + jump) as u64;
        for tick in 0..4 {
            let scores = step(&mut predictor, &[expected.beacon(tick, 0, again + tick as u64)]);
            match scores.first() {
                Some((_, score)) => assert!((score.risk - expected.hazards[tick][0][0]).abs() < TOLERANCE),
                None => assert!(tick < WARM_UP, "no score at tick {tick} after a jump of {jump}"),
            }
        }
    }
}

#[test]
fn the_same_beacon_twice_is_one_step() {
    let Some(mut predictor) = small() else { return };
    let expected = expected();
    for tick in 0..6 {
        let beacons = [expected.beacon(tick, 0, tick as u64)];
        let first = step(&mut predictor, &beacons);
        assert_eq!(step(&mut predictor, &beacons), first);
    }
}

#[test]
fn a_model_that_answers_no_number_is_an_error_that_names_the_host() {
    let Some(loaded) = load("not-a-number.onnx", &fixture("small.card.json")) else {
        return;
    };
    let mut predictor = loaded.expect("its weights are seen only when it runs");
    let beacon = Beacon::new(HostId(7), 1, 1);
    let error = predictor
        .tick(&[(HostId(7), &beacon)])
        .expect_err("a NaN is no score");
    assert!(
        matches!(error, PredictError::NotFinite { host: HostId(7) }),
        "{error}"
    );
}

#[test]
fn files_that_do_not_fit_are_refused_in_plain_words() {
    let card = fixture("small.card.json");
    let Some(loaded) = load("other-shape.onnx", &card) else {
        return;
    };
    let cases: Vec<(Result<Predictor, PredictError>, &str)> = vec![
        (loaded, "the model's h has the shape"),
        (
            Predictor::load(&fixture("absent.onnx"), &card, None),
            "there is no model at",
        ),
        (Predictor::load(&card, &card, None), "is not a usable model"),
        (
            Predictor::load(&fixture("small.onnx"), &fixture("absent.json"), None),
            "there is no model card at",
        ),
        (
            Predictor::load(&fixture("small.onnx"), &fixture("small.onnx"), None),
            "is not a usable model card",
        ),
        (
            with(|card| card["features"][3] = "other".into()),
            "feature 3 is other in the card",
        ),
        (
            with(|card| card["features"] = vec!["one"].into()),
            "1 features in the card",
        ),
        (
            with(|card| card["id"] = "another".into()),
            "they come from different trainings",
        ),
        (
            with(|card| card["horizons"] = vec![30, 90].into()),
            "horizons [30, 90]",
        ),
        (with(|card| card["threshold"] = 1.5.into()), "threshold 1.5"),
        (
            with(|card| card["state"][0]["width"] = 7.into()),
            "and the card asks for rows of 7 f32",
        ),
        (
            with(|card| drop(card["state"].as_array_mut().map(Vec::pop))),
            "signature",
        ),
    ];
    for (loaded, words) in cases {
        let error = loaded
            .err()
            .unwrap_or_else(|| panic!("loaded, and should say: {words}"))
            .to_string();
        assert!(error.contains(words), "{error}\nshould say: {words}");
    }
}

fn with(change: impl FnOnce(&mut serde_json::Value)) -> Result<Predictor, PredictError> {
    Predictor::load(&fixture("small.onnx"), card_with(change).path(), None)
}

#[test]
fn a_library_that_is_configured_and_absent_or_no_library_is_an_error() {
    let card = fixture("small.card.json");
    let absent = Path::new("/nonexistent/libonnxruntime.so");
    let error = Predictor::load(&fixture("small.onnx"), &card, Some(absent))
        .err()
        .expect("nothing to load");
    assert!(
        matches!(&error, PredictError::LibraryMissing { searched } if searched == &[absent]),
        "{error}"
    );
    let error = Predictor::load(&fixture("small.onnx"), &card, Some(&card))
        .err()
        .expect("JSON is no library");
    assert!(matches!(&error, PredictError::Library { .. }), "{error}");
}

#[test]
fn more_hosts_than_the_bound_are_refused() {
    let Some(mut predictor) = small() else { return };
    let beacon = Beacon::new(HostId(1), 1, 1);
    let rows = vec![(HostId(1), &beacon); HOSTS_MAX + 1];
    assert!(
        matches!(predictor.tick(&rows), Err(PredictError::TooManyHosts { count }) if count == HOSTS_MAX + 1)
    );
}

#[test]
fn the_committed_model_fits_this_program_and_answers_recorded_runs_as_its_trainer_did() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut predictor = match Predictor::load(&models.join("fast.onnx"), &models.join("fast.card.json"), None)
    {
        Err(error @ PredictError::LibraryMissing { .. }) => return eprintln!("skipped: {error}"),
        loaded => loaded.expect("the committed model loads"),
    };
    let text = std::fs::read_to_string(models.join("fast.check.json")).expect("it lies beside the model");
    let expected: Expected = serde_json::from_str(&text).expect("it is JSON");
    let mut highest = vec![0.0_f32; expected.hosts()];
    for tick in 0..expected.values.len() {
        let beacons: Vec<_> = (0..expected.hosts())
            .map(|host| expected.beacon(tick, host, tick as u64))
            .collect();
        for (row, (_, score)) in step(&mut predictor, &beacons).iter().enumerate() {
            for (ours, theirs) in score.hazards.iter().zip(expected.hazards[tick][row]) {
                assert!(
                    (ours - theirs).abs() < 1e-3,
                    "tick {tick} row {row}: {ours} and {theirs}"
                );
            }
            highest[row] = highest[row].max(score.risk);
        }
    }
    // Both are runs that ended in a failure.
    let threshold = predictor.card().threshold;
    assert!(
        highest.iter().all(|risk| *risk >= threshold),
        "{highest:?} and {threshold}"
    );
}
