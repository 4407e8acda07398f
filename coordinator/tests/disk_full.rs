//! A real file system without room under a real coordinator's log.

mod cluster;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::{Cluster, text, wait};

/// The log's first file and some room beside it.
const DISK_MIB: u64 = 24;

/// A tmpfs, unmounted with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Why there is none, in words.
    fn mount(at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={DISK_MIB}m");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "understudy-test"])
            .arg(at)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(Self(at.to_owned()))
        } else {
            Err(text(&output.stderr))
        }
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        let block = vec![1; 64 << 10];
        while ballast.write_all(&block).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the coordinator may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn disk_full(cluster: &Cluster, n: u64) -> Option<bool> {
    let status = cluster.status()?;
    let all = status["coordinators"].as_array()?;
    all.iter().find(|one| one["id"] == n)?["disk_full"].as_bool()
}

#[test]
fn a_coordinator_without_room_gives_the_leadership_away_and_goes_on_when_there_is_room() {
    let mut cluster = Cluster::new(3);
    let disk = match SmallDisk::mount(&cluster.dir.path().join("disk-1")) {
        Ok(disk) => disk,
        Err(why) => return println!("skipped: a small disk needs root: {why}"),
    };
    for n in 1..=3 {
        cluster.start(n);
    }
    let leader = cluster.leader(None);
    if leader != 1 {
        // The leader may not have heard of it yet.
        cluster::wait("coordinator-1 to take the leadership", || {
            let moved = cluster.understudy(&["coordinators", "transfer", "1"]);
            moved.status.success().then_some(())
        });
    }
    let note = |cluster: &Cluster, words: &str| {
        let noted = cluster.understudy(&["note", words]);
        assert!(noted.status.success(), "{}", text(&noted.stderr));
    };
    note(&cluster, "before");
    disk.fill();
    note(&cluster, "found no room or another leader");
    let next = cluster.leader(Some(1));
    note(&cluster, "while the disk is full");
    wait("the status to say so", || disk_full(&cluster, 1)?.then_some(()));
    assert!(
        cluster.log(1).contains("no room for the raft log"),
        "{}",
        cluster.log(1)
    );
    assert_eq!(cluster.leader(None), next);

    disk.make_room();
    wait("the status to say that it goes on", || {
        (!disk_full(&cluster, 1)?).then_some(())
    });
    note(&cluster, "after");
    wait("it to have everything", || {
        let status = cluster.status()?;
        let all = status["coordinators"].as_array()?;
        let applied = |n: usize| all.iter().find(|one| one["id"] == n)?["applied"].as_u64();
        (applied(1)? >= applied(next)?).then_some(())
    });

    // Nothing that was acknowledged is lost, on its own disk either: it leads, alone with one other.
    let moved = cluster.understudy(&["coordinators", "transfer", "1"]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    let events = text(&cluster.understudy(&["events"]).stdout);
    for words in [
        "before",
        "found no room or another leader",
        "while the disk is full",
        "after",
    ] {
        assert!(events.contains(words), "{words}: {events}");
    }
    for n in 1..=3 {
        cluster.kill(n);
    }
}
