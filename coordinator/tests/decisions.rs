//! What a leader decides unasked, and what it decides not to do, in the event log: with its reason,
//! and once, whoever leads.

mod group;

use std::collections::BTreeSet;
use std::time::Duration;

use group::{Group, settings};
use understudy_common::domain::Domain;
use understudy_common::id::{GenerationId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{
    Basis, CopyState, Evidence, Hello, HostReport, Inventory, Operate, Reach, Renew, Request, ServiceReport,
    Sight, SyncFigures,
};
use understudy_coordinator::replica::{RequestId, Settings};
use understudy_coordinator::state::{EventKind, State};

const HOSTS: [HostId; 3] = [HostId(1), HostId(2), HostId(3)];
const KV: ServiceId = ServiceId(1);
const THRESHOLD: BasisPoints = BasisPoints(8_000);
const BEAT: Duration = Duration::from_millis(100);

const SERVICE: &str = r#"
name = "kv"
paths = ["/srv/kv"]
address = "192.0.2.50/24"
interface = "eth0"
hosts = [1, 2, 3]
[workload]
start = ["/bin/kv"]
health = { tcp = "127.0.0.1:80" }
"#;

/// Three coordinators, and three hosts that do as the state says at once.
struct Cluster {
    group: Group,
    last_request: u64,
    /// Hosts that say nothing.
    silent: BTreeSet<HostId>,
    /// What everybody but the holder sees of its address, and since when.
    reach: Reach,
    since: BootTime,
    /// Epochs whose serving was seen: their address answered once.
    answered: bool,
}

impl Cluster {
    fn new() -> Self {
        let group = Group::of((1..=3).map(|n| Settings {
            threshold: Some(THRESHOLD),
            ..settings(n, 3)
        }));
        let mut cluster = Self {
            since: group.now,
            group,
            last_request: 1 << 40,
            silent: BTreeSet::new(),
            reach: Reach::Answered,
            answered: true,
        };
        cluster.group.await_announced();
        for host in HOSTS {
            let hello = Hello {
                host,
                name: format!("h{}", host.0),
                boot: 1,
                addr: ([192, 0, 2, host.0 as u8], 7401).into(),
                version: "1".to_owned(),
                inventory: Inventory::default(),
                domain: Domain::default(),
            };
            cluster.say(host, Request::Hello(hello));
        }
        cluster.group.done(Operate::ApplyService {
            toml: SERVICE.to_owned(),
        });
        cluster.until("two ready shadows", |state| {
            state.services[&KV].shadows.len() == 2
        });
        cluster
    }

    fn state(&mut self) -> &State {
        let leader = self.group.await_leader();
        self.group.replica(leader).state()
    }

    fn say(&mut self, host: HostId, request: Request) {
        let leader = self.group.await_leader();
        let now = self.group.now;
        self.last_request += 1;
        let node = self.group.nodes.get_mut(&leader).expect("the leader");
        let replica = node.replica.as_mut().expect("it runs");
        let id = RequestId(self.last_request);
        replica.handle_request(now, 0, Principal::Host(host), id, request);
    }

    /// A tenth of a second: everybody reports, and the holder renews.
    fn beat(&mut self) {
        for host in HOSTS
            .into_iter()
            .filter(|host| !self.silent.contains(host))
            .collect::<Vec<_>>()
        {
            let report = self.report(host);
            self.say(host, Request::Report(report));
            self.last_request += 1;
            let renew = Renew {
                host,
                sequence: self.last_request,
                leases: vec![(
                    KV,
                    self.state()
                        .services
                        .get(&KV)
                        .map_or_else(Default::default, |kv| kv.epoch),
                )],
            };
            self.say(host, Request::Renew(renew));
        }
        self.group.run(BEAT);
    }

    fn report(&mut self, host: HostId) -> HostReport {
        let (sequence, at, reach) = (self.last_request, self.group.now, self.reach);
        let (since, answered) = (self.since, self.answered);
        let mut report = HostReport {
            host,
            boot: 1,
            sequence,
            at,
            ..HostReport::default()
        };
        let Some(kv) = self.state().services.get(&KV) else {
            return report;
        };
        let Some(holder) = kv.holder else { return report };
        let generation = GenerationId {
            epoch: kv.epoch,
            n: 1,
        };
        let holds = holder.host == host;
        report.services = vec![ServiceReport {
            service: KV,
            epoch: kv.epoch,
            revision: kv.revision,
            serving: holds.then_some(kv.epoch),
            fenced: if holds { Default::default() } else { kv.epoch },
            final_cut: None,
            copy: if holds { CopyState::Cold } else { CopyState::Ready },
            generation: Some(generation),
            acked: HOSTS
                .into_iter()
                .filter(|other| holds && *other != host)
                .map(|other| (other, generation))
                .collect(),
            failure: None,
            sync: SyncFigures::default(),
            basis: Basis::Lease,
            apart: None,
        }];
        let sight = Sight {
            reach,
            since,
            answered,
            asked: at,
            times: u32::try_from(at.since(since).as_secs()).expect("short"),
        };
        if !holds {
            report.evidence = vec![Evidence {
                service: KV,
                epoch: kv.epoch,
                holder: holder.host,
                agent: sight,
                address: Some(sight),
            }];
        }
        report
    }

    fn until(&mut self, what: &str, ready: impl Fn(&State) -> bool) {
        for _ in 0..600 {
            if ready(self.state()) {
                return;
            }
            self.beat();
        }
        let events = self.told(|_| true);
        panic!("in vain: {what}\n{}", events.join("\n"));
    }

    /// The model speaks a few times in a row.
    fn scores(&mut self, host: HostId, risk: BasisPoints) {
        for _ in 0..5 {
            let leader = self.group.await_leader();
            let now = self.group.now;
            let node = self.group.nodes.get_mut(&leader).expect("the leader");
            let replica = node.replica.as_mut().expect("it runs");
            replica.handle_scores(now, 0, &[(host, risk)]);
            self.beat();
        }
    }

    fn told(&mut self, wanted: impl Fn(EventKind) -> bool) -> Vec<String> {
        let events = self.state().events.after(0);
        events
            .filter(|event| wanted(event.kind))
            .map(|event| event.text.clone())
            .collect()
    }
}

#[test]
fn what_is_held_back_is_told_once_though_the_leader_changes_and_the_move_tells_its_reason() {
    let mut cluster = Cluster::new();
    cluster.group.done(Operate::Pause { on: true });
    cluster.scores(HOSTS[0], BasisPoints(9_000));
    let held = [
        "kv: held back (paused), because the risk of h1 stayed at or above 80.00 % for 3 ticks or more, \
                 but moves by prediction are paused",
    ];
    assert_eq!(cluster.told(|kind| kind == EventKind::HeldBack), held);

    let leader = cluster.group.await_leader();
    cluster.group.crash(leader);
    cluster.scores(HOSTS[0], BasisPoints(9_000));
    assert_ne!(cluster.group.await_leader(), leader);
    assert_eq!(cluster.told(|kind| kind == EventKind::HeldBack), held);

    cluster.group.done(Operate::Pause { on: false });
    cluster.scores(HOSTS[0], BasisPoints(9_000));
    assert_eq!(
        cluster.told(|kind| kind == EventKind::HandoverBegan),
        [
            "kv: handover from h1 to h2 by prediction at a risk of 90.00 %, because the risk of h1 stayed at or \
          above 80.00 % for 3 ticks or more"
        ]
    );
}

#[test]
fn a_holder_that_nobody_reaches_is_condemned_and_the_next_one_is_believed() {
    let mut cluster = Cluster::new();
    cluster.reach = Reach::Dropped;
    cluster.since = cluster.group.now;
    cluster.until("another holder", |state| state.services[&KV].epoch.0 == 2);
    let waited = cluster.group.now.since(cluster.since);
    assert!(
        waited >= Duration::from_secs(4),
        "it took 3 s of agreement and a lease: {waited:?}"
    );
    let condemned = cluster.told(|kind| kind == EventKind::Condemned);
    assert_eq!(condemned.len(), 1, "{condemned:?}");
    assert!(
        condemned[0]
            .starts_with("kv: e1 is renewed no more, because h1 is heard and says that it serves, but h2"),
        "{condemned:?}"
    );
    // Nobody has seen the address answer in the new epoch.
    cluster.answered = false;
    cluster.until("it to be served", |state| {
        state.services[&KV].holder.is_some_and(|holder| holder.served)
    });
    for _ in 0..100 {
        cluster.beat();
    }
    assert_eq!(cluster.state().services[&KV].epoch.0, 2);
}

#[test]
fn a_lease_end_tells_what_was_seen_and_waits_for_no_agreement() {
    let mut cluster = Cluster::new();
    cluster.silent.insert(HOSTS[0]);
    let silent = cluster.group.now;
    cluster.until("another holder", |state| state.services[&KV].epoch.0 == 2);
    assert!(cluster.group.now.since(silent) < Duration::from_secs(3));
    let granted = cluster.told(|kind| kind == EventKind::Granted);
    let last = granted.last().expect("a grant");
    assert!(last.contains("because the lease of h1 ended"), "{last}");
    assert!(
        last.contains("h3 sees the address answer, its agent answer"),
        "{last}"
    );
}
