//! The receiver's disk loses its power at every durable step: what was acknowledged is there afterwards.

use std::fs::{self, File};

use understudy_common::id::{GenerationId, ServiceId};
use understudy_common::wire::CopyState;

use super::crash::{FIRST, SECOND, receive};
use super::histories::{Joined, places};
use super::pair::tree;
use crate::sync::journal::crash;
use crate::sync::roots::Roots;
use crate::sync::store::Store;
use crate::sync::testdisk::Disk;

/// What one cut showed.
struct Round {
    acknowledged: bool,
    /// The cut came after the last step.
    whole: bool,
    first: GenerationId,
    second: GenerationId,
    store: Store,
    before: Tree,
    after: Tree,
    there: Tree,
}

type Tree = std::collections::BTreeMap<understudy_common::delta::RelPath, understudy_common::delta::Entry>;

/// The second generation is received until the `step`th durable step, when the power fails. A broken receiver
/// forgets to sync it.
fn round(disk: &Disk, step: u32, forgets: bool) -> Round {
    let home = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let from = home.path().join("from");
    fs::create_dir(&from).expect("fresh");
    let here = disk.root().join(step.to_string());
    fs::create_dir(&here).expect("fresh");
    let (to, state) = (here.join("to"), here.join("state"));
    let mut joined = Joined::new(&from, &to, &state);
    FIRST.iter().for_each(|act| act.play(&from));
    let first = joined.cut(1);
    joined.deliver();
    let before = tree(&to);
    SECOND.iter().for_each(|act| act.play(&from));
    let second = joined.cut(2);
    let frames = joined.frames();
    crash::arm_power(step, File::open(disk.root()).expect("mounted"));
    crash::forget_syncs(forgets);
    let received = receive(&mut joined.store, &frames);
    crash::forget_syncs(false);
    crash::arm(None);
    drop(joined);
    disk.power_cycle().expect("it mounts again");
    let store = Store::open(ServiceId(1), "s", &state, Roots::new(vec![to.clone()])).expect("recovers");
    Round {
        acknowledged: received.is_some(),
        whole: received == Some(true),
        first,
        second,
        store,
        before,
        after: tree(&from),
        there: tree(&to),
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_step() {
    let Some(disk) = Disk::new(64) else { return };
    let (mut steps, mut acknowledged) = (0, 0);
    loop {
        let round = round(&disk, steps, false);
        assert_eq!(round.store.copy(), CopyState::Ready, "step {steps}");
        let found = round.store.generation();
        if round.acknowledged {
            acknowledged += 1;
            assert_eq!(found, Some(round.second), "step {steps}: it was acknowledged");
        }
        let expected = match found {
            Some(found) if found == round.second => &round.after,
            Some(found) if found == round.first => &round.before,
            other => panic!("step {steps}: {other:?} was never sealed"),
        };
        assert!(
            round.there == *expected,
            "step {steps}: the files are of {found:?}"
        );
        if round.whole {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15, "{steps} steps");
    assert!(
        acknowledged > 5,
        "{acknowledged} cuts came after the acknowledgement"
    );
}

#[test]
fn a_journal_that_is_not_synced_is_caught() {
    let Some(disk) = Disk::new(64) else { return };
    let lost = (0..60).any(|step| {
        let round = round(&disk, step, true);
        round.acknowledged && round.store.generation() != Some(round.second)
    });
    assert!(lost, "the power cut loses what was not synced");
}

#[test]
fn a_first_copy_survives_a_power_cut_at_any_step_or_is_gone_on_with() {
    let Some(disk) = Disk::new(64) else { return };
    let (mut steps, mut acknowledged) = (0, 0);
    loop {
        let (_home, [from, _, _]) = places();
        let here = disk.root().join(steps.to_string());
        fs::create_dir(&here).expect("fresh");
        let (to, state) = (here.join("to"), here.join("state"));
        let mut joined = Joined::new(&from, &to, &state);
        FIRST.iter().for_each(|act| act.play(&from));
        let first = joined.cut(1);
        let frames = joined.frames();
        crash::arm_power(steps, File::open(disk.root()).expect("mounted"));
        let received = receive(&mut joined.store, &frames);
        crash::arm(None);
        // Nothing is open on the disk that is taken away.
        joined.store = Store::open(
            ServiceId(1),
            "s",
            &from.with_file_name("none"),
            Roots::new(Vec::new()),
        )
        .expect("empty");
        disk.power_cycle().expect("it mounts again");
        let store = Store::open(ServiceId(1), "s", &state, Roots::new(vec![to.clone()])).expect("recovers");
        let ready = store.copy() == CopyState::Ready;
        if received.is_some() {
            acknowledged += 1;
            assert!(
                ready && store.generation() == Some(first),
                "step {steps}: it was acknowledged"
            );
        }
        joined.store = store;
        joined.redial();
        // Once to ask what is there.
        joined.deliver();
        joined.deliver();
        assert_eq!(joined.store.generation(), Some(first), "step {steps}");
        assert_eq!(joined.store.copy(), CopyState::Ready, "step {steps}");
        assert_eq!(tree(&to), tree(&from), "step {steps}");
        if received == Some(true) {
            break;
        }
        steps += 1;
    }
    assert!(
        steps > 15 && acknowledged > 0,
        "{steps} steps, {acknowledged} acknowledged"
    );
}
