//! Random histories, played while generations are cut, shipped over memory and applied.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::mpsc;
use understudy_common::delta::{Frame, Identifiers};
use understudy_common::id::{Epoch, GenerationId, ServiceId};
use understudy_common::spec::Consistency;
use understudy_common::wire::{self, CopyState};

use super::pair::{Act, tree};
use crate::sync::cutter::Cutter;
use crate::sync::roots::Roots;
use crate::sync::scan::ScanSource;
use crate::sync::shipper::{Cut, Pipe, Shipper};
use crate::sync::store::Store;

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
    ];
    proptest::collection::vec(proptest::collection::vec(act, 0..8), 1..6)
}

/// A cutter and a store joined by memory.
pub struct Joined {
    cutter: Cutter,
    shipper: Shipper,
    frames: mpsc::UnboundedReceiver<Vec<u8>>,
    pub store: Store,
    cut: Option<Cut>,
}

pub const EPOCH: Epoch = Epoch(1);

impl Joined {
    pub fn new(from: &Path, to: &Path, state: &Path) -> Self {
        let (source, roots) = (
            ScanSource::new(vec![from.to_owned()]),
            Roots::new(vec![from.to_owned()]),
        );
        let mut cutter = Cutter::new(
            roots,
            Box::new(source),
            None,
            Consistency::Live,
            Duration::from_millis(50),
        );
        cutter.start(None).expect("watchable");
        let store = Store::open(ServiceId(1), "s", state, Roots::new(vec![to.to_owned()])).expect("fresh");
        let (sender, frames) = mpsc::unbounded_channel();
        let pipe = Pipe {
            frames: sender,
            inflight: Arc::new(AtomicUsize::new(0)),
        };
        let mut joined = Self {
            cutter,
            shipper: Shipper::new(pipe),
            frames,
            store,
            cut: None,
        };
        joined.hello();
        joined
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

    pub fn cut(&mut self, n: u64) -> GenerationId {
        let delta = self.cutter.cycle(true, true).expect("readable").expect("forced");
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
        std::iter::from_fn(|| self.frames.try_recv().ok()).collect()
    }

    pub fn deliver(&mut self) {
        for raw in self.frames() {
            let frame = wire::decode(&raw).expect("sound");
            for answer in self.store.handle(EPOCH, frame, &raw).expect("taken") {
                self.shipper.answer(answer, self.cut.as_ref());
            }
            self.store.checkpoint().expect("applied");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_trees_are_equal_after_each_generation(history in acts()) {
        let dir = tempfile::Builder::new().prefix("ussync").tempdir_in("/dev/shm").expect("tmpfs");
        let (from, to, state) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("state"));
        std::fs::create_dir(&from).expect("fresh");
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
}
