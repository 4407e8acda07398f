use std::time::Duration;

use proptest::prelude::*;

use super::*;

const S: ServiceId = ServiceId(1);
const L: Duration = LeaseTimes::DEFAULT.lease;

fn client() -> LeaseClient {
    LeaseClient::new(HostId(1), LeaseTimes::DEFAULT, BootTime::from_ms(5_000))
}

fn renew_at(client: &mut LeaseClient, ms: u64) -> Renew {
    client.handle_tick(BootTime::from_ms(ms));
    client.poll_renew().expect("a renewal is due")
}

fn answer(renew: &Renew) -> Renewed {
    Renewed {
        sequence: renew.sequence,
        leases: renew.leases.clone(),
    }
}

#[test]
fn a_deadline_is_the_send_time_plus_the_lease_however_late_the_answer() {
    let mut client = client();
    client.hold(S, Epoch(1)).unwrap();
    let renew = renew_at(&mut client, 5_000);
    client.handle_renewed(BootTime::from_ms(5_900), &answer(&renew));
    let expected = GateChange {
        service: S,
        epoch: Epoch(1),
        deadline: BootTime::from_ms(5_000) + L,
        basis: Basis::Lease,
    };
    assert_eq!(client.poll_gate(), Some(expected));
    assert_eq!(client.poll_gate(), None);
}

#[test]
fn renewals_are_sent_at_the_renewal_interval_and_only_while_something_is_held() {
    let mut client = client();
    client.handle_tick(BootTime::from_ms(5_000));
    assert_eq!(client.poll_renew(), None);
    client.hold(S, Epoch(1)).unwrap();
    renew_at(&mut client, 5_050);
    client.handle_tick(BootTime::from_ms(5_249));
    assert_eq!(client.poll_renew(), None);
    assert_eq!(client.poll_timeout(), Some(BootTime::from_ms(5_250)));
    renew_at(&mut client, 5_250);
    client.fence(S, Epoch(1));
    assert_eq!(client.poll_timeout(), None);
    client.handle_tick(BootTime::from_ms(9_000));
    assert_eq!(client.poll_renew(), None);
}

#[test]
fn answers_out_of_order_never_shorten_a_lease() {
    let mut client = client();
    client.hold(S, Epoch(1)).unwrap();
    let first = renew_at(&mut client, 5_000);
    let second = renew_at(&mut client, 5_200);
    client.handle_renewed(BootTime::from_ms(5_300), &answer(&second));
    client.handle_renewed(BootTime::from_ms(5_310), &answer(&first));
    assert_eq!(client.held(S), Some((Epoch(1), BootTime::from_ms(5_200) + L)));
}

#[test]
fn an_answer_to_a_renewal_that_did_not_ask_for_the_epoch_is_ignored() {
    let mut client = client();
    client.hold(S, Epoch(1)).unwrap();
    let renew = renew_at(&mut client, 5_000);
    client.hold(S, Epoch(2)).unwrap();
    let forged = Renewed {
        sequence: renew.sequence,
        leases: vec![(S, Epoch(2))],
    };
    client.handle_renewed(BootTime::from_ms(5_100), &forged);
    client.handle_renewed(BootTime::from_ms(5_100), &answer(&renew));
    assert_eq!(client.poll_gate(), None);
}

#[test]
fn a_fenced_epoch_is_not_held_again_but_a_higher_one_is() {
    let mut client = client();
    client.hold(S, Epoch(2)).unwrap();
    client.fence(S, Epoch(2));
    let refused = HoldError::Fenced {
        service: S,
        epoch: Epoch(2),
        floor: Epoch(2),
    };
    assert_eq!(client.hold(S, Epoch(2)), Err(refused));
    client.hold(S, Epoch(3)).unwrap();
    let older = HoldError::Fenced {
        service: S,
        epoch: Epoch(1),
        floor: Epoch(2),
    };
    assert_eq!(client.hold(S, Epoch(1)), Err(older));
}

#[test]
fn a_full_host_refuses_another_service_and_forgets_no_fence() {
    let mut client = client();
    for n in 0..SERVICES_MAX as u32 {
        client.fence(ServiceId(n), Epoch(1));
    }
    client.fence(ServiceId(9_999), Epoch(1));
    assert_eq!(client.hold(ServiceId(9_999), Epoch(1)), Err(HoldError::Full));
    assert!(client.hold(ServiceId(3), Epoch(1)).is_err());
    client.hold(ServiceId(3), Epoch(2)).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Tick(u64),
    Hold(u64),
    Fence(u64),
    /// Answers the renewal this many back from the newest, perhaps again, perhaps with a made-up epoch.
    Answer(usize, Option<u64>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1..400_u64).prop_map(Op::Tick),
        1 => (1..5_u64).prop_map(Op::Hold),
        1 => (1..5_u64).prop_map(Op::Fence),
        4 => (0..30_usize, prop::option::weighted(0.1, 1..5_u64)).prop_map(|(back, epoch)| Op::Answer(back, epoch)),
    ]
}

proptest! {
    /// Against the full history: every extension is (send time of a renewal that asked for that very epoch
    /// and was answered) + L, and never of a fenced epoch.
    #[test]
    fn every_extension_is_covered_by_a_renewal_that_was_sent_and_answered(ops in prop::collection::vec(op(), 0..120)) {
        let mut client = client();
        let mut now = 5_000;
        let mut floor = 0;
        let mut sent: Vec<(u64, Renew)> = Vec::new();
        let mut allowed: Vec<(Epoch, BootTime)> = Vec::new();
        for op in ops {
            match op {
                Op::Tick(by) => {
                    now += by;
                    client.handle_tick(BootTime::from_ms(now));
                    while let Some(renew) = client.poll_renew() {
                        prop_assert!(renew.leases.iter().all(|(_, epoch)| epoch.0 > floor));
                        sent.push((now, renew));
                    }
                }
                Op::Hold(epoch) => {
                    let held = client.hold(S, Epoch(epoch)).is_ok();
                    prop_assert!(!held || epoch > floor);
                }
                Op::Fence(epoch) => {
                    client.fence(S, Epoch(epoch));
                    floor = floor.max(epoch);
                }
                Op::Answer(back, made_up) => {
                    let Some((at, renew)) = sent.iter().rev().nth(back) else { continue };
                    let mut renewed = answer(renew);
                    if let Some(epoch) = made_up {
                        renewed.leases = vec![(S, Epoch(epoch))];
                    }
                    for (_, epoch) in &renewed.leases {
                        if renew.leases.contains(&(S, *epoch)) {
                            allowed.push((*epoch, BootTime::from_ms(*at) + L));
                        }
                    }
                    client.handle_renewed(BootTime::from_ms(now), &renewed);
                }
            }
            while let Some(change) = client.poll_gate() {
                prop_assert!(change.epoch.0 > floor);
                prop_assert!(allowed.contains(&(change.epoch, change.deadline)));
                prop_assert!(change.deadline > BootTime::from_ms(now));
            }
            prop_assert!(client.outstanding.len() <= OUTSTANDING_MAX);
        }
    }
}
