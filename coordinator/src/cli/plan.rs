//! `understudy plan`: the leader's dry run.

use understudy_common::units::BasisPoints;
use understudy_common::wire::{Fate, Operate, Supposition};

use super::CliError;
use super::ask::Cluster;
use crate::plan::PlanDocument;

pub(super) async fn run(
    cluster: &mut Cluster,
    suppositions: Vec<Supposition>,
    json: bool,
) -> Result<(), CliError> {
    let document = cluster.ask(Operate::Plan { suppositions }).await?;
    let document = document.unwrap_or_default();
    if json {
        println!("{document}");
    } else {
        let plan: PlanDocument = serde_json::from_str(&document)?;
        print!("{plan}");
    }
    Ok(())
}

/// `HOST=0.9`, `HOST=90%` or `HOST=dead`.
pub(super) fn supposition(text: &str) -> Result<Supposition, String> {
    let wrong = || format!("`{text}` is not like db1=0.9, db1=90% or db1=dead");
    let (host, fate) = text.split_once('=').ok_or_else(wrong)?;
    let fate = if fate == "dead" {
        Fate::Dead
    } else {
        let (number, scale) = fate
            .strip_suffix('%')
            .map_or((fate, 1.0), |number| (number, 0.01));
        let risk = number.trim().parse::<f32>().map_err(|_| wrong())? * scale;
        let risk = Some(risk)
            .filter(|risk| (0.0..=1.0).contains(risk))
            .ok_or_else(wrong)?;
        Fate::Risk(BasisPoints::from_probability(risk).ok_or_else(wrong)?)
    };
    Some(host)
        .filter(|host| !host.is_empty())
        .map(|host| Supposition {
            host: host.to_owned(),
            fate,
        })
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supposition_is_a_risk_or_a_death() {
        let fate = |text: &str| supposition(text).map(|found| found.fate).ok();
        assert_eq!(fate("db1=dead"), Some(Fate::Dead));
        for (text, risk) in [
            ("db1=0.9", 9_000),
            ("db1=90%", 9_000),
            ("db1=1", 10_000),
            ("db1=0.5 %", 50),
        ] {
            assert_eq!(fate(text), Some(Fate::Risk(BasisPoints(risk))), "{text}");
        }
        for wrong in [
            "db1",
            "=dead",
            "db1=",
            "db1=1.1",
            "db1=-1",
            "db1=nan",
            "db1=101%",
            "db1=alive",
        ] {
            assert_eq!(fate(wrong), None, "{wrong}");
        }
    }
}
