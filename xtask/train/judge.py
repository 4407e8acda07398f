"""Alarms from scores, and how good they are."""

import numpy as np

DEBOUNCE = 3
# Ticks of history before a host is scored.
WARM_UP = 10
# An alarm this long before the failure came in time to move a service.
LEAD_MIN = 10


def debounced(scores):
    """The least of the last few scores: what the planner's rule of so many ticks in a row amounts to."""
    held = np.full(len(scores), -np.inf)
    for t in range(WARM_UP + DEBOUNCE - 1, len(scores)):
        held[t] = scores[t - DEBOUNCE + 1 : t + 1].min()
    return held


def harmless(run, scores):
    """The highest debounced score where nothing was wrong."""
    held = debounced(scores)[: run.start if run.fault else run.ticks()]
    return float(held.max(initial=-np.inf))


def alarm(run, scores, threshold):
    """(ticks from the alarm to the failure or None, false alarms) of one run."""
    held = debounced(scores)[: run.ticks()] >= threshold
    begins = np.flatnonzero(held & ~np.concatenate([[False], held[:-1]]))
    if not run.fault:
        return None, len(begins)
    false = int((begins < run.start).sum())
    after = np.flatnonzero(held[run.start :])
    return (run.failure - (run.start + int(after[0])) if len(after) else None), false


def report(runs, scores, threshold):
    """Figures over runs: detection, lead, false alarms per host-hour."""
    leads, false, quiet_ticks, classes = [], 0, 0, {}
    for run, series in zip(runs, scores):
        lead, wrong = alarm(run, series, threshold)
        false += wrong
        quiet_ticks += run.start if run.fault else run.ticks()
        if run.fault:
            leads.append(lead)
            classes.setdefault(run.label["class"], []).append(lead)
    caught = [lead for lead in leads if lead is not None]
    in_time = [lead for lead in caught if lead >= LEAD_MIN]

    def share(part, whole):
        return round(len(part) / len(whole), 3) if whole else None

    return {
        "faults": len(leads),
        "detected": share(caught, leads),
        "detected_in_time": share(in_time, leads),
        "lead_ticks_median": float(np.median(caught)) if caught else None,
        "lead_ticks_min": min(caught) if caught else None,
        "detected_in_time_by_class": {
            name: share([lead for lead in of if lead is not None and lead >= LEAD_MIN], of)
            for name, of in sorted(classes.items())
        },
        "lead_ticks_median_by_class": {
            name: float(np.median([lead or 0 for lead in of])) for name, of in sorted(classes.items())
        },
        "false_alarms": false,
        "false_alarms_per_host_hour": round(false / (quiet_ticks / 3600), 3) if quiet_ticks else None,
        "harmless_host_hours": round(quiet_ticks / 3600, 2),
    }
