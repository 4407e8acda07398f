//! Kernel tier: how ends of processes are pushed. Without the programs a test says `skipped: reason`.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_common::id::HostId;

use super::tests::{PATIENCE, Place, eventually};
use super::{CommandWorkload, Ended};
use crate::telemetry::{ExitWatch, Telemetry, TelemetryConfig};

const ROUNDS: usize = 20;
const SLEEPER: &str = "exec sleep 1000";

/// The attached programs, forwarding for as long as the value lives.
struct Kernel {
    watch: ExitWatch,
    forward: tokio::task::JoinHandle<()>,
    _telemetry: Telemetry,
}

impl Kernel {
    fn attach() -> Option<Self> {
        let mut telemetry = Telemetry::open(HostId(1), &TelemetryConfig::default()).expect("no scope");
        let Some(exits) = telemetry.exits() else {
            println!("skipped: no kernel programs: {:?}", telemetry.sources().refused);
            return None;
        };
        let watch = ExitWatch::default();
        let forwarded = exits.forward(watch.clone());
        let forward = tokio::spawn(async move {
            forwarded.await.expect("the ring can be waited for");
        });
        Some(Self {
            watch,
            forward,
            _telemetry: telemetry,
        })
    }

    fn heeding(&self, place: &Place, script: &str) -> CommandWorkload {
        let exits = self.watch.watch(place.cgroup.path()).expect("a cgroup");
        place.workload(script).heed(exits)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

fn main_process(place: &Place) -> i32 {
    let mut found = None;
    eventually("it runs its program", || {
        let pids = place.cgroup.pids().unwrap();
        found = pids.first().copied().filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
        });
        found.is_some()
    });
    found.expect("a process")
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

async fn ended(workload: &CommandWorkload) -> Ended {
    let exited = tokio::time::timeout(PATIENCE, workload.exited()).await;
    exited.expect("it ends in time").unwrap()
}

/// From the kill to the word that nothing of the service lives any more, sorted.
async fn kills(place: &Place, workload: CommandWorkload) -> Vec<Duration> {
    let workload = Arc::new(workload);
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        workload.start().await.unwrap();
        let pid = main_process(place);
        let waiting = Arc::clone(&workload);
        let waiter = tokio::spawn(async move { (ended(&waiting).await, Instant::now()) });
        // It waits before the kill.
        tokio::task::yield_now().await;
        let begun = Instant::now();
        kill(pid);
        let (ended, at) = waiter.await.unwrap();
        assert_eq!(ended.status.and_then(|status| status.signal()), Some(9));
        took.push(at.saturating_duration_since(begun));
    }
    took.sort();
    took
}

#[tokio::test]
async fn a_killed_workload_is_told_of_by_the_kernel_at_once() {
    let Some(place) = Place::new("killed") else { return };
    let Some(kernel) = Kernel::attach() else { return };
    let pushed = kills(&place, kernel.heeding(&place, SLEEPER)).await;
    let without = kills(&place, place.workload(SLEEPER)).await;
    println!(
        "kill to event: pushed p50 {:?}, max {:?}; without the kernel programs p50 {:?}, max {:?}; {ROUNDS} each",
        pushed[ROUNDS / 2],
        pushed[ROUNDS - 1],
        without[ROUNDS / 2],
        without[ROUNDS - 1]
    );
    assert!(pushed[ROUNDS / 2] < Duration::from_millis(50), "{pushed:?}");
}

#[tokio::test]
async fn an_adopted_workload_ends_with_its_cause_though_it_is_nobodys_child() {
    let Some(place) = Place::new("adopted") else {
        return;
    };
    let Some(kernel) = Kernel::attach() else { return };
    let started = place.workload(SLEEPER);
    started.start().await.unwrap();
    let pid = main_process(&place);
    let adopted = kernel.heeding(&place, SLEEPER);
    kill(pid);
    let ended = ended(&adopted).await;
    assert_eq!(ended.status.and_then(|status| status.signal()), Some(9));
    assert!(!ended.out_of_memory);
}

#[tokio::test]
async fn only_the_processes_of_watched_cgroups_are_pushed() {
    let (Some(watched), Some(other)) = (Place::new("watched"), Place::new("other")) else {
        return;
    };
    let Some(kernel) = Kernel::attach() else { return };
    let mut exits = kernel.watch.watch(watched.cgroup.path()).unwrap();
    for (place, code) in [(&other, 3), (&watched, 4)] {
        let workload = place.workload(&format!("exit {code}"));
        workload.start().await.unwrap();
        assert_eq!(
            ended(&workload).await.status.and_then(|status| status.code()),
            Some(code)
        );
    }
    let first = tokio::time::timeout(PATIENCE, exits.next()).await.unwrap();
    assert_eq!(first.status.code(), Some(4));
}

/// A memory limit of its own for one test; removed at the end.
struct MemoryLimit(PathBuf);

impl MemoryLimit {
    fn new(bytes: u64) -> Option<Self> {
        let path = Path::new("/sys/fs/cgroup/memory").join(format!("usexit-{}", std::process::id()));
        let made = std::fs::create_dir(&path)
            .and_then(|()| std::fs::write(path.join("memory.limit_in_bytes"), bytes.to_string()));
        if let Err(error) = made {
            println!("skipped: no memory limit can be set here: {error}");
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        eventually("the limit is removed", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[tokio::test]
async fn the_out_of_memory_killer_is_told_apart_from_any_other_kill() {
    let Some(limit) = MemoryLimit::new(24 << 20) else {
        return;
    };
    let Some(place) = Place::new("memory") else { return };
    let Some(kernel) = Kernel::attach() else { return };
    let script = format!(
        "echo $$ > {}/cgroup.procs; a=x; while :; do a=$a$a; done",
        limit.0.display()
    );
    let workload = kernel.heeding(&place, &script);
    workload.start().await.unwrap();
    let ended = ended(&workload).await;
    assert_eq!(
        ended.status.and_then(|status| status.signal()),
        Some(9),
        "{}",
        place.log()
    );
    assert!(ended.out_of_memory, "{ended}");
    assert!(
        ended.to_string().ends_with("by the out-of-memory killer"),
        "{ended}"
    );
}
