//! Doing without the coordinators: promises and policies.

use std::time::Duration;

use proptest::prelude::*;
use understudy_common::abi::gate::GateEntry;
use understudy_common::spec::{RawServiceSpec, ServiceSpec};
use understudy_common::wire::Peer;

use super::*;

const S: ServiceId = ServiceId(1);
const E: Epoch = Epoch(3);
const A: HostId = HostId(2);
const B: HostId = HostId(3);
const T: LeaseTimes = LeaseTimes::DEFAULT;

fn at(ms: u64) -> BootTime {
    BootTime::from_ms(ms)
}

fn order(revision: u64, shadows: &[HostId], loss: CoordinatorLoss) -> Order {
    let toml = r#"
        name = "kv"
        paths = ["/srv/kv"]
        address = "192.0.2.50/24"
        interface = "eth0"
        hosts = [1, 2, 3]
        workload = { start = ["/bin/kv"], health = { tcp = "127.0.0.1:1" } }
    "#;
    let raw: RawServiceSpec = toml::from_str(toml).unwrap();
    let mut spec = ServiceSpec::try_from(raw).unwrap();
    spec.policy.coordinator_loss = loss;
    let addr = "192.0.2.12:7401".parse().unwrap();
    let shadows = shadows.iter().map(|host| Peer { host: *host, addr }).collect();
    Order {
        service: S,
        epoch: E,
        revision,
        role: Role::Serve { from: None, shadows },
        spec,
        holder: None,
        bounding: true,
        boot: 0,
    }
}

/// Holds epoch 3 by a renewal that was sent at 5,000 ms and answered.
fn holder(order: &Order) -> LeaseClient {
    let mut client = LeaseClient::new(HostId(1), T, at(5_000));
    client.handle_tick(at(5_000));
    client.handle_order(order, true);
    client.hold(S, E).unwrap();
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(5_010), &granted(&renew));
    client.poll_gate().unwrap();
    client
}

fn granted(renew: &Renew) -> Renewed {
    Renewed {
        sequence: renew.sequence,
        leases: renew.leases.clone(),
    }
}

fn refused(renew: &Renew) -> Renewed {
    Renewed {
        sequence: renew.sequence,
        leases: Vec::new(),
    }
}

fn asks(client: &mut LeaseClient, ms: u64) -> Vec<Ask> {
    client.handle_tick(at(ms));
    std::iter::from_fn(|| client.poll_ask()).collect()
}

fn promise(client: &mut LeaseClient, ms: u64, ask: &Ask) {
    let promised = Promised {
        sequence: ask.request.sequence,
        leases: ask.request.leases.clone(),
    };
    client.handle_promised(at(ms), ask.to, &promised);
}

#[test]
fn shadows_are_asked_after_two_renewal_intervals_without_an_answer() {
    let mut client = holder(&order(5, &[A, B], CoordinatorLoss::Stop));
    assert_eq!(asks(&mut client, 5_399), []);
    let first = asks(&mut client, 5_400);
    assert_eq!(first.iter().map(|ask| ask.to).collect::<Vec<_>>(), [A, B]);
    assert_eq!(first[0].request.leases, [(S, E)]);
    assert_eq!(asks(&mut client, 5_599), []);
    assert_eq!(asks(&mut client, 5_600).len(), 2);
}

#[test]
fn the_promises_of_all_shadows_extend_to_a_lease_after_the_oldest_was_asked_for() {
    let mut client = holder(&order(5, &[A, B], CoordinatorLoss::Stop));
    let first = asks(&mut client, 5_400);
    promise(&mut client, 5_450, &first[0]);
    assert_eq!(client.poll_gate(), None, "one is not all");
    let second = asks(&mut client, 5_600);
    promise(&mut client, 5_650, &second[1]);
    let change = client.poll_gate().unwrap();
    assert_eq!((change.deadline, change.basis), (at(6_400), Basis::Promises));
    promise(&mut client, 6_390, &second[0]);
    assert_eq!(client.poll_gate().unwrap().deadline, at(6_600));
    assert_eq!(client.basis(S).0, Basis::Promises);
}

#[test]
fn nobody_is_asked_without_a_set_that_bounds_who_may_be_promoted() {
    let mut unbound = order(5, &[A], CoordinatorLoss::Stop);
    unbound.bounding = false;
    let mut client = holder(&unbound);
    assert_eq!(asks(&mut client, 5_900), []);
    let mut client = holder(&order(5, &[], CoordinatorLoss::Stop));
    assert_eq!(asks(&mut client, 5_900), []);
    // An order that may not be the newest is as good as none.
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Stop));
    client.handle_order(&order(5, &[A], CoordinatorLoss::Stop), false);
    assert_eq!(asks(&mut client, 5_900), []);
}

#[test]
fn a_shadow_that_a_newer_order_names_has_to_promise_as_well() {
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Stop));
    let first = asks(&mut client, 5_400);
    client.handle_order(&order(6, &[A, B], CoordinatorLoss::Stop), true);
    promise(&mut client, 5_450, &first[0]);
    assert_eq!(client.poll_gate(), None);
}

#[test]
fn what_the_coordinators_refuse_is_not_kept_up_by_promises_or_policy() {
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Serve));
    client.handle_tick(at(5_200));
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(5_210), &refused(&renew));
    assert_eq!(asks(&mut client, 5_990), []);
    client.handle_tick(at(7_000));
    assert_eq!(client.poll_gate(), None);
    // They wait for word that it is over.
    assert_eq!(client.poll_forfeit(), Some((S, E)));
    assert_eq!(client.poll_forfeit(), None);
}

#[test]
fn a_lease_that_is_refused_under_the_plain_policy_may_come_back() {
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Stop));
    client.handle_tick(at(5_200));
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(5_210), &refused(&renew));
    assert_eq!(client.poll_forfeit(), None);
    client.handle_tick(at(5_400));
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(5_410), &granted(&renew));
    assert_eq!(client.poll_gate().unwrap().deadline, at(6_400));
    assert!(!asks(&mut client, 5_900).is_empty());
}

#[test]
fn an_old_refusal_says_nothing_after_a_newer_answer() {
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Serve));
    client.handle_tick(at(5_200));
    let old = client.poll_renew().unwrap();
    client.handle_tick(at(5_400));
    let new = client.poll_renew().unwrap();
    client.handle_renewed(at(5_410), &granted(&new));
    client.handle_renewed(at(5_420), &refused(&old));
    assert_eq!(client.poll_forfeit(), None);
    assert!(!client.is_lost(S));
}

#[test]
fn the_policy_serve_goes_on_by_itself_and_tells_for_how_long() {
    let mut client = holder(&order(5, &[A], CoordinatorLoss::Serve));
    client.handle_tick(at(5_599));
    assert_eq!(client.poll_gate(), None);
    client.handle_tick(at(5_600));
    let change = client.poll_gate().unwrap();
    assert_eq!((change.deadline, change.basis), (at(6_600), Basis::Policy));
    client.handle_tick(at(6_100));
    assert_eq!(client.poll_gate().unwrap().deadline, at(7_100));
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(6_150), &granted(&renew));
    let (basis, apart) = client.basis(S);
    let expected = Apart {
        since: at(5_600),
        until: at(7_100),
        basis: Basis::Policy,
        epoch: E,
    };
    assert_eq!(
        (basis, apart),
        (Basis::Policy, Some(expected)),
        "until the lease lasts longer"
    );
    client.handle_tick(at(6_300));
    let renew = client.poll_renew().unwrap();
    client.handle_renewed(at(6_310), &granted(&renew));
    let (basis, apart) = client.basis(S);
    assert_eq!(basis, Basis::Lease);
    assert_eq!(apart.unwrap().until, at(6_310));
}

#[test]
fn the_policy_read_only_goes_on_only_if_writes_ended_within_the_lease() {
    let mut client = holder(&order(5, &[], CoordinatorLoss::ReadOnly));
    client.handle_tick(at(5_700));
    assert!(client.is_lost(S) && client.poll_gate().is_none());
    client.set_read_only(S, E, true);
    client.handle_tick(at(5_999));
    assert_eq!(client.poll_gate().unwrap().basis, Basis::Policy);
    assert!(client.is_lost(S));

    let mut late = holder(&order(5, &[], CoordinatorLoss::ReadOnly));
    late.handle_tick(at(6_000));
    late.set_read_only(S, E, true);
    late.handle_tick(at(6_001));
    assert_eq!(late.poll_gate(), None);
}

#[test]
fn an_adopted_lease_is_extended_by_promises_in_time() {
    let mut client = LeaseClient::new(HostId(1), T, at(5_000));
    client.handle_tick(at(5_000));
    client.handle_order(&order(5, &[A], CoordinatorLoss::Stop), true);
    client.hold(S, E).unwrap();
    client.adopt(S, E, at(5_500));
    let ask = asks(&mut client, 5_001);
    promise(&mut client, 5_010, &ask[0]);
    assert_eq!(client.poll_gate().unwrap().deadline, at(6_001));
}

/// One host's clock: 1 ms of truth is 1 ms and its drift on it.
#[derive(Clone, Copy, Debug)]
struct Drift(i64);

impl Drift {
    fn at(self, truth_us: u64) -> BootTime {
        let us = i128::from(truth_us) * i128::from(1_000_000 + self.0) / 1_000_000;
        BootTime(u64::try_from(us).unwrap() * 1_000 + 1_000_000)
    }
}

/// A message between the holder and a shadow.
#[derive(Clone, Debug)]
enum Letter {
    Ask(Ask),
    Answer(HostId, Promised),
}

proptest! {
    /// However letters are delayed, lost and repeated, clocks drift, later epochs reach the shadows and their
    /// agents restart: while the holder's gate is open by promises, no shadow's gate is.
    #[test]
    fn no_shadow_opens_while_the_holder_is_open_by_promises(
        drifts in prop::array::uniform3(-500_i64..=500),
        dice in prop::collection::vec((0_u64..120_000, any::<u8>(), any::<u16>()), 1..250),
    ) {
        let drifts = drifts.map(Drift);
        let mut client = LeaseClient::new(HostId(1), T, drifts[0].at(0));
        client.handle_tick(drifts[0].at(0));
        client.handle_order(&order(5, &[A, B], CoordinatorLoss::Stop), true);
        client.hold(S, E).unwrap();
        let mut holder = GateEntry::default();
        let mut shadows = [GateEntry::default(); 2];
        let mut seen = [E; 2];
        let mut post: Vec<Letter> = Vec::new();
        let mut truth = 0;
        let mut promises = 0;
        for (pass, what, which) in dice {
            truth += pass;
            let now = drifts.map(|drift| drift.at(truth));
            client.handle_tick(now[0]);
            while let Some(ask) = client.poll_ask() {
                post.push(Letter::Ask(ask));
            }
            let shadow = usize::from(which % 2);
            match what {
                // A later epoch is granted to a shadow, which opens as soon as it may.
                0..=9 => {
                    seen[shadow] = seen[shadow].next();
                    shadows[shadow].apply_seen(seen[shadow].0, 0);
                    shadows[shadow].apply_open(seen[shadow].0, u64::MAX);
                }
                // Its pins are lost, and its agent starts.
                10..=14 => {
                    shadows[shadow] = GateEntry::default();
                    let until = now[shadow + 1] + T.promise();
                    shadows[shadow].apply_forgotten(now[shadow + 1].0, until.0);
                    // The coordinators promote nobody on that boot until it joined anew.
                    seen[shadow] = Epoch(seen[shadow].0 + 1);
                    shadows[shadow].apply_seen(seen[shadow].0, 0);
                    shadows[shadow].apply_open(seen[shadow].0, u64::MAX);
                }
                15..=40 if !post.is_empty() => {
                    post.swap_remove(usize::from(which) % post.len());
                }
                _ if !post.is_empty() => {
                    let letter = post[usize::from(which) % post.len()].clone();
                    match letter {
                        Letter::Ask(ask) => {
                            let index = usize::from(ask.to == B);
                            let at = now[index + 1];
                            let follows = seen[index] == E;
                            if follows && shadows[index].apply_promise(at.0, E.0, (at + T.promise()).0) {
                                promises += 1;
                                let Ask { to, request: PromiseRequest { sequence, leases, .. } } = ask;
                                post.push(Letter::Answer(to, Promised { sequence, leases }));
                            }
                        }
                        Letter::Answer(from, promised) => client.handle_promised(now[0], from, &promised),
                    }
                }
                _ => {}
            }
            while let Some(change) = client.poll_gate() {
                prop_assert_eq!(change.basis, Basis::Promises);
                holder.apply_open(change.epoch.0, change.deadline.0);
            }
            prop_assert!(promises > 0 || !holder.is_open(now[0].0));
            // Now and at every instant to come, as things are.
            for ahead in [0, 1_000, 300_000, 900_000] {
                let open = |index: usize, entry: &GateEntry| entry.is_open(drifts[index].at(truth + ahead).0);
                let others = open(1, &shadows[0]) || open(2, &shadows[1]);
                prop_assert!(!(open(0, &holder) && others), "two gates are open");
            }
        }
    }
}

#[test]
fn times_of_a_promise_cover_a_lease_of_a_slower_clock() {
    assert!(T.promise() > T.lease + Duration::from_millis(1));
}
