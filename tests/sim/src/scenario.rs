//! What a seed's cluster looks like, and the bugs that can be put back into it.

use understudy_agent::service;
use understudy_coordinator::replica;
use understudy_coordinator::state::COMMAND_VERSION;

use crate::host::driver;
use crate::rng::Rng;

/// A known bug, for the invariants to catch. Never part of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Replica(replica::Fault),
    Host(driver::Fault),
}

impl Fault {
    /// Each invariant with the bugs that it alone must catch.
    pub const ALL: [(&'static str, Self); 11] = [
        ("gates", Self::Replica(replica::Fault::RenewWithoutReadIndex)),
        ("gates", Self::Host(driver::Fault::ForgetsPromises)),
        ("epochs", Self::Replica(replica::Fault::HandoverKeepsEpoch)),
        (
            "orders",
            Self::Host(driver::Fault::Machine(service::Fault::ObeysOldEpochs)),
        ),
        ("commits", Self::Replica(replica::Fault::SendBeforePersist)),
        ("replicas", Self::Replica(replica::Fault::ApplyReadsClock)),
        ("generations", Self::Host(driver::Fault::AcknowledgesBeforeSeal)),
        (
            "histories",
            Self::Host(driver::Fault::Machine(service::Fault::CutsBeforeFence)),
        ),
        ("histories", Self::Host(driver::Fault::PromotesUnsealed)),
        ("histories", Self::Host(driver::Fault::ObeysOtherBoots)),
        ("recovery", Self::Replica(replica::Fault::OrdersOnce)),
    ];

    pub const fn of_replica(self) -> Option<replica::Fault> {
        match self {
            Self::Replica(fault) => Some(fault),
            Self::Host(_) => None,
        }
    }

    pub const fn of_host(self) -> Option<driver::Fault> {
        match self {
            Self::Host(fault) => Some(fault),
            Self::Replica(_) => None,
        }
    }
}

pub struct Scenario {
    pub coordinators: u64,
    pub hosts: u32,
    /// Declarations.
    pub services: Vec<String>,
    /// Of the commands that the coordinators' programs know at first.
    pub version: u32,
}

impl Scenario {
    /// Three coordinators or five, five hosts to twenty (mostly few), two services to four.
    pub fn draw(rng: &mut Rng) -> Self {
        let coordinators = if rng.chance(200) { 5 } else { 3 };
        let (low, high) = match rng.between(0, 20) {
            0 => (13, 21),
            1..=3 => (9, 13),
            _ => (5, 9),
        };
        let hosts = u32::try_from(rng.between(low, high)).expect("few hosts");
        let count = rng.between(2, if hosts > 8 { 5 } else { 3 });
        let services = (1..=u32::try_from(count).expect("few services"))
            .map(|number| declaration(rng, hosts, number))
            .collect();
        let version = if rng.chance(400) { 1 } else { COMMAND_VERSION };
        Self {
            coordinators,
            hosts,
            services,
            version,
        }
    }
}

pub fn service_name(number: u32) -> String {
    format!("s{number}")
}

fn declaration(rng: &mut Rng, hosts: u32, number: u32) -> String {
    let count = rng.between(2, 5);
    let mut named: Vec<u64> = Vec::new();
    while (named.len() as u64) < count {
        let host = rng.between(1, u64::from(hosts) + 1);
        if !named.contains(&host) {
            named.push(host);
        }
    }
    let loss = match rng.between(0, 10) {
        0 => "serve",
        1 => "read-only",
        _ => "stop",
    };
    let name = service_name(number);
    format!(
        r#"
name = "{name}"
paths = ["/srv/s{number}"]
address = "10.0.9.{number}/24"
interface = "eth0"
hosts = {named:?}
workload = {{ start = ["/bin/s"], stop_timeout_ms = 1000, start_timeout_ms = 2000, health = {{ tcp = "127.0.0.1:{number}" }}, read_only = ["/bin/s"], read_write = ["/bin/s"] }}
policy = {{ coordinator_loss = "{loss}" }}
"#
    )
}
