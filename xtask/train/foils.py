"""What the model has to beat: an EWMA chart and a straight line, on the same signals."""

import numpy as np

from dataset import SLOT

# Signal and the value at which it counts as full.
SIGNALS = {"memory_anon_share": 1.0, "psi_io_some_us_per_s": 1e6}
WINDOW = 20


def ewma(run, fast=0.3, slow=0.03):
    """Per signal: distance of a fast from a slow moving average, in deviations of the slow one."""
    scores = np.zeros((len(SIGNALS), len(run.values)))
    for row, (name, full) in zip(scores, SIGNALS.items()):
        series = run.values[:, SLOT[name]] / full
        near = far = series[0]
        variance = 1e-4
        for t, value in enumerate(series):
            near += fast * (value - near)
            away = near - far
            row[t] = away / np.sqrt(variance)
            far += slow * (value - far)
            variance += slow * ((value - far) ** 2 - variance)
            variance = max(variance, 1e-4)
    return scores


def line(run):
    """Per signal: 1 / (ticks until the least-squares line through the last ticks is full)."""
    scores = np.zeros((len(SIGNALS), len(run.values)))
    t = np.arange(WINDOW) - (WINDOW - 1) / 2
    for row, (name, full) in zip(scores, SIGNALS.items()):
        series = run.values[:, SLOT[name]] / full
        for end in range(WINDOW, len(series) + 1):
            window = series[end - WINDOW : end]
            slope = (window * t).sum() / (t * t).sum()
            level = window.mean() + slope * (WINDOW - 1) / 2
            if slope > 1e-6:
                row[end - 1] = 1.0 / max((1.0 - level) / slope, 1.0)
    return scores


ALL = {"ewma": ewma, "line": line}
