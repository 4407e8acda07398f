//! Seeds of the simulation in the test run: the same code as `cargo xtask sim`.

use understudy_sim::{EFFECTS, Fault, PREMISES, catch, fault_kinds, run, run_seeds};

const SEEDS: u64 = 500;
/// How often each kind of fault strikes, shows its effects and makes each premise true in that many seeds.
const AT_LEAST: u64 = 100;
const FAULTS_MIN: u64 = 15;
const SIMULATED_MS_MIN: u64 = 60_000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn seeds_keep_every_invariant_and_recover() {
    let summary = run_seeds(0, SEEDS, threads(), None, |_, _| false);
    println!("{} events, {} grants", summary.events, summary.grants);
    let failures: Vec<_> = summary
        .violations
        .iter()
        .map(|(seed, why)| format!("seed {seed}: {why}\nagain: cargo xtask sim --seed {seed} --verbose"))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for what in fault_kinds().chain(EFFECTS).chain(PREMISES) {
        let times = summary.tally.get(what);
        assert!(times >= AT_LEAST, "`{what}` {times} times in {SEEDS} seeds");
    }
    let (faults, lasted) = (summary.faults_min, summary.simulated_ms_min);
    assert!(faults >= FAULTS_MIN, "{faults} faults in one seed");
    assert!(lasted >= SIMULATED_MS_MIN, "a seed lasted {lasted} ms");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 77] {
        let (first, again) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(
            (first.trace, first.events),
            (again.trace, again.events),
            "seed {seed}"
        );
    }
    assert_ne!(run(3, None, false).trace, run(4, None, false).trace);
}

#[test]
fn every_broken_build_is_caught_by_its_invariant() {
    for (invariant, fault) in Fault::ALL {
        match catch(invariant, fault, SEEDS, threads()) {
            Ok((seed, why)) => {
                let why = why.lines().next().unwrap_or_default();
                println!("{fault:?}: seed {seed}: {why}");
            }
            Err(summary) => {
                let others: Vec<_> = summary.violations.iter().take(3).collect();
                panic!("no seed of {SEEDS} caught {fault:?} by `{invariant}`; others: {others:?}");
            }
        }
    }
}
