use super::*;

fn entry(index: u64, term: u64) -> Entry {
    let data = vec![u8::try_from(index % 251).unwrap(); 100].into();
    Entry {
        index,
        term,
        data,
        ..Entry::default()
    }
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term,
        commit,
        ..HardState::default()
    }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(vec![7; 64].into());
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    snapshot
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Persist {
    Persist {
        entries: range.map(|index| entry(index, term)).collect(),
        ..Persist::default()
    }
}

fn indices(durable: &Durable) -> Vec<(u64, u64)> {
    durable
        .entries
        .iter()
        .map(|entry| (entry.index, entry.term))
        .collect()
}

#[test]
fn everything_persisted_is_restored_and_a_new_history_replaces_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, durable) = Storage::open(dir.path()).unwrap();
    assert!(durable.entries.is_empty() && durable.snapshot.is_none());
    storage.persist(&entries(1..=5, 1)).unwrap();
    storage
        .persist(&Persist {
            hard_state: Some(hard_state(2, 3)),
            ..entries(4..=4, 2)
        })
        .unwrap();
    drop(storage);
    let (_, durable) = Storage::open(dir.path()).unwrap();
    assert_eq!(indices(&durable), [(1, 1), (2, 1), (3, 1), (4, 2)]);
    assert_eq!(durable.entries[3].data, entry(4, 2).data);
    assert_eq!(durable.hard_state, hard_state(2, 3));
}

#[test]
fn compaction_keeps_the_snapshot_and_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path()).unwrap();
    storage.persist(&entries(1..=20, 1)).unwrap();
    let compaction = Persist {
        snapshot: Some(snapshot(18, 1)),
        compact_to: Some(15),
        ..Persist::default()
    };
    storage.persist(&compaction).unwrap();
    drop(storage);
    let (_, durable) = Storage::open(dir.path()).unwrap();
    assert_eq!(durable.snapshot, Some(snapshot(18, 1)));
    assert_eq!(indices(&durable).first(), Some(&(15, 1)));
    assert_eq!(indices(&durable).last(), Some(&(20, 1)));
}

#[test]
fn a_snapshot_of_the_leader_replaces_the_log_but_not_the_vote() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path()).unwrap();
    let voted = Persist {
        hard_state: Some(hard_state(3, 2)),
        ..entries(1..=10, 1)
    };
    storage.persist(&voted).unwrap();
    storage
        .persist(&Persist {
            snapshot: Some(snapshot(6, 2)),
            ..Persist::default()
        })
        .unwrap();
    storage.persist(&entries(7..=8, 3)).unwrap();
    drop(storage);
    let (_, durable) = Storage::open(dir.path()).unwrap();
    assert_eq!(indices(&durable), [(7, 3), (8, 3)]);
    assert_eq!(durable.hard_state, hard_state(3, 2));
    assert_eq!(durable.snapshot, Some(snapshot(6, 2)));
}

#[test]
fn a_log_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_storage, _) = Storage::open(dir.path()).unwrap();
    let error = Storage::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("another coordinator"), "{error}");
}

fn log_file(dir: &Path) -> PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("raft"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "raftlog"))
        .collect();
    files.sort();
    files.pop().unwrap()
}

/// Ten batches of one entry each; the file without what was allocated ahead, and the log's end.
fn ten_entries(dir: &Path) -> (PathBuf, Vec<u8>) {
    let (mut storage, _) = Storage::open(dir).unwrap();
    for index in 1..=10 {
        storage.persist(&entries(index..=index, 1)).unwrap();
    }
    drop(storage);
    let file = log_file(dir);
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    (file, bytes)
}

#[test]
fn a_log_cut_off_at_any_byte_gives_back_a_whole_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = ten_entries(dir.path());
    let mut seen = 10;
    for end in (0..=bytes.len()).rev().step_by(37) {
        std::fs::write(&file, &bytes[..end]).unwrap();
        match Storage::open(dir.path()) {
            Ok((storage, durable)) => {
                let found = durable.entries.len();
                assert!(found <= seen, "cutting more off gave back more");
                seen = found;
                for (at, entry_found) in (1..).zip(&durable.entries) {
                    assert_eq!(entry_found, &entry(at, 1));
                }
                drop(storage);
            }
            Err(error) => assert!(error.to_string().contains("raft log"), "{error}"),
        }
    }
    assert!(seen < 10);
}

#[test]
fn a_damaged_byte_is_an_error_or_cuts_the_log_and_never_changes_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = ten_entries(dir.path());
    for at in (0..bytes.len()).step_by(53) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&file, &damaged).unwrap();
        if let Ok((_, durable)) = Storage::open(dir.path()) {
            for (index, entry_found) in (1..).zip(&durable.entries) {
                assert_eq!(entry_found, &entry(index, 1), "byte {at}");
            }
        }
    }
}

/// Where the records of a log file of one-entry writes end.
fn ends(bytes: &[u8]) -> Vec<usize> {
    (1..=bytes.len())
        .filter(|end| files::is_whole_until(&bytes[..*end], 1))
        .collect()
}

#[test]
fn a_torn_last_record_is_cut_off_and_nothing_before_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = ten_entries(dir.path());
    let ends = ends(&bytes);
    assert_eq!(ends.len(), 11, "a header and ten records");
    let last = ends[9]..ends[10];
    let mut torn: Vec<Vec<u8>> = last.clone().step_by(9).map(|end| bytes[..end].to_vec()).collect();
    // Pages reach the disk in any order: a hole with the rest of the record behind it.
    for at in last.clone().step_by(9) {
        let mut hole = bytes.clone();
        let end = (at + 16).min(last.end);
        hole[at..end].fill(0);
        if hole != bytes {
            torn.push(hole);
        }
    }
    for bytes in torn {
        std::fs::write(&file, &bytes).unwrap();
        let (mut storage, durable) = Storage::open(dir.path()).unwrap();
        assert_eq!(
            indices(&durable),
            (1..=9).map(|index| (index, 1)).collect::<Vec<_>>()
        );
        // It goes on where the whole records end.
        storage.persist(&entries(10..=10, 1)).unwrap();
        drop(storage);
        assert_eq!(Storage::open(dir.path()).unwrap().1.entries.len(), 10);
    }
}

#[test]
fn damage_before_a_whole_record_is_refused_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = ten_entries(dir.path());
    let ends = ends(&bytes);
    for at in (ends[0]..ends[9]).step_by(23) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x11;
        std::fs::write(&file, &damaged).unwrap();
        let error = Storage::open(dir.path())
            .err()
            .expect("it is not taken")
            .to_string();
        assert!(error.contains("is damaged at byte"), "{error}");
        assert!(error.contains("add it again under a new number"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), damaged, "it is left as it is");
    }
}

#[test]
fn a_long_run_keeps_the_log_below_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path()).unwrap();
    let mut most = 0;
    // Nothing that the engine could compress.
    let mut noise = 1_u64;
    let mut entry = |index| {
        let mut data = Vec::with_capacity(4096);
        while data.len() < 4096 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            data.extend(noise.to_le_bytes());
        }
        Entry {
            index,
            term: 1,
            data: data.into(),
            ..Entry::default()
        }
    };
    for round in 0..100_u64 {
        let first = round * 512 + 1;
        storage
            .persist(&Persist {
                entries: (first..first + 512).map(&mut entry).collect(),
                ..Persist::default()
            })
            .unwrap();
        storage
            .persist(&Persist {
                snapshot: Some(snapshot(first + 511, 1)),
                compact_to: Some(first + 255),
                ..Persist::default()
            })
            .unwrap();
        let files = std::fs::read_dir(dir.path().join("raft")).unwrap();
        let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        most = most.max(bytes);
    }
    println!("200 MiB were written; the log had at most {} MiB", most >> 20);
    assert!(most <= DISK_BYTES_MAX, "{most}");
    drop(storage);
    let (_, durable) = Storage::open(dir.path()).unwrap();
    assert_eq!(durable.entries.len(), 257);
}
