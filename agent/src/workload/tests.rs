//! Real processes in real cgroups.

use std::fs;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_common::spec::{Health, Workload};

use super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "still not so after {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A service's place: a cgroup and a directory, both removed at the end, however it ends.
pub(super) struct Place {
    pub(super) cgroup: Cgroup,
    dir: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(name: &str) -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let path = root.join(format!("usworkload-{name}-{}", std::process::id()));
        match Cgroup::create(path) {
            Ok(cgroup) => Some(Self {
                cgroup,
                dir: tempfile::tempdir().unwrap(),
            }),
            Err(error) => {
                println!("skipped: a cgroup cannot be made here: {error}");
                None
            }
        }
    }

    pub(super) fn workload(&self, script: &str) -> CommandWorkload {
        let spec = Workload {
            start: ["/bin/bash", "-c", script].map(str::to_owned).to_vec(),
            stop_timeout: Duration::from_millis(500),
            health: Health::Exec(vec!["/bin/true".to_owned()]),
            start_timeout: PATIENCE,
            read_only: Vec::new(),
            read_write: Vec::new(),
        };
        CommandWorkload::adopt(self.cgroup.clone(), spec, self.dir.path().join("service.log")).unwrap()
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("service.log")).unwrap_or_default()
    }

    fn is_frozen(&self) -> bool {
        let events = fs::read_to_string(self.cgroup.path().join("cgroup.events")).unwrap();
        events.lines().any(|line| line == "frozen 1")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.cgroup.thaw();
        let _ = self.cgroup.kill();
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(self.cgroup.path()).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

const SLEEPER: &str = "echo started; while :; do sleep 0.05; done";

#[tokio::test]
async fn a_second_instance_is_never_started() {
    let Some(place) = Place::new("second") else { return };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    eventually("the first instance wrote to the log", || {
        place.log().contains("started")
    });
    assert!(matches!(
        workload.start().await,
        Err(WorkloadError::AlreadyRunning { .. })
    ));
    // Nor by an agent that was restarted and knows nothing of the first.
    let restarted = place.workload(SLEEPER);
    assert!(restarted.is_running().unwrap());
    assert!(matches!(
        restarted.start().await,
        Err(WorkloadError::AlreadyRunning { .. })
    ));
    assert_eq!(restarted.stop().await.unwrap(), Stopped::Asked);
    assert_eq!(restarted.stop().await.unwrap(), Stopped::NotRunning);
    restarted.start().await.unwrap();
    eventually("both instances wrote to the log", || {
        place.log().matches("started").count() == 2
    });
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_with_all_its_children() {
    let Some(place) = Place::new("stubborn") else {
        return;
    };
    let workload = place.workload("trap '' TERM; (trap '' TERM; echo ready; while :; do sleep 0.05; done) & wait; while :; do sleep 0.05; done");
    workload.start().await.unwrap();
    eventually("the traps are set", || place.log().contains("ready"));
    assert_eq!(workload.stop().await.unwrap(), Stopped::Killed);
    assert_eq!(place.cgroup.pids().unwrap(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_frozen_workload_can_be_stopped() {
    let Some(place) = Place::new("frozenstop") else {
        return;
    };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    fs::write(place.cgroup.path().join("cgroup.freeze"), "1").unwrap();
    eventually("it stands still", || place.is_frozen());
    assert_eq!(workload.stop().await.unwrap(), Stopped::Asked);
}

#[tokio::test]
async fn an_exit_is_noticed_with_its_status() {
    let Some(place) = Place::new("exit") else { return };
    let workload = place.workload("exit 7");
    workload.start().await.unwrap();
    let status = tokio::time::timeout(PATIENCE, workload.exited())
        .await
        .unwrap()
        .unwrap();
    eventually("the process is reaped", || !workload.is_running().unwrap());
    assert_eq!(status.status.and_then(|status| status.code()), Some(7));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let Some(place) = Place::new("absent") else { return };
    let mut workload = place.workload("");
    workload = CommandWorkload::adopt(
        workload.cgroup().clone(),
        Workload {
            start: vec!["/absent/program".to_owned()],
            ..workload.spec().clone()
        },
        workload.log(),
    )
    .unwrap();
    let error = workload.start().await.unwrap_err();
    assert!(error.to_string().contains("/absent/program"), "{error}");
    assert!(!workload.is_running().unwrap());
}

#[tokio::test]
async fn health_is_what_the_port_or_the_command_says() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = Health::Tcp(listener.local_addr().unwrap());
    wait_healthy(&tcp, PATIENCE).await.unwrap();
    drop(listener);
    assert!(matches!(
        wait_healthy(&tcp, Duration::ZERO).await,
        Err(HealthError::Tcp { .. })
    ));
    let exec = |program: &str| Health::Exec(vec![program.to_owned()]);
    wait_healthy(&exec("/bin/true"), PATIENCE).await.unwrap();
    assert!(matches!(
        check(&exec("/bin/false")).await,
        Err(HealthError::Exit { .. })
    ));
    assert!(matches!(
        check(&exec("/absent")).await,
        Err(HealthError::Run { .. })
    ));
}

fn test_process(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(test_arguments(name));
    command
}

fn test_arguments(name: &str) -> Vec<String> {
    [
        "--exact",
        &format!("workload::tests::{name}"),
        "--ignored",
        "--nocapture",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn guard() -> Arc<ThawGuard> {
    Arc::new(ThawGuard::new(
        std::env::current_exe().unwrap(),
        test_arguments("guard_process"),
    ))
}

#[test]
#[ignore = "the thaw guard, as a process of its own for other tests"]
fn guard_process() {
    // Run by hand or by `--run-ignored` it gets no pipe and ends at once.
    let _ = thaw_guard::run();
}

#[tokio::test]
async fn a_freeze_holds_until_its_proof_is_dropped() {
    let Some(place) = Place::new("freeze") else { return };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    let freezer = CgroupFreezer::new(place.cgroup.path(), guard()).with_hard_limit(Duration::from_secs(600));
    let mut took = Vec::new();
    for _ in 0..20 {
        let asked = Instant::now();
        let frozen = freezer.freeze(PATIENCE).unwrap();
        took.push(asked.elapsed());
        assert!(place.is_frozen() && frozen.is_whole());
        drop(frozen);
        eventually("it runs again", || !place.is_frozen());
    }
    took.sort();
    println!("to frozen: median {:?}, longest {:?}", took[10], took[19]);
}

#[tokio::test]
async fn a_freeze_that_takes_too_long_is_thawed_again() {
    let Some(place) = Place::new("slow") else { return };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    let freezer = CgroupFreezer::new(place.cgroup.path(), guard());
    // A limit that no freeze can keep; one that was faster than the first look is thawed and tried again.
    eventually("a freeze times out", || {
        matches!(
            freezer.freeze(Duration::ZERO),
            Err(FreezeError::TimedOut { limit_ms: 0 })
        )
    });
    eventually("it runs again", || !place.is_frozen());
    let state = fs::read_to_string(place.cgroup.path().join("cgroup.freeze")).unwrap();
    assert_eq!(state.trim(), "0");
}

#[tokio::test]
async fn a_freeze_over_the_hard_limit_is_ended_by_the_guard_and_no_longer_whole() {
    let Some(place) = Place::new("hard") else { return };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    let freezer =
        CgroupFreezer::new(place.cgroup.path(), guard()).with_hard_limit(Duration::from_millis(300));
    let frozen = freezer.freeze(PATIENCE).unwrap();
    eventually("the guard thaws", || !place.is_frozen());
    assert!(!frozen.is_whole());
}

#[tokio::test]
async fn nothing_is_frozen_without_a_guard() {
    let Some(place) = Place::new("unguarded") else {
        return;
    };
    let absent = Arc::new(ThawGuard::new("/absent/program", Vec::new()));
    let refused = CgroupFreezer::new(place.cgroup.path(), absent).freeze(PATIENCE);
    assert!(matches!(refused, Err(FreezeError::Guard(_))));
    assert!(!place.is_frozen());
}

const FREEZE_CGROUP: &str = "US_WORKLOAD_TEST_CGROUP";

/// Stands for an agent in mid-freeze: freezes, says so and waits to be killed.
#[test]
#[ignore = "a process of its own for other tests"]
fn freezer_process() {
    let Some(cgroup) = std::env::var_os(FREEZE_CGROUP) else {
        return;
    };
    let freezer =
        CgroupFreezer::new(PathBuf::from(cgroup), guard()).with_hard_limit(Duration::from_secs(600));
    let _frozen = freezer.freeze(PATIENCE).unwrap();
    println!("frozen");
    std::thread::sleep(Duration::from_secs(600));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_agent_killed_in_mid_freeze_leaves_nothing_frozen() {
    let Some(place) = Place::new("killed") else { return };
    let workload = place.workload(SLEEPER);
    workload.start().await.unwrap();
    let mut command = test_process("freezer_process");
    command
        .env(FREEZE_CGROUP, place.cgroup.path())
        .stdout(Stdio::piped());
    let mut agent = Killed(command.spawn().unwrap());
    let output = agent.0.stdout.take().unwrap();
    let mut lines = std::io::BufReader::new(output).lines();
    assert!(lines.any(|line| line.unwrap().contains("frozen")));
    assert!(place.is_frozen());
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    let died = Instant::now();
    eventually("the guard thaws", || !place.is_frozen());
    println!("thawed {:?} after the kill", died.elapsed());
    assert!(workload.is_running().unwrap());
}

#[tokio::test]
async fn a_restarted_agent_thaws_what_it_adopts() {
    let Some(place) = Place::new("adopt") else { return };
    place.workload(SLEEPER).start().await.unwrap();
    fs::write(place.cgroup.path().join("cgroup.freeze"), "1").unwrap();
    eventually("it stands still", || place.is_frozen());
    let adopted = place.workload(SLEEPER);
    eventually("it runs again", || !place.is_frozen());
    assert!(adopted.is_running().unwrap());
}
