use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::spec::{Ack, Consistency, CoordinatorLoss, Health, Policy, ServiceSpec, Workload};
use understudy_common::units::BootTime;
use understudy_common::wire::{FinalCut, Order, Peer, Refusal, Role};

use super::{Action, Event, Job, Machine, Outcome, SyncStatus};

const S: ServiceId = ServiceId(1);
const LEASE: Duration = Duration::from_secs(1);

fn spec() -> ServiceSpec {
    ServiceSpec {
        name: "store".to_owned(),
        paths: vec!["/srv/store".to_owned()],
        address: Ipv4Addr::new(192, 0, 2, 50),
        prefix_len: 24,
        interface: "eth0".to_owned(),
        consistency: Consistency::Freeze,
        freeze_ms_max: 50,
        ack: Ack::Written,
        hosts: vec![HostId(1), HostId(2)],
        workload: Workload {
            start: vec!["/bin/true".to_owned()],
            stop_timeout: Duration::from_secs(1),
            health: Health::Exec(vec!["/bin/true".to_owned()]),
            start_timeout: Duration::from_secs(1),
            read_only: Vec::new(),
            read_write: Vec::new(),
        },
        policy: Policy::default(),
    }
}

fn order(epoch: u64, revision: u64, role: Role) -> Order {
    Order {
        service: S,
        epoch: Epoch(epoch),
        revision,
        role,
        spec: spec(),
        holder: None,
        bounding: true,
        boot: 0,
    }
}

fn peers() -> Vec<Peer> {
    vec![Peer {
        host: HostId(2),
        addr: "192.0.2.12:7401".parse().unwrap(),
    }]
}

fn serve() -> Role {
    Role::Serve {
        from: None,
        shadows: peers(),
    }
}

fn shadow() -> Role {
    Role::Shadow { primary: HostId(2) }
}

/// Everything succeeds, in the order in which it is asked for.
struct Obliging {
    machine: Machine,
    now: BootTime,
    did: Vec<Action>,
}

impl Obliging {
    fn new() -> Self {
        Self {
            machine: Machine::new(S),
            now: BootTime::from_ms(1_000),
            did: Vec::new(),
        }
    }

    fn event(&mut self, event: Event) {
        self.machine.handle_event(self.now, event);
    }

    fn obey(&mut self, order: Order) -> Vec<Action> {
        self.machine.handle_order(order).unwrap();
        self.run()
    }

    fn run(&mut self) -> Vec<Action> {
        let from = self.did.len();
        while let Some(action) = self.machine.poll_action(self.now) {
            self.did.push(action.clone());
            let event = match action {
                Action::Guard => Event::Guarded { floor: Epoch(0) },
                Action::Fence { epoch } => Event::Fenced { epoch },
                Action::Hold { epoch } => {
                    self.event(Event::Held { epoch });
                    let deadline = self.now + LEASE;
                    Event::Opened { epoch, deadline }
                }
                Action::Do(Job::FinalCut) => Event::Finished(Ok(Outcome::Cut(cut(1)))),
                Action::Do(_) => Event::Finished(Ok(Outcome::Done)),
                Action::Interrupt | Action::Sustain { .. } => continue,
            };
            self.event(event);
        }
        self.did[from..].to_vec()
    }

    fn serving(&self) -> Option<Epoch> {
        self.machine.report(self.now).unwrap().serving
    }
}

fn cut(epoch: u64) -> FinalCut {
    FinalCut {
        epoch: Epoch(epoch),
        generation: GenerationId {
            epoch: Epoch(epoch),
            n: 7,
        },
        acked_by: vec![HostId(2)],
    }
}

fn own(epoch: u64) -> Action {
    Action::Do(Job::Own {
        epoch: Epoch(epoch),
        from: None,
        shadows: peers(),
    })
}

#[test]
fn a_service_is_guarded_owned_started_and_only_then_reachable() {
    let mut host = Obliging::new();
    let did = host.obey(order(1, 5, serve()));
    let expected = [
        Action::Guard,
        Action::Hold { epoch: Epoch(1) },
        own(1),
        Action::Do(Job::StartWorkload),
        Action::Do(Job::TakeAddress),
    ];
    assert_eq!(did, expected);
    assert_eq!(host.serving(), Some(Epoch(1)));
    host.now = host.now + LEASE;
    assert_eq!(host.serving(), None, "its lease has ended");
}

#[test]
fn a_release_fences_first_and_cuts_only_what_has_stopped() {
    let mut host = Obliging::new();
    host.obey(order(1, 5, serve()));
    let did = host.obey(order(1, 6, Role::Release { shadows: peers() }));
    let expected = [
        Action::Fence { epoch: Epoch(1) },
        Action::Do(Job::StopWorkload),
        Action::Do(Job::FinalCut),
    ];
    assert_eq!(did, expected);
    let report = host.machine.report(host.now).unwrap();
    assert_eq!(
        (report.serving, report.fenced, report.final_cut),
        (None, Epoch(1), Some(cut(1)))
    );
    let did = host.obey(order(2, 7, shadow()));
    let expected = [
        Action::Fence { epoch: Epoch(2) },
        Action::Do(Job::LeaveAddress),
        Action::Do(Job::Disown),
        Action::Do(Job::Follow {
            primary: HostId(2),
            epoch: Epoch(2),
        }),
    ];
    assert_eq!(did, expected);
}

#[test]
fn an_older_epoch_is_refused_and_an_older_revision_changes_nothing() {
    let mut host = Obliging::new();
    host.obey(order(3, 9, shadow()));
    let refused = host.machine.handle_order(order(2, 10, serve()));
    let (order_epoch, seen) = (Epoch(2), Epoch(3));
    assert_eq!(
        refused,
        Err(Refusal::StaleEpoch {
            order: order_epoch,
            seen
        })
    );
    assert_eq!(host.obey(order(3, 8, Role::Idle)), []);
}

#[test]
fn a_fence_does_not_wait_for_a_start_and_ends_it() {
    let mut host = Obliging::new();
    host.machine.handle_order(order(1, 5, serve())).unwrap();
    loop {
        match host.machine.poll_action(host.now).unwrap() {
            Action::Guard => host.event(Event::Guarded { floor: Epoch(0) }),
            Action::Hold { epoch } => host.event(Event::Held { epoch }),
            Action::Do(Job::StartWorkload) => break,
            Action::Do(_) => host.event(Event::Finished(Ok(Outcome::Done))),
            other => panic!("{other:?}"),
        }
    }
    host.machine.handle_order(order(2, 6, Role::Idle)).unwrap();
    assert_eq!(
        host.machine.poll_action(host.now),
        Some(Action::Fence { epoch: Epoch(2) })
    );
    host.event(Event::Fenced { epoch: Epoch(2) });
    assert_eq!(host.machine.poll_action(host.now), Some(Action::Interrupt));
    assert_eq!(host.machine.poll_action(host.now), None);
    host.event(Event::Finished(Err("interrupted".to_owned())));
    assert_eq!(host.run()[0], Action::Do(Job::StopWorkload));
    assert_eq!(host.machine.report(host.now).unwrap().failure, None);
}

#[test]
fn a_start_that_fails_is_tried_again_and_told_after_three_times() {
    let mut host = Obliging::new();
    host.obey(order(1, 5, serve()));
    for failures in 1..=3 {
        host.event(Event::WorkloadExited {
            why: "it ended".to_owned(),
        });
        assert_eq!(host.machine.poll_action(host.now), None, "it pauses");
        let told = host.machine.report(host.now).unwrap().failure;
        assert_eq!(told.is_some(), failures == 3);
        host.now = host.machine.poll_timeout().unwrap();
        assert_eq!(host.run(), [Action::Do(Job::StartWorkload)]);
    }
    assert_eq!(host.machine.poll_timeout(), None);
}

#[test]
fn the_end_of_the_old_primarys_stream_is_no_failure_of_a_takeover() {
    let mut host = Obliging::new();
    host.obey(order(1, 1, shadow()));
    host.event(Event::Sync(SyncStatus {
        failure: Some("the link is closed".to_owned()),
        ..SyncStatus::default()
    }));
    assert!(host.machine.report(host.now).unwrap().failure.is_some());
    host.machine.handle_order(order(2, 2, serve())).unwrap();
    assert_eq!(host.machine.report(host.now).unwrap().failure, None);
}

#[test]
fn a_gate_that_is_lost_takes_the_service_down() {
    let mut host = Obliging::new();
    host.obey(order(1, 5, serve()));
    let why = "the interface is gone".to_owned();
    host.event(Event::Unguarded { why: why.clone() });
    let expected = [Action::Do(Job::LeaveAddress), Action::Do(Job::StopWorkload)];
    assert_eq!(host.run(), expected);
    assert_eq!(host.machine.report(host.now).unwrap().failure, Some(why));
    host.now = host.machine.poll_timeout().unwrap();
    host.event(Event::Opened {
        epoch: Epoch(1),
        deadline: host.now + LEASE,
    });
    host.run();
    assert_eq!(host.serving(), Some(Epoch(1)));
}

#[test]
fn an_order_to_serve_is_held_back_while_a_promise_lasts() {
    let mut host = Obliging::new();
    host.obey(order(1, 5, shadow()));
    assert!(host.machine.follows(HostId(2), Epoch(1)));
    assert!(!host.machine.follows(HostId(3), Epoch(1)) && !host.machine.follows(HostId(2), Epoch(2)));
    let until = host.now + LEASE;
    let epoch = Epoch(1);
    host.event(Event::Barred { epoch, until });
    // The lease is held, so that it does not end meanwhile, and the copy goes on.
    assert_eq!(
        host.obey(order(2, 6, serve())),
        [Action::Hold { epoch: Epoch(2) }]
    );
    assert!(!host.machine.follows(HostId(2), Epoch(1)), "no further promise");
    assert_eq!(host.machine.report(host.now).unwrap().epoch, Epoch(2));
    assert_eq!(host.machine.poll_timeout(), Some(until));
    host.now = until;
    host.event(Event::Opened {
        epoch: Epoch(2),
        deadline: until + LEASE,
    });
    assert_eq!(host.run()[0], own(2));
    assert_eq!(host.serving(), Some(Epoch(2)));
    assert_eq!(host.machine.poll_timeout(), None);
}

#[test]
fn a_promise_does_not_hold_up_the_epoch_that_it_was_given_in() {
    let mut host = Obliging::new();
    let until = host.now + LEASE;
    host.machine.handle_order(order(2, 6, serve())).unwrap();
    let epoch = Epoch(2);
    host.event(Event::Barred { epoch, until });
    host.run();
    assert_eq!(host.serving(), Some(Epoch(2)));
}

#[test]
fn a_lost_holder_refuses_writes_before_it_goes_on_and_takes_them_after_the_return() {
    let mut wanted = order(1, 5, serve());
    wanted.spec.policy.coordinator_loss = CoordinatorLoss::ReadOnly;
    let mut host = Obliging::new();
    let did = host.obey(wanted);
    assert_eq!(
        did.last(),
        Some(&Action::Do(Job::TakeWrites)),
        "it may be a leftover that refuses them"
    );
    let epoch = Epoch(1);
    host.event(Event::Lost(true));
    let expected = [Action::Do(Job::RefuseWrites), Action::Sustain { epoch, on: true }];
    assert_eq!(host.run(), expected);
    host.event(Event::Lost(false));
    let expected = [Action::Sustain { epoch, on: false }, Action::Do(Job::TakeWrites)];
    assert_eq!(host.run(), expected);
    // A workload that died takes writes when it is started again.
    host.event(Event::Lost(true));
    host.run();
    let why = "it ended".to_owned();
    host.event(Event::WorkloadExited { why });
    assert_eq!(host.run(), [Action::Sustain { epoch, on: false }]);
}

#[test]
fn other_policies_leave_the_workload_alone() {
    let mut host = Obliging::new();
    host.obey(order(1, 5, serve()));
    host.event(Event::Lost(true));
    assert_eq!(host.run(), []);
}

#[test]
fn what_was_fenced_before_a_restart_is_not_served_again() {
    let mut machine = Machine::new(S);
    let now = BootTime::from_ms(1);
    machine.handle_order(order(4, 5, serve())).unwrap();
    assert_eq!(machine.poll_action(now), Some(Action::Guard));
    machine.handle_event(now, Event::Guarded { floor: Epoch(4) });
    assert_eq!(machine.poll_action(now), None);
    assert_eq!(machine.report(now).unwrap().fenced, Epoch(4));
}

#[derive(Clone, Debug)]
enum Step {
    Order { epoch: u64, role: u8 },
    Fail,
    Succeed,
    Exit,
    Unguard,
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0u64..3, 0u8..4).prop_map(|(epoch, role)| Step::Order { epoch, role }),
        1 => Just(Step::Fail),
        6 => Just(Step::Succeed),
        1 => Just(Step::Exit),
        1 => Just(Step::Unguard),
        1 => (0u16..3_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens: nothing is served that is fenced, no address is taken while the gate is
    /// closed, and a machine whose jobs succeed comes to rest.
    #[test]
    fn it_never_serves_what_it_fenced_and_always_comes_to_rest(steps in prop::collection::vec(step(), 1..80)) {
        let mut machine = Machine::new(S);
        let (mut now, mut epoch, mut revision) = (BootTime::from_ms(1), 1, 0);
        let (mut floor, mut job, mut open) = (Epoch(0), false, None);
        for step in steps {
            match step {
                Step::Order { epoch: by, role } => {
                    epoch += by;
                    revision += 1;
                    let role = match role {
                        0 => serve(),
                        1 => Role::Release { shadows: peers() },
                        2 => shadow(),
                        _ => Role::Idle,
                    };
                    prop_assert!(machine.handle_order(order(epoch, revision, role)).is_ok());
                }
                Step::Fail if job => {
                    job = false;
                    machine.handle_event(now, Event::Finished(Err("it broke".to_owned())));
                }
                Step::Succeed if job => {
                    job = false;
                    machine.handle_event(now, Event::Finished(Ok(Outcome::Done)));
                }
                Step::Exit => machine.handle_event(now, Event::WorkloadExited { why: "gone".to_owned() }),
                Step::Unguard => machine.handle_event(now, Event::Unguarded { why: "lost".to_owned() }),
                Step::Pass(ms) => now = now + Duration::from_millis(u64::from(ms)),
                Step::Fail | Step::Succeed => {}
            }
            let mut polled = 0;
            while let Some(action) = machine.poll_action(now) {
                polled += 1;
                prop_assert!(polled < 20, "it does not come to rest");
                match action {
                    Action::Guard => machine.handle_event(now, Event::Guarded { floor }),
                    Action::Fence { epoch } => {
                        floor = floor.max(epoch);
                        machine.handle_event(now, Event::Fenced { epoch });
                    }
                    Action::Hold { epoch } => {
                        prop_assert!(epoch > floor);
                        machine.handle_event(now, Event::Held { epoch });
                        open = Some((epoch, now + LEASE));
                        machine.handle_event(now, Event::Opened { epoch, deadline: now + LEASE });
                    }
                    Action::Do(what) => {
                        prop_assert!(!job, "two jobs at once");
                        job = true;
                        if what == Job::TakeAddress {
                            let open = open.is_some_and(|(open, until)| open > floor && now < until);
                            prop_assert!(open, "an address behind a closed gate");
                        }
                    }
                    Action::Interrupt => prop_assert!(job),
                    Action::Sustain { on, .. } => prop_assert!(!on, "nothing was lost"),
                }
            }
            if let Some(report) = machine.report(now) {
                prop_assert!(report.serving.is_none_or(|epoch| epoch > floor));
                prop_assert!(report.fenced >= floor);
            }
        }
    }
}
