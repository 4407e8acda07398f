//! Answers as text for people, or as the JSON that came.

use super::document::{Coordinator, Event, Host, Prediction, Service, Status};
use super::init::Written;
use super::table::{bytes, duration, render};

pub(super) fn status(document: &str, json: bool) -> Result<(), serde_json::Error> {
    if json {
        println!("{document}");
        return Ok(());
    }
    let status: Status = serde_json::from_str(document)?;
    match status.leader {
        Some(id) => println!("leader: coordinator-{id}"),
        None => println!("leader: none; a majority of the coordinators must be reachable by each other"),
    }
    println!("prediction: {}\n", prediction(status.prediction.as_ref()));
    print!("{}", coordinators_table(&status.coordinators));
    println!();
    print!("{}", hosts_table(&status.hosts));
    println!();
    print!("{}", services_table(&status));
    Ok(())
}

pub(super) fn hosts(document: &str, json: bool) -> Result<(), serde_json::Error> {
    let status: Status = serde_json::from_str(document)?;
    if json {
        part(document, "hosts")?
    } else {
        print!("{}", hosts_table(&status.hosts))
    }
    Ok(())
}

pub(super) fn services(document: &str, json: bool) -> Result<(), serde_json::Error> {
    let status: Status = serde_json::from_str(document)?;
    if json {
        part(document, "services")?
    } else {
        print!("{}", services_table(&status))
    }
    Ok(())
}

fn part(document: &str, key: &str) -> Result<(), serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_str(document)?;
    println!("{}", serde_json::json!({ key: value[key].take() }));
    Ok(())
}

fn prediction(prediction: Option<&Prediction>) -> String {
    match prediction {
        None => "off (reactive only)".to_owned(),
        Some(Prediction { state, why: None }) => state.clone(),
        Some(Prediction {
            state,
            why: Some(why),
        }) => format!("{state} (reactive only: {why})"),
    }
}

pub(super) fn coordinators(document: &str, json: bool) -> Result<(), serde_json::Error> {
    let status: Status = serde_json::from_str(document)?;
    if json {
        part(document, "coordinators")?
    } else {
        print!("{}", coordinators_table(&status.coordinators))
    }
    Ok(())
}

fn coordinators_table(coordinators: &[Coordinator]) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<_> = coordinators
        .iter()
        .map(|c| {
            vec![
                format!("coordinator-{}", c.id),
                or_dash(c.addr.map(|addr| addr.to_string())),
                c.role.clone(),
                or_dash(c.standing.clone()),
                match (c.reachable, c.disk_full) {
                    (false, _) => "no",
                    (true, true) => "yes, disk full",
                    (true, false) => "yes",
                }
                .to_owned(),
                or_dash(c.term.map(|n| n.to_string())),
                or_dash(c.applied.map(|n| n.to_string())),
                c.command_version
                    .map_or_else(|| "-".to_owned(), |version| format!("{} ({version})", c.software)),
            ]
        })
        .collect();
    let header = [
        "coordinator",
        "address",
        "role",
        "standing",
        "reachable",
        "term",
        "applied",
        "version (commands)",
    ];
    render(&header, &rows)
}

fn hosts_table(hosts: &[Host]) -> String {
    if hosts.is_empty() {
        return "no hosts yet: start understudy-agent on each of them\n".to_owned();
    }
    let rows: Vec<_> = hosts
        .iter()
        .map(|h| {
            let state = match (h.alive, h.safe_mode) {
                (false, _) => "gone",
                (true, true) => "safe mode",
                (true, false) => "alive",
            };
            let risk = h
                .risk_bp
                .map_or("-".to_owned(), |bp| format!("{:.2} %", f64::from(bp) / 100.0));
            let source = h.ebpf_source.clone().unwrap_or_else(|| "-".to_owned());
            let programs = h.ebpf_programs.map_or("-".to_owned(), |n| n.to_string());
            vec![
                h.name.clone(),
                format!("host-{}", h.id),
                state.to_owned(),
                risk,
                source,
                programs,
                domain(h),
            ]
        })
        .collect();
    let header = ["host", "id", "state", "risk", "signals", "programs", "domain"];
    render(&header, &rows)
}

/// `rack r1, region eu`
fn domain(host: &Host) -> String {
    let labels = host.domain.labels();
    let named: Vec<_> = labels
        .iter()
        .filter_map(|(kind, label)| Some(format!("{kind} {}", (*label)?)))
        .collect();
    if named.is_empty() {
        return "-".to_owned();
    }
    named.join(", ")
}

fn services_table(status: &Status) -> String {
    if status.services.is_empty() {
        return "no services yet: understudy apply FILE\n".to_owned();
    }
    let rows: Vec<_> = status.services.iter().map(|s| service_row(status, s)).collect();
    render(
        &[
            "service",
            "phase",
            "holder",
            "epoch",
            "shadows",
            "lag",
            "sent",
            "freeze p99",
            "unknown",
        ],
        &rows,
    )
}

fn service_row(status: &Status, service: &Service) -> Vec<String> {
    let name = |id: u32| {
        status
            .hosts
            .iter()
            .find(|h| h.id == id)
            .map_or_else(|| format!("host-{id}"), |h| h.name.clone())
    };
    let holder = match (service.holder, service.serving) {
        (None, _) => "nobody".to_owned(),
        (Some(id), true) => name(id),
        (Some(id), false) => format!("{} (not serving)", name(id)),
    };
    let shadows: Vec<_> = service
        .shadows
        .iter()
        .map(|s| {
            format!(
                "{} {} {}",
                name(s.host),
                s.copy,
                s.generation.as_deref().unwrap_or("-")
            )
        })
        .collect();
    let mut row = vec![
        service.name.clone(),
        service.phase.clone(),
        holder,
        service.epoch.to_string(),
    ];
    row.push(if shadows.is_empty() {
        "none".to_owned()
    } else {
        shadows.join(", ")
    });
    match &service.sync {
        Some(sync) if sync.generations > 0 => row.extend([
            duration(sync.lag_us_last),
            bytes(sync.full_bytes + sync.delta_bytes),
            duration(sync.freeze_us_p99),
            sync.unknown.to_string(),
        ]),
        _ => row.extend(["-", "-", "-", "-"].map(str::to_owned)),
    }
    row
}

/// One event on one line, with its wall time in UTC.
pub(super) fn event(event: &Event) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.at_ms) * 1_000_000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:>5}  {date} {:02}:{:02}:{:02}.{:03}Z  {:<16} {}",
        event.seq,
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond(),
        event.kind,
        event.text
    )
}

/// The coordinator's own document when it sent one, else that it is done.
pub(super) fn done(document: Option<&str>, text: &str, json: bool) {
    match (document, json) {
        (Some(document), true) => println!("{document}"),
        (None, true) => println!("{}", serde_json::json!({ "done": true })),
        (_, false) => println!("{text}"),
    }
}

pub(super) fn initialised(written: &Written, json: bool) {
    if json {
        println!(
            "{}",
            serde_json::json!({ "dir": written.dir, "files": written.files })
        );
        return;
    }
    let dir = written.dir.display();
    println!("{} files in {dir}. Next:", written.files.len());
    println!("  1. keep {dir}/ca.key off the servers: who has it can speak for any host");
    println!(
        "  2. copy coordinator-N.*, ca.pem and issuer.* to each coordinator; understudy-coordinator --config coordinator-N.toml"
    );
    println!("  3. copy host-N.* and ca.pem to each host; understudy-agent --config host-N.toml");
    println!("  4. understudy --cluster {dir}/cluster.toml status");
}

pub(super) fn joined(written: &Written, json: bool) {
    if json {
        println!(
            "{}",
            serde_json::json!({ "dir": written.dir, "files": written.files })
        );
        return;
    }
    let config = written.files.iter().find(|name| name.ends_with(".toml"));
    let config = written.dir.join(config.map_or("", String::as_str));
    println!("this host was admitted. Read the paths in the file, then start, as root:");
    println!("  understudy-agent --config {}", config.display());
}
