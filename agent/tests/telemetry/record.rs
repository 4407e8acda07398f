//! The `record` subcommand, as a program of its own.

use understudy_common::beacon::{Beacon, Feature, TraceHeader};
use understudy_common::id::HostId;

use crate::support::{self, Cgroup, Skip, spawn_in};
use crate::{open, run};

/// Records for some seconds as a user without a name, with these capabilities.
fn record_as_nobody(capabilities: &str) -> Result<(String, Vec<Beacon>), Skip> {
    let dir = tempfile::tempdir().unwrap();
    let agent = support::public_copy(env!("CARGO_BIN_EXE_understudy-agent"), dir.path());
    let (config, trace) = (dir.path().join("agent.toml"), dir.path().join("t.trace"));
    std::fs::write(&config, "host = 5\nname = \"e\"\n[telemetry]\nbpf = true\n").unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(format!("--inh-caps={capabilities}"))
        .arg(format!("--ambient-caps={capabilities}"))
        .arg(agent)
        .args(["record", "--seconds", "2", "--config"])
        .arg(&config)
        .arg("--out")
        .arg(&trace)
        .output()
        .map_err(|error| Skip(format!("setpriv cannot be run: {error}")))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if log.contains("setpriv: ") {
        return Err(Skip(log));
    }
    assert!(output.status.success(), "{log}");
    let bytes = std::fs::read(&trace).unwrap();
    let (header, rows) = TraceHeader::read(&bytes).unwrap();
    assert_eq!(header.host, HostId(5));
    let beacons = header.rows(rows).unwrap();
    assert_eq!(beacons.len(), 2);
    Ok((log, beacons))
}

#[test]
fn without_privilege_the_same_vector_is_recorded_with_a_mask() {
    run(|| {
        let (log, beacons) = record_as_nobody("-all")?;
        assert!(log.contains("no kernel programs"), "{log}");
        assert_eq!(beacons[1].get(Feature::RunQueueP99), None);
        assert_eq!(beacons[1].get(Feature::ExitsPerSecond), None);
        for feature in [
            Feature::CpuUsedShare,
            Feature::MemoryAnonShare,
            Feature::MemoryAvailableShare,
        ] {
            assert!(beacons[1].get(feature).is_some(), "{feature:?}");
        }
        Ok(())
    });
}

#[test]
fn two_capabilities_are_enough_for_all_programs() {
    run(|| {
        drop(open(None)?);
        let (log, beacons) = record_as_nobody("+bpf,+perfmon")?;
        assert!(log.contains("tp_btf"), "{log}");
        assert!(beacons[1].get(Feature::RunQueueP99).is_some(), "{log}");
        assert!(beacons[1].get(Feature::ExitsPerSecond).is_some(), "{log}");
        Ok(())
    });
}

#[test]
fn retransmissions_are_counted_in_their_own_network_namespace_only() {
    run(|| {
        drop(open(None)?);
        let silent = "ip link add va type veth peer name vb && ip addr add 10.9.9.1/24 dev va && \
                      ip link set va up && ip link set vb up && \
                      ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev va";
        let knock = format!("{silent} && (timeout 5 bash -c '</dev/tcp/10.9.9.2/80' >/dev/null 2>&1 &) &&");
        let (busy, idle) = (support::record_in_netns(&knock)?, support::record_in_netns("")?);
        let (busy, idle) = (busy.beacons()?, idle.beacons()?);
        let sum = |beacons: &[Beacon], feature| {
            beacons
                .iter()
                .filter_map(|beacon| beacon.get(feature))
                .sum::<f32>()
        };
        // A connection attempt without an answer is repeated after one second and after three.
        assert!(sum(&busy, Feature::TcpRetransmitsPerSecond) >= 1.0, "{busy:?}");
        assert!(sum(&busy, Feature::NetTxPacketsPerSecond) >= 2.0, "{busy:?}");
        assert_eq!(sum(&idle, Feature::TcpRetransmitsPerSecond), 0.0);
        assert!(
            idle.iter()
                .all(|beacon| beacon.get(Feature::TcpRetransmitsPerSecond).is_some())
        );
        assert!(
            idle.iter()
                .all(|beacon| beacon.get(Feature::ExitsPerSecond).is_none())
        );
        Ok(())
    });
}

#[test]
fn diagnostics_of_the_programs_reach_the_log_only_when_asked_for() {
    run(|| {
        drop(open(None)?);
        let tasks = Cgroup::v2("log")?;
        for wanted in [true, false] {
            let config = format!(
                "host = 1\n[telemetry]\nbpf_log = {wanted}\n[telemetry.scope]\ncgroup = \"{}\"\n",
                tasks.path().display()
            );
            let mut recorder = support::Recorder::start("exec", &config, "info,telemetry=debug")?;
            let found = recorder.wait_for_log("ended by signal 9", || {
                assert!(spawn_in(&[&tasks], "kill -9 $$").wait().is_ok());
            });
            assert_eq!(found, wanted);
        }
        Ok(())
    });
}

#[test]
fn a_wrong_configuration_is_refused_by_name_with_the_exit_code_for_usage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let refused = |text: Option<&str>, expected: &str| {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_understudy-agent"))
            .args(["record", "--seconds", "1", "--config"])
            .arg(&path)
            .arg("--out")
            .arg(dir.path().join("t.trace"))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{log}");
        assert!(log.contains(expected), "{log}");
    };
    refused(None, "agent.toml cannot be read");
    refused(Some("host = 1\n[telemetry]\nbfp = true\n"), "unknown field `bfp`");
    refused(
        Some("host = 1\n[telemetry.scope]\ndevices = [\"sda\"]\n"),
        "telemetry.scope.devices: `sda` is not of the form major:minor",
    );
    refused(
        Some("host = 1\n[telemetry.scope]\nmemory = \"/nowhere\"\n"),
        "telemetry.scope.memory: /nowhere cannot be read",
    );
}
