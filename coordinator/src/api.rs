//! What the shell adds to the replica's documents.

use serde_json::json;

use crate::forecast::ForecastStatus;

/// The replica's status with what only this process knows. The document names every host: it is not read again.
pub(crate) fn status(document: &str, forecast: &ForecastStatus) -> String {
    let Some(open) = document.strip_suffix('}') else {
        return document.to_owned();
    };
    let (prediction, beacons) = (json!(forecast.prediction()), json!(forecast.beacons()));
    format!("{open},\"prediction\":{prediction},\"beacons\":{beacons}}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::load;

    #[test]
    fn the_status_stays_one_document() {
        let forecast = ForecastStatus::new(load(None).1, None);
        let text = status(&json!({"leader": 1, "hosts": [{"id": 1}]}).to_string(), &forecast);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["leader"], 1);
        assert_eq!(status["prediction"]["state"], "off");
        assert!(status["beacons"].is_null());
    }
}
