"""What the model has to beat: an EWMA chart and a straight line, on the same signals."""

import numpy as np

from dataset import SLOT

# Signal and the value at which it counts as full.
SIGNALS = {"memory_anon_share": 1.0, "psi_io_some_us_per_s": 1e6}
WINDOW = 20


def ewma(run, fast=0.3, slow=0.03):
    """Distance of a fast from a slow moving average in deviations of the slow one, the worst signal's."""
    scores = np.zeros(len(run.values))
    for name, full in SIGNALS.items():
        series = run.values[:, SLOT[name]] / full
        near = far = series[0]
        variance = 1e-4
        for t, value in enumerate(series):
            near += fast * (value - near)
            away = near - far
            scores[t] = max(scores[t], away / np.sqrt(variance))
            far += slow * (value - far)
            variance += slow * ((value - far) ** 2 - variance)
            variance = max(variance, 1e-4)
    return scores


def line(run):
    """1 / (ticks until the least-squares line through the last ticks is full), the nearest signal's."""
    scores = np.zeros(len(run.values))
    t = np.arange(WINDOW) - (WINDOW - 1) / 2
    for name, full in SIGNALS.items():
        series = run.values[:, SLOT[name]] / full
        for end in range(WINDOW, len(series) + 1):
            window = series[end - WINDOW : end]
            slope = (window * t).sum() / (t * t).sum()
            level = window.mean() + slope * (WINDOW - 1) / 2
            if slope > 1e-6:
                left = max((1.0 - level) / slope, 1.0)
                scores[end - 1] = max(scores[end - 1], 1.0 / left)
    return scores


ALL = {"ewma": ewma, "line": line}
