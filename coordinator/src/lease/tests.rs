use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;

use super::LeaseTable;

const KV: ServiceId = ServiceId(1);
const E1: Epoch = Epoch(1);

fn at(ms: u64) -> BootTime {
    BootTime::from_ms(ms)
}

fn table() -> LeaseTable {
    let mut table = LeaseTable::new(LeaseTimes::DEFAULT, at(0));
    table.restart(at(5_000));
    table.observe(at(5_000), KV, E1);
    table
}

fn ended(table: &mut LeaseTable, ms: u64) -> bool {
    table.handle_tick(at(ms));
    table.ended_at(KV, E1).is_some()
}

#[test]
fn a_new_leader_waits_a_whole_lease_even_without_any_renewal() {
    let mut table = table();
    assert!(!ended(&mut table, 6_020));
    assert!(ended(&mut table, 6_021));
}

#[test]
fn the_wait_counts_from_the_arrival_of_the_last_renewal() {
    let mut table = table();
    table.renew(KV, at(5_700));
    assert!(!ended(&mut table, 6_720));
    assert!(ended(&mut table, 6_721));
}

#[test]
fn a_reported_fence_ends_the_lease_at_once() {
    let mut table = table();
    table.fence(KV, E1);
    assert!(!table.may_renew(at(5_001), KV, E1));
    assert!(ended(&mut table, 5_001));
}

#[test]
fn a_lease_that_is_waited_out_is_not_renewed() {
    let mut table = table();
    assert!(table.may_renew(at(5_100), KV, E1));
    table.condemn(KV, E1);
    assert!(!table.may_renew(at(5_100), KV, E1));
}

#[test]
fn an_ended_lease_comes_back_only_while_nobody_can_take_over() {
    let mut table = table();
    assert!(ended(&mut table, 7_000));
    assert!(!table.may_renew(at(7_000), KV, E1));
    table.strand(KV, E1);
    assert!(table.may_renew(at(7_000), KV, E1));
    table.succeed(KV, E1);
    assert!(!table.may_renew(at(7_000), KV, E1));
}

#[test]
fn another_epoch_is_never_renewed() {
    assert!(!table().may_renew(at(5_100), KV, Epoch(2)));
}

#[test]
fn a_set_that_grew_is_waited_for_as_if_the_holder_had_renewed() {
    let mut table = table();
    table.set_terms(at(5_000), KV, &[HostId(2)].into(), true);
    table.set_terms(at(5_900), KV, &[HostId(2), HostId(3)].into(), true);
    table.set_terms(at(6_000), KV, &[HostId(3)].into(), true);
    assert!(!ended(&mut table, 6_920));
    assert!(ended(&mut table, 6_921));
    // Also when the lease seemed over.
    table.set_terms(at(6_950), KV, &[HostId(2), HostId(3)].into(), true);
    assert!(!ended(&mut table, 7_970));
    assert!(ended(&mut table, 7_971));
}

#[test]
fn a_set_that_grew_takes_nothing_back_from_a_fence() {
    let mut table = table();
    table.fence(KV, E1);
    assert!(ended(&mut table, 5_001));
    table.set_terms(at(5_002), KV, &[HostId(2)].into(), true);
    assert!(ended(&mut table, 5_002));
}

#[test]
fn silence_says_nothing_of_a_holder_that_may_go_on() {
    let mut table = table();
    table.set_terms(at(5_000), KV, &[HostId(2)].into(), false);
    assert!(!ended(&mut table, 900_000));
    assert!(table.may_renew(at(900_000), KV, E1), "it is welcome back");
    table.condemn(KV, E1);
    assert!(!ended(&mut table, 900_001) && !table.may_renew(at(900_001), KV, E1));
    // Somebody vouches for its death: from then on it is waited out.
    table.set_terms(at(900_002), KV, &[HostId(2)].into(), true);
    assert!(!ended(&mut table, 901_022));
    assert!(ended(&mut table, 901_023));
}

#[test]
fn a_holder_that_may_go_on_is_over_once_it_says_that_it_is_fenced() {
    let mut table = table();
    table.set_terms(at(5_000), KV, &[HostId(2)].into(), false);
    table.fence(KV, E1);
    assert!(ended(&mut table, 5_001));
}
