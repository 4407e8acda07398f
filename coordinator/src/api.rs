//! What the shell adds to the replica's documents.

use serde_json::{Value, json};

use crate::forecast::Prediction;

/// The replica's status with what only this process knows.
pub(crate) fn status(document: &str, prediction: &Prediction) -> String {
    let Ok(mut status) = serde_json::from_str::<Value>(document) else {
        return document.to_owned();
    };
    status["prediction"] = json!(prediction);
    status.to_string()
}
