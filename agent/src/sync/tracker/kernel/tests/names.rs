//! Names and attributes show up under the root, and nowhere else.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use super::super::super::ChangedName;
use super::*;

fn changed(tracker: &mut KernelTracker, root: &Path) -> Vec<String> {
    let names = tracker.swap().unwrap().names;
    assert!(!names.walk_all);
    names
        .entries
        .iter()
        .map(|name| name.path().strip_prefix(root).unwrap().display().to_string())
        .collect()
}

#[test]
fn names_and_attributes_are_reported_with_their_directory() {
    testdisk::on_each(&Kind::EACH, 32, |disk| {
        let root = disk.root().join("service");
        fs::create_dir(&root).unwrap();
        let Some(mut tracker) = tracker_of(&root, TrackerLimits::default()) else {
            return;
        };
        let at = |name: &str| root.join(name);

        fs::write(at("new"), "x").unwrap();
        assert_eq!(changed(&mut tracker, &root), ["new"]);
        assert!(!tracker.pending());

        fs::rename(at("new"), at("old")).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["new", "old"]);

        fs::set_permissions(at("old"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["old"], "chmod");

        chown(at("old"), Some(1), Some(1)).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["old"], "chown");

        let times = fs::FileTimes::new()
            .set_modified(std::time::UNIX_EPOCH)
            .set_accessed(std::time::UNIX_EPOCH);
        File::options()
            .write(true)
            .open(at("old"))
            .unwrap()
            .set_times(times)
            .unwrap();
        assert_eq!(changed(&mut tracker, &root), ["old"], "utimes");

        fs::hard_link(at("old"), at("link")).unwrap();
        assert!(changed(&mut tracker, &root).contains(&"link".to_owned()));

        symlink("old", at("symlink")).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["symlink"]);

        fs::remove_file(at("old")).unwrap();
        assert!(changed(&mut tracker, &root).contains(&"old".to_owned()));

        fs::create_dir(at("dir")).unwrap();
        fs::write(at("dir/inside"), "x").unwrap();
        assert_eq!(changed(&mut tracker, &root), ["dir", "dir/inside"]);

        // Named as the directory is called when the set is taken.
        fs::write(at("dir/second"), "x").unwrap();
        fs::rename(at("dir"), at("moved")).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["dir", "moved", "moved/second"]);

        fs::remove_dir_all(at("moved")).unwrap();
        assert!(changed(&mut tracker, &root).contains(&"moved".to_owned()));
    });
}

#[test]
fn names_outside_the_root_are_left_out() {
    testdisk::on_each(&Kind::EACH, 32, |disk| {
        let root = disk.root().join("service");
        let outside = disk.root().join("elsewhere");
        for dir in [&root, &outside, &disk.root().join("service-other")] {
            fs::create_dir(dir).unwrap();
        }
        let Some(mut tracker) = tracker_of(&root, TrackerLimits::default()) else {
            return;
        };
        fs::write(outside.join("a"), "x").unwrap();
        fs::write(disk.root().join("service-other/b"), "x").unwrap();
        fs::write(disk.root().join("c"), "x").unwrap();
        assert!(!tracker.pending());
        assert!(tracker.swap().unwrap().names.is_empty());

        fs::rename(outside.join("a"), root.join("came-in")).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["came-in"]);
        fs::rename(root.join("came-in"), outside.join("went-out")).unwrap();
        assert_eq!(changed(&mut tracker, &root), ["came-in"]);
    });
}

#[test]
fn a_root_may_be_a_single_file_reached_by_a_symbolic_link() {
    testdisk::on_each(&Kind::EACH, 32, |disk| {
        let real = disk.root().join("etc");
        fs::create_dir(&real).unwrap();
        fs::write(real.join("app.conf"), "x").unwrap();
        symlink("etc", disk.root().join("link")).unwrap();
        let root = disk.root().join("link/app.conf");
        let Some(mut tracker) = tracker_of(&root, TrackerLimits::default()) else {
            return;
        };
        fs::write(real.join("other.conf"), "x").unwrap();
        assert!(!tracker.pending());
        fs::write(real.join("app.conf.new"), "y").unwrap();
        fs::rename(real.join("app.conf.new"), real.join("app.conf")).unwrap();
        let names = tracker.swap().unwrap().names;
        assert_eq!(
            names.entries.iter().map(ChangedName::path).collect::<Vec<_>>(),
            [root]
        );
    });
}

#[test]
fn too_many_events_mean_walk_everything() {
    on_each(&Kind::EACH, 128, |disk, mut tracker| {
        let queue: usize = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(16_384);
        if queue > 100_000 {
            return println!("skipped: the queue here holds {queue} events");
        }
        let first = disk.root().join("0");
        fs::write(&first, "").unwrap();
        for at in 1..=queue / 2 + 10 {
            // Two events each, which do not merge because the names differ.
            fs::rename(
                disk.root().join((at - 1).to_string()),
                disk.root().join(at.to_string()),
            )
            .unwrap();
        }
        let set = tracker.swap().unwrap();
        assert!(
            set.names.walk_all || set.names.entries.len() > queue / 2,
            "{}",
            set.names.entries.len()
        );
        for at in 0..queue + 10 {
            fs::write(disk.root().join(format!("x{at}")), "").unwrap();
        }
        assert!(tracker.swap().unwrap().names.walk_all);
        assert!(tracker.counters().overflows > 0);
        fs::write(disk.root().join("after"), "").unwrap();
        let names = tracker.swap().unwrap().names;
        assert_eq!((names.walk_all, names.entries.len()), (false, 1));
    });
}

fn subvolume(path: &Path) {
    let mut create = Command::new("btrfs");
    let made = create.args(["subvolume", "create"]).arg(path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn pages_and_names_in_a_subvolume_below_the_root_are_reported() {
    on_each(&[Kind::Btrfs], 64, |disk, mut tracker| {
        let sub = disk.root().join("sub");
        subvolume(&sub);
        // The first files of both have the same inode number.
        let (inside, outside) = (disk.file("sub/file", 8), disk.file("file", 8));
        assert_ne!(key(&inside).dev, key(&outside).dev);
        watch(&mut tracker, &inside);
        watch(&mut tracker, &outside);
        tracker.swap().unwrap();
        inside.write_all_at(b"x", 3 * PAGE).unwrap();
        outside.write_all_at(b"x", 5 * PAGE).unwrap();
        fs::rename(sub.join("file"), sub.join("renamed")).unwrap();
        let set = tracker.swap().unwrap();
        assert_eq!(pages(&set, &inside), [3], "{set:?}");
        assert_eq!(pages(&set, &outside), [5], "{set:?}");
        let names: Vec<_> = set.names.entries.iter().map(ChangedName::path).collect();
        assert_eq!(names, [sub.join("file"), sub.join("renamed")]);
    });
}

#[test]
fn a_root_in_a_subvolume_is_tracked() {
    let Some(disk) = Disk::of(Kind::Btrfs, 64) else {
        return;
    };
    let (sub, mounted) = (disk.root().join("sub"), disk.root().join("mounted"));
    subvolume(&sub);
    fs::create_dir(&mounted).unwrap();
    // As distributions mount theirs.
    let mut bind = Command::new("mount");
    bind.args(["-o", "subvol=/sub"]).arg(device(&disk)).arg(&mounted);
    assert!(bind.status().unwrap().success());
    let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = mounts();
    for root in [sub, mounted.clone()] {
        fs::create_dir_all(root.join("service")).unwrap();
        let Some(mut tracker) = tracker_of(&root.join("service"), TrackerLimits::default()) else {
            return;
        };
        assert_eq!(mounts(), before, "nothing stays mounted");
        let at = |name: &str| root.join("service").join(name);
        fs::write(at("file"), vec![b'.'; 8 * PAGE as usize]).unwrap();
        let file = open(&at("file"));
        file.sync_all().unwrap();
        watch(&mut tracker, &file);
        tracker.swap().unwrap();

        file.write_all_at(b"x", 3 * PAGE).unwrap();
        fs::rename(at("file"), at("renamed")).unwrap();
        fs::write(root.join("elsewhere"), "x").unwrap();
        fs::write(disk.root().join("outside"), "x").unwrap();
        let set = tracker.swap().unwrap();
        assert_eq!(pages(&set, &file), [3], "{set:?}");
        assert!(!set.names.walk_all);
        let names: Vec<_> = set.names.entries.iter().map(ChangedName::path).collect();
        assert_eq!(names, [at("file"), at("renamed")]);
        fs::remove_dir_all(root.join("service")).unwrap();
    }
    umount2(&mounted, MntFlags::MNT_DETACH).unwrap();
}

fn device(disk: &Disk) -> String {
    let found = Command::new("findmnt")
        .args(["-n", "-o", "SOURCE", "--target"])
        .arg(disk.root())
        .output()
        .unwrap();
    let source = String::from_utf8(found.stdout).unwrap();
    // `device[subvolume]`
    source.trim().split('[').next().unwrap_or_default().to_owned()
}
