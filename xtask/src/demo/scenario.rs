//! The acts. What the coordinators do, they do by themselves: nothing here tells them that a host
//! is sick.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use understudy_testbed::boot_ns;
use understudy_testbed::cluster::program;
use understudy_testbed::fault::{Class, Event, Plan, Running, Seeded};

use super::cluster::NAMES;
use super::figures::{self, Ack};
use super::scene::{COPY_MAX, Scene, ms, until_ns};
use super::watch::Seen;

const PREPARE_MAX: Duration = Duration::from_secs(60);
/// Nothing may move while a look-alike is at its worst, and after it.
const AFTERMATH: Duration = Duration::from_secs(10);
const TAKEOVER_MAX: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(10);
const RETURNED: Duration = Duration::from_secs(5);
/// Around an event: the gap in the answers may begin a little before the event was stamped.
const BEFORE_NS: u64 = 1_000_000_000;
/// How long after the hard failure a late order is still waited for, so as to say how late it was.
const LATE: Duration = Duration::from_secs(2);

pub(super) fn class(seed: u64) -> Class {
    *Seeded::new(seed).one_of(&Class::FAULTS)
}

fn look_alike_class(seed: u64) -> Class {
    *Seeded::new(seed ^ 0xA11CE).one_of(&Class::LOOK_ALIKES)
}

fn plan_name(plan: &Plan) -> String {
    match plan {
        Plan::Leak { kib_s } => format!("memory leak, {kib_s} KiB/s"),
        Plan::Throttle {
            start_kib_s,
            step_percent,
            interval_ms,
        } => format!("dying disk, from {start_kib_s} KiB/s to {step_percent} % every {interval_ms} ms"),
        Plan::Backup { kib_s, mib } => format!("backup read, {mib} MiB at {kib_s} KiB/s"),
        Plan::WarmUp { kib_s, mib } => format!("cache warm-up, {mib} MiB at {kib_s} KiB/s"),
        Plan::Quiet => "nothing".to_owned(),
    }
}

/// What the acts leave for the figures at the end.
#[derive(Default)]
pub(super) struct Acts {
    fault_ns: Option<u64>,
    power_cut_ns: Option<u64>,
    moved: bool,
    failed_over: bool,
    lost: Vec<Ack>,
}

impl Acts {
    pub(super) fn moved(&self) -> bool {
        self.moved
    }
}

/// Act 0: something that looks like trouble and is none.
pub(super) fn look_alike(scene: &mut Scene<'_>) -> Result<()> {
    let plan = Plan::for_demo(look_alike_class(scene.measured.seed), scene.measured.seed);
    let name = plan_name(&plan);
    scene.timeline.chapter("0  A harmless look-alike");
    scene.timeline.note(format_args!("on a: {name}"));
    scene.measured.look_alike = Some(name);
    let running = Running::fault(&program("understudy-fault")?, &scene.cluster.hosts()[0], &plan)?;
    let ended = scene.until("the look-alike to have done its work", PREPARE_MAX * 2, |_| {
        running.when(Event::Reached)
    });
    ended?;
    scene.hold(AFTERMATH)?;
    drop(running);
    scene.hold(AFTERMATH)?;
    let moved = false_moves(&scene.watch.seen(), &Acts::default());
    scene.timeline.note(match moved {
        0 => "nothing moved, as it should be".to_owned(),
        moved => format!("{moved} false moves"),
    });
    Ok(())
}

/// Act 1: a real fault on A, seen in time.
pub(super) fn predicted(scene: &mut Scene<'_>, acts: &mut Acts, class: Class) -> Result<()> {
    let plan = Plan::for_demo(class, scene.measured.seed);
    let name = plan_name(&plan);
    scene.timeline.chapter("1  A failure that announces itself");
    scene.timeline.note(format_args!("on a: {name}"));
    scene.measured.fault = Some(name);
    let loads = scene.cluster.redis_loads_ms().len();
    acts.fault_ns = Some(boot_ns());
    let fault = Running::fault(&program("understudy-fault")?, &scene.cluster.hosts()[0], &plan)?;
    let started = scene.until("the fault to begin", PREPARE_MAX, |_| fault.when(Event::Started))?;
    let order = wait_for_order(scene, &plan, started)?;
    scene.measured.planned.lead_s = Some(lead_s(hard_failure(scene, &plan, started), order));
    let model = &scene.watch.seen().status["prediction"]["state"];
    scene.measured.planned.model = model.as_str().map(str::to_owned);
    let holder = scene.until("another host to serve", TAKEOVER_MAX, |seen| {
        seen.serving().filter(|holder| *holder != 1)
    })?;
    acts.moved = true;
    let name = NAMES[holder as usize - 1];
    scene
        .timeline
        .note(format_args!("{name} serves; a has not failed yet"));
    scene.until_answered(boot_ns(), TAKEOVER_MAX)?;
    measure_planned(scene, order, loads)?;
    scene.until("a to be in safe mode", TAKEOVER_MAX, |seen| {
        seen.in_safe_mode(1).then_some(())
    })?;
    scene.measured.planned.safe_mode = Some(true);
    drop(fault);
    scene.timeline.note("a was repaired: the fault is gone");
    Ok(())
}

fn hard_failure(scene: &Scene<'_>, plan: &Plan, started: u64) -> u64 {
    match plan {
        Plan::Leak { kib_s } => {
            figures::leak_failure_ns(started, *kib_s, scene.cluster.memory_limit(), scene.resident)
        }
        _ => {
            let last = plan
                .throttle_steps()
                .last()
                .map_or(Duration::ZERO, |step| step.after);
            started + last.as_nanos() as u64
        }
    }
}

fn lead_s(failure_ns: u64, order_ns: u64) -> f64 {
    (failure_ns as f64 - order_ns as f64) / 1e9
}

fn wait_for_order(scene: &mut Scene<'_>, plan: &Plan, started: u64) -> Result<u64> {
    let failure = hard_failure(scene, plan, started);
    let mut risk = None;
    let order = scene.until(
        "the coordinators to move the service",
        until_ns(failure) + LATE,
        |seen| {
            risk = risk.max(seen.risk_bp(1));
            let mut orders = seen
                .events_of("handover-began")
                .filter(|event| event.at_ns >= started);
            orders
                .find(|event| event.host == Some(1))
                .map(|event| event.at_ns)
        },
    );
    scene.measured.planned.risk = risk.map(|risk| risk as f64 / 10_000.0);
    order.context("the model did not fire before the host failed")
}

fn measure_planned(scene: &mut Scene<'_>, order: u64, loads_before: usize) -> Result<()> {
    let acks = scene.client()?.acks();
    let gap = figures::widest_gap(&acks, order - BEFORE_NS, boot_ns());
    let (last, first) = gap.context("the client was not answered around the handover")?;
    let before: Vec<Ack> = acks.into_iter().take_while(|ack| ack.ok_ns <= last).collect();
    let loss = read_back(scene, &before)?;
    let ours = scene.sealed(0);
    let final_cut = ours.iter().map(|seal| seal.generation).max();
    let final_delta = ours.iter().filter(|seal| Some(seal.generation) == final_cut);
    let planned = &mut scene.measured.planned;
    planned.write_pause_ms = Some(ms(last, first));
    planned.load_ms = scene.cluster.redis_loads_ms().get(loads_before).copied();
    planned.final_delta_bytes = final_delta.map(|seal| seal.bytes).max();
    planned.lost_acked_writes = Some(loss.lost.len());
    let pause = ms(last, first);
    scene.timeline.note(format_args!(
        "writes paused for {pause:.0} ms; {} lost",
        loss.lost.len()
    ));
    Ok(())
}

/// Which of the answered writes the service has now.
fn read_back(scene: &Scene<'_>, acked: &[Ack]) -> Result<figures::Loss> {
    let numbers: Vec<u64> = acked.iter().map(|ack| ack.number).collect();
    let present = scene.client()?.read_back(&numbers)?;
    let held: std::collections::HashSet<u64> = numbers
        .iter()
        .zip(present)
        .filter(|(_, present)| *present)
        .map(|(number, _)| *number)
        .collect();
    Ok(figures::loss(acked, |number| held.contains(&number)))
}

/// Acts 2 and 3: the holder loses its power; then the lights come on again.
pub(super) fn unannounced(scene: &mut Scene<'_>, acts: &mut Acts) -> Result<()> {
    scene.timeline.chapter("2  A failure that does not");
    let dying = scene.watch.seen().serving().context("somebody serves")?;
    let third = scene.until("the third host to be a ready shadow", COPY_MAX, |seen| {
        (2..=3).find(|id| *id != dying && seen.is_ready_shadow(*id))
    })?;
    scene.hold(STEADY)?;
    let cut = boot_ns();
    scene.cluster.cut_power(dying as usize - 1)?;
    acts.power_cut_ns = Some(cut);
    let name = NAMES[dying as usize - 1];
    scene.timeline.note(format_args!(
        "{name} lost its power: processes, link and disk at once"
    ));
    let holder = scene.until("another host to serve", TAKEOVER_MAX, |seen| {
        seen.serving().filter(|holder| *holder != dying)
    })?;
    acts.failed_over = true;
    ensure!(
        holder == third,
        "{} took over, and {} was ready",
        NAMES[holder as usize - 1],
        NAMES[third as usize - 1]
    );
    // From the returning host's first moment on nobody may answer with less than the heir has.
    scene.probes.as_ref().context("the probes run")?.watch_for_stale();
    // The first host is still kept out: until this one is back nobody is there to hold a copy.
    scene.timeline.chapter("3  The lights come on");
    let index = dying as usize - 1;
    scene.cluster.hosts()[index].restore_power()?;
    scene.cluster.start_host(index)?;
    scene
        .timeline
        .note(format_args!("{} has power again", NAMES[index]));
    scene.until_answered(boot_ns(), TAKEOVER_MAX)?;
    measure_crash(scene, acts, cut, (dying, holder))?;
    return_of(scene, dying)
}

fn measure_crash(scene: &mut Scene<'_>, acts: &mut Acts, cut: u64, (dead, heir): (u64, u64)) -> Result<()> {
    let acks = scene.client()?.acks();
    let gap = figures::widest_gap(&acks, cut - BEFORE_NS, boot_ns());
    let (last, first) = gap.context("the client was not answered around the power cut")?;
    let before: Vec<Ack> = acks.into_iter().take_while(|ack| ack.ok_ns <= last).collect();
    let loss = read_back(scene, &before)?;
    let taken_over = scene.promoted(heir as usize - 1);
    let taken_over = taken_over.context("the heir says which generation it took over")?;
    let sealed = scene.sealed(dead as usize - 1);
    let promoted_cut = sealed
        .iter()
        .find(|seal| seal.generation == taken_over)
        .map(|seal| seal.cut_ns);
    let promoted_cut = promoted_cut.context("the dead host had cut the generation that took over")?;
    let window = figures::window(&loss, cut, promoted_cut);
    let crash = &mut scene.measured.crash;
    crash.outage_ms = Some(ms(last, first));
    crash.lost_acked_writes = Some(loss.lost.len());
    crash.lost_is_suffix = Some(loss.is_suffix);
    crash.lost_window_ms = Some(window.ours_ns as f64 / 1e6);
    crash.redis_own_ms = Some(window.redis_ns as f64 / 1e6);
    let (out, lost) = (ms(last, first), loss.lost.len());
    scene.timeline.note(format_args!(
        "the cut cost {out:.0} ms without an answer and {lost} answered writes"
    ));
    acts.lost = loss.lost;
    Ok(())
}

fn return_of(scene: &mut Scene<'_>, returning: u64) -> Result<()> {
    let back = scene.until("both hosts to be ready shadows again", COPY_MAX, |seen| {
        (seen.is_ready_shadow(1) && seen.is_ready_shadow(returning)).then_some(())
    });
    let watched = scene.hold(RETURNED);
    let probes = scene.probes.as_ref().context("the probes run")?;
    let (stale, reads) = probes.stale();
    (scene.measured.served_stale, scene.measured.stale_reads) = (Some(stale), Some(reads));
    back?;
    watched?;
    if reads == 0 {
        bail!("no probe was answered after the takeover");
    }
    scene.timeline.note("both are shadows again, by themselves");
    Ok(())
}

/// The figures that are about the whole story.
pub(super) fn conclude(scene: &mut Scene<'_>, acts: &Acts) {
    let seen = scene.watch.seen();
    scene.measured.raft_commits = seen.commits();
    scene.measured.freeze_ms_p99 = seen.freeze_us_p99.map(|us| us as f64 / 1e3);
    scene.measured.unknown = seen.unknown;
    scene.measured.tracked = seen.tracked;
    if !seen.events.is_empty() {
        scene.measured.false_moves = Some(false_moves(&seen, acts));
    }
    if let Some(probes) = &mut scene.probes {
        probes.stop();
        scene.measured.split_brain_instants = Some(figures::shared_slots(&probes.accepts()));
    }
    let Some(client) = &mut scene.client else { return };
    client.stop();
    let acks = client.acks();
    scene.measured.writes = acks.len();
    scene.measured.reconnects = client.reconnects();
    scene.measured.writes_per_s = rate(&acks);
    let lost: std::collections::HashSet<u64> = acts.lost.iter().map(|ack| ack.number).collect();
    let kept: Vec<Ack> = acks
        .into_iter()
        .filter(|ack| !lost.contains(&ack.number))
        .collect();
    let sealed: Vec<_> = (0..NAMES.len()).flat_map(|index| scene.sealed(index)).collect();
    let mut lags = figures::lags(&kept, &sealed, acts.power_cut_ns);
    let in_ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
    scene.measured.lag_ms_p50 = in_ms(figures::percentile(&mut lags, 0.5));
    scene.measured.lag_ms_p99 = in_ms(figures::percentile(&mut lags, 0.99));
}

/// Moves of the service beyond those that the story asked for.
fn false_moves(seen: &Seen, acts: &Acts) -> u64 {
    let all = seen.events_of("handover-began").count();
    let wanted = seen
        .events_of("handover-began")
        .any(|event| event.host == Some(1) && acts.fault_ns.is_some_and(|began| event.at_ns >= began));
    let grants = seen.events_of("granted").count();
    let due = 1 + usize::from(acts.moved) + usize::from(acts.failed_over);
    (all - usize::from(wanted)).max(grants.saturating_sub(due)) as u64
}

/// Median of the whole seconds, so that the outages do not count.
fn rate(acks: &[Ack]) -> Option<f64> {
    let mut seconds = std::collections::BTreeMap::new();
    for ack in acks {
        *seconds.entry(ack.ok_ns / 1_000_000_000).or_insert(0_u64) += 1;
    }
    let mut counts: Vec<u64> = seconds.into_values().collect();
    figures::percentile(&mut counts, 0.5).map(|median| median as f64)
}

#[cfg(test)]
mod tests {
    use super::super::watch::Event;
    use super::*;

    fn event(kind: &str, host: u64, at_ns: u64) -> Event {
        Event {
            seq: at_ns,
            at_ns,
            kind: kind.to_owned(),
            host: Some(host),
            text: String::new(),
        }
    }

    fn check(acts: &Acts, events: &[(&str, u64, u64)], expected: u64) {
        let events = events
            .iter()
            .map(|(kind, host, at)| event(kind, *host, *at))
            .collect();
        assert_eq!(
            false_moves(
                &Seen {
                    events,
                    ..Seen::default()
                },
                acts
            ),
            expected
        );
    }

    #[test]
    fn only_moves_that_the_story_asked_for_are_true() {
        let quiet = Acts::default();
        let moved = Acts {
            fault_ns: Some(50),
            moved: true,
            ..Acts::default()
        };
        let whole = Acts {
            fault_ns: Some(50),
            moved: true,
            failed_over: true,
            ..Acts::default()
        };
        let (first, order) = (("granted", 1, 1), ("handover-began", 1, 60));
        check(&quiet, &[first], 0);
        check(&quiet, &[first, ("handover-began", 1, 20), ("granted", 2, 21)], 1);
        check(&moved, &[first, order, ("granted", 2, 61)], 0);
        check(&moved, &[first, ("handover-began", 1, 20), ("granted", 2, 21)], 1);
        check(&whole, &[first, order, ("granted", 2, 61), ("granted", 3, 80)], 0);
        check(
            &whole,
            &[
                first,
                order,
                ("granted", 2, 61),
                ("granted", 3, 80),
                ("granted", 1, 90),
            ],
            1,
        );
    }
}
