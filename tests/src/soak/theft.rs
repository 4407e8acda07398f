//! Busy neighbours: a test bed of their own, one spinning process for each processor, with such a weight that the
//! cluster gets a fifth of what it asks for when it asks for much.

use std::thread::available_parallelism;

use anyhow::{Context as _, Result};

use crate::{Cgroups, HostSpec, Process, Testbed};

/// Of a whole test bed.
const CLUSTER_SHARES: u64 = 1_024;
/// On each processor, so that the neighbours have four fifths of it at least.
const NEIGHBOUR_SHARES: u64 = 4 * CLUSTER_SHARES;

pub(super) struct Neighbours {
    _spinning: Vec<Process>,
    bed: Testbed,
}

impl Neighbours {
    pub(super) fn start(victims: &Cgroups) -> Result<Self> {
        let processors = available_parallelism()?.get();
        let mut bed = Testbed::start("neighbours")?;
        bed.cgroups()
            .set_cpu_shares(NEIGHBOUR_SHARES * processors as u64)?;
        victims.set_cpu_shares(CLUSTER_SHARES)?;
        let house = bed.add(HostSpec::new("house", std::net::Ipv4Addr::new(10, 78, 0, 1)))?;
        let mut spinning = Vec::new();
        for processor in 0..processors {
            let mut command = house.command("taskset")?;
            command.args([
                "-c",
                &processor.to_string(),
                "/bin/sh",
                "-c",
                "while :; do :; done",
            ]);
            let name = format!("neighbour{processor}");
            spinning.push(
                house
                    .spawn(&name, command)
                    .context("taskset (package util-linux)")?,
            );
        }
        Ok(Self {
            _spinning: spinning,
            bed,
        })
    }

    /// Processor time that they took.
    pub(super) fn usage_ns(&self) -> Result<u64> {
        self.bed.cgroups().cpu_usage_ns()
    }
}
