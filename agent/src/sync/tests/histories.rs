//! Random histories, played while generations are cut, shipped over memory and applied.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use proptest::prelude::*;
use tokio::sync::mpsc;
use understudy_common::delta::{Frame, Identifiers};
use understudy_common::id::{Epoch, GenerationId, ServiceId};
use understudy_common::spec::Consistency;
use understudy_common::wire::{self, CopyState, SyncFigures};

use super::pair::{Act, tree};
use crate::sync::cutter::{Cutter, Delta};
use crate::sync::roots::Roots;
use crate::sync::scan::ScanSource;
use crate::sync::shipper::{Cut, Pipe, Shipper, UNACKED_MAX};
use crate::sync::store::Store;
use crate::sync::testdisk::Disk;
use crate::sync::tracker::ChangeSource;

pub fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let act = prop_oneof![
        4 => (any::<u8>(), any::<u16>(), 1u16..20_000, any::<u8>()).prop_map(|(file, at, len, fill)| Act::Write { file, at, len, fill }),
        2 => (any::<u8>(), 1u16..20_000, any::<u8>()).prop_map(|(file, len, fill)| Act::Append { file, len, fill }),
        2 => (any::<u8>(), any::<u16>()).prop_map(|(file, len)| Act::Truncate { file, len }),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Act::Rename { from, to }),
        1 => any::<u8>().prop_map(|file| Act::Remove { file }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(file, mode)| Act::Mode { file, mode }),
        2 => any::<u8>().prop_map(|dir| Act::Dir { dir }),
        1 => any::<u8>().prop_map(|dir| Act::RemoveDir { dir }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Act::RenameDir { from, to }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(file, target)| Act::Symlink { file, target }),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Act::Link { from, to }),
        1 => (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(file, name, len)| Act::Xattr { file, name, len }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(name, device)| Act::Node { name, device }),
    ];
    proptest::collection::vec(proptest::collection::vec(act, 0..8), 1..6)
}

fn pipe() -> (Pipe, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (frames, receiver) = mpsc::unbounded_channel();
    let inflight = Arc::default();
    (Pipe { frames, inflight }, receiver)
}

/// An empty `from` on tmpfs, and where `to` and `state` go beside it; removed with the first value.
pub fn places() -> (tempfile::TempDir, [PathBuf; 3]) {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let places = ["from", "to", "state"].map(|name| dir.path().join(name));
    std::fs::create_dir(&places[0]).expect("fresh");
    (dir, places)
}

/// A cutter and a store joined by memory.
pub struct Joined {
    cutter: Cutter,
    shipper: Shipper,
    frames: mpsc::UnboundedReceiver<Vec<u8>>,
    inflight: Arc<AtomicUsize>,
    pub store: Store,
    cut: Option<Cut>,
    /// Bytes that were sent before there was a cut.
    drafted: u64,
}

pub const EPOCH: Epoch = Epoch(1);
const CYCLES_MAX: usize = 50;

impl Joined {
    /// By scanning.
    pub fn new(from: &Path, to: &Path, state: &Path) -> Self {
        Self::with(Box::new(ScanSource::new(vec![from.to_owned()])), from, to, state)
    }

    pub fn with(source: Box<dyn ChangeSource>, from: &Path, to: &Path, state: &Path) -> Self {
        let mut cutter = Cutter::new(
            Roots::new(vec![from.to_owned()]),
            source,
            None,
            Consistency::Live,
            Duration::from_millis(50),
        );
        cutter.start(None).expect("watchable");
        let store = Store::open(ServiceId(1), "s", state, Roots::new(vec![to.to_owned()])).expect("fresh");
        let (pipe, frames) = pipe();
        let mut joined = Self {
            cutter,
            inflight: Arc::clone(&pipe.inflight),
            shipper: Shipper::new(pipe),
            frames,
            store,
            cut: None,
            drafted: 0,
        };
        joined.hello();
        joined
    }

    /// A stream of its own, as after a redial.
    pub fn redial(&mut self) {
        let (pipe, frames) = pipe();
        self.inflight = Arc::clone(&pipe.inflight);
        (self.shipper, self.frames) = (Shipper::new(pipe), frames);
        self.hello();
    }

    pub fn set_rearm_max(&mut self, rearm_max: Duration) {
        self.cutter.set_rearm_max(rearm_max);
    }

    pub fn figures(&self) -> &SyncFigures {
        &self.cutter.figures
    }

    pub fn pages_reported(&self) -> u64 {
        self.cutter.pages_reported()
    }

    fn hello(&mut self) {
        let hello = Frame::Hello {
            service: ServiceId(1),
            epoch: EPOCH,
            identifiers: Identifiers::default(),
        };
        for answer in self.store.handle(EPOCH, hello, &[]).expect("taken") {
            assert!(self.shipper.answer(answer, self.cut.as_ref()));
        }
    }

    /// Cuts while nothing writes.
    pub fn cut(&mut self, n: u64) -> GenerationId {
        let delta = self.cutter.cycle(true, true).expect("readable").expect("forced");
        self.take_cut(n, delta)
    }

    /// Cuts as if the workload ran: rearmed, read live, read again.
    pub fn cut_live(&mut self, n: u64) -> GenerationId {
        let delta = (0..CYCLES_MAX).find_map(|_| {
            let delta = self.cutter.cycle(true, false).expect("readable");
            if self.cutter.is_behind() {
                self.draft(n);
            }
            delta
        });
        self.take_cut(
            n,
            delta.expect("nothing writes, so that no cut is discarded for ever"),
        )
    }

    fn draft(&mut self, n: u64) {
        let (generation, fresh) = (GenerationId { epoch: EPOCH, n }, self.cutter.take_fresh());
        self.drafted += self
            .shipper
            .draft(generation, self.cutter.manifest(), &fresh, &self.cutter)
            .full_bytes;
    }

    /// Cuts and ships as often as it goes while the workload writes.
    pub fn cycle(&mut self, n: u64) {
        if let Some(delta) = self.cutter.cycle(false, false).expect("readable") {
            self.take_cut(n, delta);
            self.deliver();
        }
    }

    fn take_cut(&mut self, n: u64, delta: Delta) -> GenerationId {
        let manifest = self.cutter.manifest().clone();
        let previous = self.cut.as_ref().map(|cut| cut.generation);
        let generation = GenerationId { epoch: EPOCH, n };
        self.cut = Some(Cut {
            generation,
            digest: manifest.digest(),
            manifest,
            delta,
            previous,
        });
        generation
    }

    /// The frames of the newest cut.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.shipper.ship(self.cut.as_ref().expect("cut"), &self.cutter);
        self.inflight.store(0, Ordering::Relaxed);
        std::iter::from_fn(|| self.frames.try_recv().ok()).collect()
    }

    pub fn deliver(&mut self) {
        let frames = self.frames();
        self.hand_over(frames);
    }

    fn hand_over(&mut self, frames: Vec<Vec<u8>>) {
        for raw in frames {
            let frame = wire::decode(&raw).expect("sound");
            for answer in self.store.handle(EPOCH, frame, &raw).expect("taken") {
                self.shipper.answer(answer, self.cut.as_ref());
            }
            self.store.checkpoint().expect("applied");
        }
    }
}

#[test]
fn a_first_copy_is_sent_while_it_is_read() {
    let (_dir, [from, to, state]) = places();
    let content: Vec<u8> = (0..400_000_u32)
        .flat_map(|word| (word / 7).to_le_bytes())
        .collect();
    std::fs::write(from.join("large"), &content).expect("room");
    std::fs::create_dir(from.join("sub")).expect("fresh");
    std::fs::write(from.join("sub/small"), "small").expect("room");
    // A scan doubts a file for a clock tick after it was written.
    std::thread::sleep(Duration::from_millis(60));
    let mut joined = Joined::new(&from, &to, &state);
    joined.cutter.set_live_max(100_000);
    joined.cut_live(1);
    let all = content.len() as u64 + 5;
    assert!(
        joined.drafted > all - 200_000 && joined.drafted <= all,
        "{} of {all} bytes",
        joined.drafted
    );
    assert!(
        joined.figures().bytes_read < all + 20 * 8_192,
        "each cycle reads what is left"
    );
    joined.deliver();
    assert_eq!(tree(&to), tree(&from));
    assert_eq!(joined.store.copy(), CopyState::Ready);
}

#[test]
fn sparse_files_stay_sparse_and_holes_are_not_read() {
    let Some(disk) = Disk::new(64) else { return };
    let [from, to, state] = ["from", "to", "state"].map(|name| disk.root().join(name));
    std::fs::create_dir(&from).expect("fresh");
    let file = std::fs::File::create(from.join("image")).expect("room");
    file.set_len(10 << 30).expect("a hole");
    for at in [0, 3 << 20, 7 << 30] {
        file.write_all_at(&[9; 3 * 4096], at).expect("room");
    }
    let mut joined = Joined::new(&from, &to, &state);
    joined.cut(1);
    joined.deliver();
    let allocated = |dir: &Path| std::fs::metadata(dir.join("image")).expect("there").blocks() * 512;
    assert_eq!(allocated(&to), allocated(&from));
    assert!(joined.figures().bytes_read < 1 << 20, "{:?}", joined.figures());
    assert_eq!(tree(&to), tree(&from));

    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 3 << 20, 2 * 4096).expect("ext4 has holes");
    joined.cut(2);
    joined.deliver();
    assert_eq!(allocated(&to), allocated(&from));
    assert_eq!(tree(&to), tree(&from));
}

/// VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE, permitted and effective (linux/capability.h).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Version 2: the owner reads and writes, user 1 reads, the group and others nothing (linux/posix_acl_xattr.h).
const ACCESS_LIST: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 1, 0, 0, 0, 4, 0, 0, 0, 255, 255, 255, 255, 16,
    0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

#[test]
fn owners_access_lists_and_capabilities_are_carried_also_when_the_content_changes() {
    let Some(disk) = Disk::new(64) else { return };
    let [from, to, state] = ["from", "to", "state"].map(|name| disk.root().join(name));
    std::fs::create_dir(&from).expect("fresh");
    let program = from.join("program");
    let give = |version: &str| {
        std::fs::write(&program, version).expect("room");
        // Writing took them away.
        xattr::set(&program, "security.capability", &CAPABILITY).expect("root may");
    };
    give("one");
    std::os::unix::fs::lchown(&program, Some(7), Some(8)).expect("root may");
    xattr::set(&program, "system.posix_acl_access", &ACCESS_LIST).expect("ext4 has them");
    give("one");
    let mut joined = Joined::new(&from, &to, &state);
    for n in 1..4 {
        joined.cut(n);
        joined.deliver();
        assert_eq!(tree(&to), tree(&from), "generation {n}");
        let there = |name| xattr::get(to.join("program"), name).expect("readable");
        assert_eq!(there("security.capability").as_deref(), Some(&CAPABILITY[..]));
        assert_eq!(
            there("system.posix_acl_access").as_deref(),
            Some(&ACCESS_LIST[..])
        );
        give(&"more".repeat(n as usize));
    }
}

#[test]
fn a_shadow_that_is_behind_catches_up_with_one_generation() {
    let (_dir, [from, to, state]) = places();
    let mut joined = Joined::new(&from, &to, &state);
    let sealed = |frames: &[Vec<u8>]| {
        let seal = |raw: &&Vec<u8>| matches!(wire::decode(raw).expect("sound"), Frame::Seal { .. });
        frames.iter().filter(seal).count()
    };
    let mut waiting = Vec::new();
    for n in 1..=12 {
        let content: String = (0..n * 700).map(|word| format!("{word} ")).collect();
        std::fs::write(from.join("log"), content).expect("writable");
        std::fs::write(from.join(n.to_string()), "new").expect("writable");
        joined.cut(n);
        waiting.extend(joined.frames());
    }
    assert_eq!(
        sealed(&waiting),
        UNACKED_MAX,
        "more are not begun before it answers"
    );
    joined.hand_over(waiting);
    assert_eq!(
        joined.store.generation(),
        Some(GenerationId { epoch: EPOCH, n: 4 })
    );
    let rest = joined.frames();
    assert_eq!(sealed(&rest), 1, "all that it missed is one");
    joined.hand_over(rest);
    assert_eq!(
        joined.store.generation(),
        Some(GenerationId { epoch: EPOCH, n: 12 })
    );
    assert_eq!(tree(&from), tree(&to));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_trees_are_equal_after_each_generation(history in acts()) {
        let (_dir, [from, to, state]) = places();
        let mut joined = Joined::new(&from, &to, &state);
        let mut seen = Vec::new();
        for (n, acts) in history.iter().enumerate() {
            acts.iter().for_each(|act| act.play(&from));
            let generation = joined.cut(n as u64 + 1);
            joined.deliver();
            prop_assert_eq!(joined.store.generation(), Some(generation));
            prop_assert_eq!(joined.store.copy(), CopyState::Ready);
            prop_assert_eq!(tree(&from), tree(&to));
            seen.push((generation, tree(&to)));
        }
        if let [.., (before, expected), _] = &seen[..] {
            joined.store.restore(*before).expect("kept");
            prop_assert_eq!(&tree(&to), expected);
        }
    }

    #[test]
    fn trees_are_equal_that_were_read_in_many_cycles(history in acts(), live_max in 20_000..200_000_u64) {
        let (_dir, [from, to, state]) = places();
        let mut joined = Joined::new(&from, &to, &state);
        joined.cutter.set_live_max(live_max);
        for (n, acts) in history.iter().enumerate() {
            acts.iter().for_each(|act| act.play(&from));
            joined.cut_live(n as u64 + 1);
            joined.deliver();
            prop_assert_eq!(joined.store.copy(), CopyState::Ready);
            prop_assert_eq!(tree(&from), tree(&to));
        }
    }
}
