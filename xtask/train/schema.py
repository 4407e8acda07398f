"""The beacon's features, read from the one place that defines them, and what the network does with each."""

import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = ROOT / "common/src/beacon/feature.rs"

# Units with long tails enter as log(1 + |x| / scale), with the sign kept.
LOG_SCALE = {
    "Micros": 100.0,
    "MicrosPerSecond": 1_000.0,
    "Bytes": 1_048_576.0,
    "BytesPerSecond": 65_536.0,
    "PerSecond": 1.0,
    "Count": 1.0,
}

# What the network looks at. Signals of one particular service (network traffic, processor time, exits) and the
# agent's own cost are left out: they tell services apart, not sick hosts from healthy ones.
USED = [
    "memory_anon_share",
    "memory_available_share",
    "memory_file_share",
    "memory_anon_growth_bytes_per_s",
    "memory_limit_hits_per_s",
    "reclaim_stall_us_per_s",
    "psi_memory_some_us_per_s",
    "psi_memory_some_avg10",
    "fsync_p50_us",
    "fsync_p99_us",
    "fsyncs_per_s",
    "block_write_p99_us",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "disk_busy_share",
    "psi_io_some_us_per_s",
    "psi_io_full_us_per_s",
    "psi_io_some_avg10",
    "psi_io_full_avg10",
    "psi_cpu_some_avg10",
]
# Those of which the network is also given how far they are from their own past.
TRENDS = [
    "memory_anon_share",
    "fsync_p50_us",
    "fsync_p99_us",
    "fsyncs_per_s",
    "disk_write_bytes_per_s",
    "psi_io_some_us_per_s",
    "psi_io_full_us_per_s",
    "psi_memory_some_us_per_s",
]
# Time constants of those pasts, in ticks.
TAUS = [6.0, 24.0]
LEVEL = "memory_anon_share"


def features():
    """[(name, unit)] in the order of the beacon's slots."""
    text = SOURCE.read_text()
    body = text[text.index("features! {") :]
    return re.findall(r'^\s*\w+ "(\w+)" (\w+) \[', body, flags=re.M)


def fingerprint(names):
    """As `schema_fingerprint` in common/src/beacon/feature.rs."""
    value = 0xCBF29CE484222325
    for name in names:
        for byte in name.encode() + b"\xff":
            value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def layout():
    """Constant arrays that turn a beacon into the network's input; `mean` and `deviation` come from training."""
    listed = features()
    names = [name for name, _ in listed]
    units = dict(listed)
    select = np.array([names.index(name) for name in USED], np.int64)
    is_log = np.array([units[name] != "Share" for name in USED], np.float32)
    scale = np.array([LOG_SCALE.get(units[name], 1.0) for name in USED], np.float32)
    trend = np.array([USED.index(name) for name in TRENDS], np.int64)
    return {
        "features": names,
        "select": select,
        "is_log": is_log,
        "scale": scale,
        "trend": trend,
        "level": USED.index(LEVEL),
        "mean": np.zeros(len(USED), np.float32),
        "deviation": np.ones(len(USED), np.float32),
    }


def input_width():
    # values, presence, trends, and the time left at each pace.
    return 2 * len(USED) + len(TAUS) * len(TRENDS) + len(TAUS)


def state_tensors(hidden):
    return [("h", hidden), ("c", hidden), ("past", len(TAUS) * len(TRENDS)), ("seen", len(TRENDS))]
