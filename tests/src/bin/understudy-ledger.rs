//! A workload of which every answered write can be checked; started by agents in the exerciser.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    understudy_testbed::ledger::serve(&arguments)
}
