//! What the shell adds to the replica's documents.

use serde_json::{Value, json};
use understudy_common::identity::Principal;

use crate::certificates::Certificates;
use crate::forecast::ForecastStatus;

/// The replica's status with what only this process knows. The document names every host: it is not read again.
pub(crate) fn status(document: &str, forecast: &ForecastStatus) -> String {
    let Some(open) = document.strip_suffix('}') else {
        return document.to_owned();
    };
    let (prediction, beacons) = (json!(forecast.prediction()), json!(forecast.beacons()));
    format!("{open},\"prediction\":{prediction},\"beacons\":{beacons}}}")
}

/// The replica's rows with what was shown to this process.
pub(crate) fn certificates(document: &str, known: &Certificates) -> String {
    let Ok(mut document) = serde_json::from_str::<Value>(document) else {
        return document.to_owned();
    };
    for row in document["certificates"].as_array_mut().into_iter().flatten() {
        let who = row["principal"].as_str().and_then(Principal::from_label);
        let Some(shown) = who.and_then(|who| known.of(who)) else {
            continue;
        };
        let floor = row["refused_enrolments"].as_u64();
        let revoked = floor.is_some_and(|floor| u64::from(shown.enrolment) <= floor);
        row["revoked"] = json!(revoked || row["refused_for_good"] == true);
        row["shown"] = json!(shown);
    }
    document.to_string()
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
