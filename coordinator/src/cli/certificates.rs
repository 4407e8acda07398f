//! `understudy certificates`: whose certificates end when, as far as the leader has seen them.

use serde::Deserialize;
use time::OffsetDateTime;
use understudy_common::wire::Operate;

use super::CliError;
use super::ask::Cluster;
use super::table::{duration, render};
use crate::clock::wall_ms;

#[derive(Debug, Deserialize)]
struct Certificates {
    certificates: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    principal: String,
    name: Option<String>,
    member: bool,
    revoked: bool,
    refused_for_good: bool,
    shown: Option<Shown>,
}

#[derive(Debug, Deserialize)]
struct Shown {
    not_after_s: i64,
    renewed_at_ms: Option<u64>,
}

pub(super) async fn run(cluster: &mut Cluster, json: bool) -> Result<(), CliError> {
    let document = cluster.ask(Operate::Certificates).await?.unwrap_or_default();
    if json {
        println!("{document}");
        return Ok(());
    }
    print!("{}", table(&document, wall_ms())?);
    Ok(())
}

fn table(document: &str, wall_ms: u64) -> Result<String, serde_json::Error> {
    let document: Certificates = serde_json::from_str(document)?;
    let rows: Vec<_> = document
        .certificates
        .iter()
        .map(|row| cells(row, wall_ms))
        .collect();
    Ok(render(
        &["principal", "name", "ends", "left", "revoked", "renewed"],
        &rows,
    ))
}

fn cells(row: &Row, wall_ms: u64) -> Vec<String> {
    let none = || "-".to_owned();
    let (ends, left) = match &row.shown {
        Some(shown) => (date(shown.not_after_s), left(shown.not_after_s, wall_ms)),
        None => (none(), "not seen".to_owned()),
    };
    let revoked = match row {
        Row {
            refused_for_good: true,
            ..
        } => "for good",
        Row { revoked: true, .. } => "yes",
        Row { member: false, .. } => "no member",
        _ => "no",
    };
    let renewed = row.shown.as_ref().and_then(|shown| shown.renewed_at_ms);
    vec![
        row.principal.clone(),
        row.name.clone().unwrap_or_else(none),
        ends,
        left,
        revoked.to_owned(),
        renewed.map_or_else(none, |at| {
            let ago = wall_ms.saturating_sub(at).saturating_mul(1_000);
            format!("{} ago", duration(ago))
        }),
    ]
}

fn date(at_s: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(at_s).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{date} {:02}:{:02}:{:02}Z",
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn left(ends_s: i64, wall_ms: u64) -> String {
    let now_s = i64::try_from(wall_ms / 1_000).unwrap_or(i64::MAX);
    match u64::try_from(ends_s.saturating_sub(now_s)) {
        Ok(left @ 1..) => duration(left.saturating_mul(1_000_000)),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn each_principal_has_its_row() {
        let row = |principal: &str, name: Option<&str>, revoked: bool, good: bool| {
            json!({
                "principal": principal, "name": name, "member": !good,
                "revoked": revoked, "refused_for_good": good,
            })
        };
        let shown = |mut row: serde_json::Value, not_after_s: u64, renewed_at_ms: Option<u64>| {
            row["shown"] = json!({ "not_after_s": not_after_s, "renewed_at_ms": renewed_at_ms });
            row
        };
        let now = 1_800_000_000_u64;
        let document = json!({ "certificates": [
            shown(row("host-1", Some("db1"), false, false), now + 90 * 86_400, Some((now - 3_720) * 1_000)),
            shown(row("host-2", Some("db2"), true, false), now - 5, None),
            row("host-3", None, true, true),
            row("coordinator-1", None, false, false),
        ]});
        expect![[r#"
            PRINCIPAL      NAME  ENDS                  LEFT      REVOKED   RENEWED
            host-1         db1   2027-04-15 08:00:00Z  90 d 0 h  no        1 h 02 min ago
            host-2         db2   2027-01-15 07:59:55Z  ended     yes       -
            host-3         -     -                     not seen  for good  -
            coordinator-1  -     -                     not seen  no        -
        "#]]
        .assert_eq(&table(&document.to_string(), now * 1_000).unwrap());
    }
}
