//! ONNX Runtime: where its library is, and the one environment that a process may have of it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;

use super::PredictError;

const LIBRARY: &str = "libonnxruntime.so";
/// Where `cargo xtask setup` puts the library, below the folder that a build happens in.
const TOOLS: &str = "target/tools/onnxruntime";
const SYSTEM: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
    "/usr/lib",
];

static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// The environment, loading the library at the first call. A later call with another path gets the first one's:
/// the library allows no second.
pub(super) fn environment(configured: Option<&Path>) -> Result<Environment, PredictError> {
    let mut environment = ENVIRONMENT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(environment) = environment.as_ref() {
        return Ok(environment.clone());
    }
    let path = find(configured)?;
    let bad = |why: String| PredictError::Library {
        path: path.clone(),
        why,
    };
    let loaded = ort::init_from(&path)
        .map_err(|error| bad(error.to_string()))?
        .with_name("understudy")
        .with_telemetry(false)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    Ok(environment.insert(loaded).clone())
}

/// One thread: a step of a small network for a whole fleet is microseconds of work, and the cores belong to others.
pub(super) fn session(environment: &Environment, model: &Path) -> Result<Session, PredictError> {
    let build = || -> Result<Session, String> {
        let text = |error: ort::Error| error.to_string();
        Session::builder(environment)
            .map_err(text)?
            .with_intra_threads(1)
            .map_err(|error| error.to_string())?
            .with_inter_threads(1)
            .map_err(|error| error.to_string())?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|error| error.to_string())?
            .commit_from_file(model)
            .map_err(text)
    };
    build().map_err(|why| PredictError::Model {
        path: model.to_owned(),
        why,
    })
}

/// The configured path alone if there is one; else the first place that has the library.
fn find(configured: Option<&Path>) -> Result<PathBuf, PredictError> {
    let places = match configured {
        Some(path) => vec![path.to_owned()],
        None => places(),
    };
    places
        .iter()
        .find_map(|place| library_at(place))
        .ok_or(PredictError::LibraryMissing { searched: places })
}

fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        places.push(PathBuf::from(path));
    }
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent);
    places.extend(beside.map(Path::to_owned));
    // A binary or test below target/ finds the workspace above it.
    places.extend(
        beside
            .into_iter()
            .flat_map(Path::ancestors)
            .map(|folder| folder.join(TOOLS))
            .filter(|folder| folder.is_dir()),
    );
    places.push(PathBuf::from(TOOLS));
    places.extend(SYSTEM.iter().map(PathBuf::from));
    places
}

/// A path is the library itself or a folder that holds it, with or without a version at the end.
fn library_at(place: &Path) -> Option<PathBuf> {
    if place.is_file() {
        return Some(place.to_owned());
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(place)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(LIBRARY))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.into_iter().next()
}
