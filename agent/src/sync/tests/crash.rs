//! The receiver is stopped at every durable step; what it finds afterwards is a sealed generation.

use std::path::Path;

use understudy_common::delta::{Frame, Op};
use understudy_common::id::ServiceId;
use understudy_common::wire::{self, CopyState};

use super::histories::{Joined, places};
use super::pair::{Act, tree};
use crate::sync::journal::crash;
use crate::sync::roots::Roots;
use crate::sync::store::{Store, StoreError};

pub(super) const FIRST: [Act; 6] = [
    Act::Dir { dir: 0 },
    Act::Write {
        file: 0,
        at: 0,
        len: 20_000,
        fill: 1,
    },
    Act::Write {
        file: 1,
        at: 0,
        len: 9_000,
        fill: 2,
    },
    Act::Write {
        file: 4,
        at: 0,
        len: 5_000,
        fill: 3,
    },
    Act::Write {
        file: 2,
        at: 0,
        len: 100,
        fill: 4,
    },
    Act::Symlink { file: 3, target: 1 },
];
pub(super) const SECOND: [Act; 8] = [
    Act::Rename { from: 0, to: 6 },
    Act::Rename { from: 1, to: 0 },
    Act::Write {
        file: 1,
        at: 0,
        len: 3_000,
        fill: 5,
    },
    Act::Write {
        file: 6,
        at: 4_096,
        len: 4_096,
        fill: 6,
    },
    Act::Remove { file: 2 },
    Act::Remove { file: 3 },
    Act::Truncate { file: 4, len: 10 },
    Act::Dir { dir: 1 },
];

#[test]
fn a_crash_at_any_step_leaves_exactly_a_sealed_generation() {
    let mut last = false;
    let mut steps = 0;
    while !last {
        let (_dir, [from, to, state]) = places();
        let mut joined = Joined::new(&from, &to, &state);
        FIRST.iter().for_each(|act| act.play(&from));
        let first = joined.cut(1);
        joined.deliver();
        let before = tree(&to);
        SECOND.iter().for_each(|act| act.play(&from));
        let second = joined.cut(2);
        let frames = joined.frames();
        crash::arm(Some(steps));
        let acknowledged = receive(&mut joined.store, &frames);
        crash::arm(None);
        last = acknowledged == Some(true);
        let store = Store::open(ServiceId(1), "s", &state, Roots::new(vec![to.clone()])).expect("recovers");
        assert_eq!(store.copy(), CopyState::Ready, "step {steps}");
        let found = store.generation();
        if acknowledged.is_some() {
            assert_eq!(
                found,
                Some(second),
                "step {steps}: an acknowledged generation is there"
            );
        }
        let expected = if found == Some(second) {
            tree(&from)
        } else {
            before
        };
        assert!(
            found == Some(second) || found == Some(first),
            "step {steps}: {found:?}"
        );
        assert_eq!(tree(&to), expected, "step {steps}");
        steps += 1;
    }
    assert!(steps > 15, "{steps} steps");
}

#[test]
fn a_first_copy_that_is_stopped_at_any_step_is_gone_on_with() {
    for step in 0.. {
        let (_dir, [from, to, state]) = places();
        let mut joined = Joined::new(&from, &to, &state);
        FIRST.iter().for_each(|act| act.play(&from));
        let first = joined.cut(1);
        let frames = joined.frames();
        crash::arm(Some(step));
        let acknowledged = receive(&mut joined.store, &frames);
        crash::arm(None);
        joined.store =
            Store::open(ServiceId(1), "s", &state, Roots::new(vec![to.clone()])).expect("recovers");
        let ready = joined.store.copy() == CopyState::Ready;
        if acknowledged.is_some() {
            assert!(ready, "step {step}: it was acknowledged");
        }
        if !ready {
            let refused = joined.store.promote(super::histories::EPOCH);
            assert!(
                matches!(refused, Err(StoreError::NotReady)),
                "step {step}: half a copy is no copy: {refused:?}"
            );
        }
        joined.redial();
        // Once to ask what is there.
        joined.deliver();
        joined.deliver();
        assert_eq!(joined.store.generation(), Some(first), "step {step}");
        assert_eq!(joined.store.copy(), CopyState::Ready, "step {step}");
        assert_eq!(tree(&to), tree(&from), "step {step}");
        assert!(!service(&state).join("filling").exists(), "step {step}");
        if acknowledged == Some(true) {
            assert!(step > 15, "{step} steps");
            return;
        }
    }
}

#[test]
fn a_first_copy_that_was_cut_off_is_not_sent_again() {
    let (_dir, [from, to, state]) = places();
    let mut joined = Joined::new(&from, &to, &state);
    FIRST.iter().for_each(|act| act.play(&from));
    joined.cut(1);
    let writes = |frames: &[Vec<u8>]| {
        let decoded = frames
            .iter()
            .map(|raw| wire::decode::<Frame>(raw).expect("sound"));
        let ops = decoded.filter_map(|frame| match frame {
            Frame::Ops(ops) => Some(ops),
            _ => None,
        });
        ops.flatten().filter(|op| matches!(op, Op::Write { .. })).count()
    };
    let frames = joined.frames();
    assert!(writes(&frames) > 0);
    let (_, without_seal) = frames.split_last().expect("there");
    receive(&mut joined.store, without_seal);
    joined.redial();
    // The way starts with the question for what is there.
    joined.deliver();
    let rest = joined.frames();
    assert_eq!(writes(&rest), 0, "all contents are there");
    receive(&mut joined.store, &rest);
    assert_eq!(joined.store.copy(), CopyState::Ready);
    assert_eq!(tree(&to), tree(&from));
}

/// Where a child process finds its directory and the step at which it is killed.
const DIRECTORY: &str = "UNDERSTUDY_TEST_JOURNAL";
const STEP: &str = "UNDERSTUDY_TEST_JOURNAL_STEP";
/// The child's exit code when it came to the end alive.
const ALIVE: i32 = 7;

/// Not a test of its own: the process that the next test kills in mid-journal.
#[test]
fn journal_process() {
    let (Ok(dir), Ok(step)) = (std::env::var(DIRECTORY), std::env::var(STEP)) else {
        return;
    };
    let dir = Path::new(&dir);
    let mut joined = Joined::new(&dir.join("from"), &dir.join("to"), &dir.join("state"));
    FIRST.iter().for_each(|act| act.play(&dir.join("from")));
    joined.cut(1);
    joined.deliver();
    SECOND.iter().for_each(|act| act.play(&dir.join("from")));
    joined.cut(2);
    let frames = joined.frames();
    crash::arm_kill(step.parse().expect("a number"));
    receive(&mut joined.store, &frames);
    std::process::exit(ALIVE);
}

#[test]
fn a_receiver_killed_in_mid_journal_comes_back_at_a_sealed_generation() {
    let own = std::env::current_exe().expect("this test");
    let (mut killed, mut seen) = (0, std::collections::BTreeSet::new());
    for step in 0.. {
        let dir = tempfile::Builder::new()
            .prefix("ussync")
            .tempdir_in("/dev/shm")
            .expect("tmpfs");
        std::fs::create_dir(dir.path().join("from")).expect("fresh");
        let status = std::process::Command::new(&own)
            .args(["--exact", "sync::tests::crash::journal_process"])
            .env(DIRECTORY, dir.path())
            .env(STEP, step.to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .expect("started");
        let (to, state) = (dir.path().join("to"), dir.path().join("state"));
        let store = Store::open(ServiceId(1), "s", &state, Roots::new(vec![to])).expect("recovers");
        assert_eq!(store.copy(), CopyState::Ready, "step {step}");
        seen.insert(store.generation().map(|generation| generation.n));
        if status.code() == Some(ALIVE) {
            break;
        }
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(libc::SIGKILL), "step {step}: {status}");
        killed += 1;
    }
    assert!(killed > 15, "{killed} steps");
    assert_eq!(seen, [Some(1), Some(2)].into());
}

/// `None` when the seal was not acknowledged, else whether the checkpoint was done too.
pub(super) fn receive(store: &mut Store, frames: &[Vec<u8>]) -> Option<bool> {
    let mut acknowledged = None;
    for raw in frames {
        let frame = wire::decode(raw).expect("sound");
        match store.handle(super::histories::EPOCH, frame, raw) {
            Ok(answers) if !answers.is_empty() => acknowledged = Some(false),
            Ok(_) => {}
            Err(_) => return acknowledged,
        }
        match store.checkpoint() {
            Ok(()) => acknowledged = acknowledged.map(|_| true),
            Err(_) => return acknowledged,
        }
    }
    acknowledged
}

#[test]
fn a_garbled_journal_is_dropped_and_the_sealed_state_kept() {
    let (_dir, [from, to, state]) = places();
    let mut joined = Joined::new(&from, &to, &state);
    FIRST.iter().for_each(|act| act.play(&from));
    let first = joined.cut(1);
    joined.deliver();
    let name = "00000000000000000001.00000000000000000002.redo";
    std::fs::write(service(&state).join(name), b"\x10\0\0\0garbage").expect("written");
    let store = Store::open(ServiceId(1), "s", &state, Roots::new(vec![to.clone()])).expect("recovers");
    assert_eq!(
        (store.generation(), store.copy()),
        (Some(first), CopyState::Ready)
    );
    assert_eq!(tree(&to), tree(&from));
}

fn service(state: &Path) -> std::path::PathBuf {
    crate::sync::identity::service_dir(state, "s")
}
