"""Packed runs as arrays, which run serves for what, and the changes that make one run into many."""

import dataclasses

import numpy as np

import schema
import traces

HORIZONS = [30, 90, 240]
# Ticks of a run at most; longer ones are cut at the front.
TICKS_MAX = 320
HELD_OUT, VALIDATION = 4, 3
# Which of the network's causes a class of faults is.
CAUSE_OF = {"leak": 0, "throttle": 1}


@dataclasses.dataclass
class Run:
    name: str
    digest: str  # of the packed file
    label: dict
    values: np.ndarray  # [ticks, features]
    mask: np.ndarray
    start: int | None  # tick of the run at which a fault began, at which the host failed
    failure: int | None

    @property
    def fault(self):
        return self.failure is not None

    @property
    def part(self):
        number = self.label["run"]
        # Classes repeat every ten runs: the tens shift the split, so that each part has all classes.
        return (number + number // 10) % 5

    def ticks(self):
        """Ticks that count: those before the failure."""
        return len(self.values) if self.failure is None else self.failure

    def targets(self):
        """[ticks, causes, horizons]: whether the host, whose fault has begun, fails of it within so many ticks."""
        t = np.arange(self.ticks())
        targets = np.zeros((len(t), len(CAUSE_OF), len(HORIZONS)))
        if self.fault:
            left, cause = self.failure - t, CAUSE_OF[self.label["class"]]
            for n, horizon in enumerate(HORIZONS):
                targets[:, cause, n] = (t >= self.start) & (left <= horizon)
        return targets


def load(folder, wanted=None):
    """The runs in a folder: all, or those whose file names are wanted."""
    names = [name for name, _ in schema.features()]
    runs = []
    for path in sorted(folder.glob(f"*{traces.SUFFIX}")):
        if wanted is not None and path.name not in wanted:
            continue
        label, ticks, masks, rows = traces.read(path)
        known = label["features"]
        if known > len(names) or schema.fingerprint(names[:known]) != int(label["fingerprint"], 16):
            raise SystemExit(f"{path.name} was recorded with other features: record it again")
        # One row a second; a tick that was skipped repeats nothing, it is simply absent.
        values = np.zeros((len(rows), len(names)), np.float32)
        values[:, :known] = rows
        bits = np.array(masks, np.uint64)
        mask = ((bits[:, None] >> np.arange(len(names), dtype=np.uint64)) & np.uint64(1)).astype(np.float32)
        clock = np.array(ticks)

        def at(tick):
            return None if tick is None else int(np.searchsorted(clock, tick))

        fault = label["class"] in CAUSE_OF
        start, failure = (at(label["start_tick"]), at(label["failure_tick"])) if fault else (None, None)
        name = path.name.removesuffix(traces.SUFFIX)
        runs.append(Run(name, traces.digest(path), label, values * mask, mask, start, failure))
    if not runs:
        raise SystemExit(f"no traces in {folder}: record some with `cargo xtask lab`")
    return runs


def batch(runs):
    """values, mask [ticks, runs, features], targets [ticks, runs, causes, horizons], weight [ticks, runs]."""
    length = min(TICKS_MAX, max(run.ticks() for run in runs))
    width = runs[0].values.shape[1]
    values = np.zeros((length, len(runs), width))
    mask = np.zeros_like(values)
    targets = np.zeros((length, len(runs), len(CAUSE_OF), len(HORIZONS)))
    weight = np.zeros((length, len(runs)))
    for n, run in enumerate(runs):
        keep = min(length, run.ticks())
        first = run.ticks() - keep
        values[:keep, n] = run.values[first : run.ticks()]
        mask[:keep, n] = run.mask[first : run.ticks()]
        targets[:keep, n] = run.targets()[first:]
        weight[:keep, n] = 1.0
    return values, mask, targets, weight


# --- changes that make one run into many -----------------------------------------------------------------------

SLOT = {name: n for n, (name, _) in enumerate(schema.features())}
UNIT = [unit for _, unit in schema.features()]
STALLS = ["psi_io_some_us_per_s", "psi_io_full_us_per_s", "psi_memory_some_us_per_s", "psi_cpu_some_us_per_s"]
DISK = ["fsync_p50_us", "fsync_p99_us", "fsyncs_per_s", "disk_write_bytes_per_s", "disk_read_bytes_per_s",
        "block_write_p50_us", "block_write_p99_us"]  # fmt: skip


# How often a class is learned from: a warm-up is the hardest to tell from a leak.
CHANCE = {"leak": 0.28, "throttle": 0.24, "warm-up": 0.28, "backup": 0.1, "quiet": 0.1}


def chances(runs):
    """The chance of each run to be picked."""
    classes = [run.label["class"] for run in runs]
    weights = np.array([CHANCE[name] / classes.count(name) for name in classes])
    return weights / weights.sum()


def load_data(values, limit_mib, rng):
    """A service that loads its data: memory fills faster than leaks do, and stops below two thirds of the limit."""
    anon = values[:, SLOT["memory_anon_share"]]
    room = 0.67 - anon.max()
    if room < 0.05:
        return
    ticks = len(values)
    rate = np.exp(rng.uniform(np.log(0.02), np.log(0.25)))
    height = rng.uniform(0.05, room)
    begin = rng.uniform(-5.0, ticks)
    ramp = np.clip((np.arange(ticks) - begin) * rate, 0.0, height)
    values[:, SLOT["memory_anon_share"]] += ramp
    free = values[:, SLOT["memory_available_share"]]
    values[:, SLOT["memory_available_share"]] = np.clip(free - ramp, 0.0, 1.0)
    values[:, SLOT["memory_anon_growth_bytes_per_s"]] += np.diff(ramp, prepend=ramp[:1]) * limit_mib * (1 << 20)


def vary(run, rng):
    """Another host on which the same happened: other limits, other disks, other services, missing signals."""
    first = 0
    latest = (run.start if run.fault else run.ticks()) - 15
    if latest > 0 and rng.uniform() < 0.5:
        first = int(rng.integers(0, latest))
    values, mask = run.values[first:].astype(float), run.mask[first:].copy()
    ticks = len(values)
    # A host with more or less memory: what is left stretches, the limit stays where it is.
    lowest = 0.75 if run.fault else 0.85
    stretch = rng.uniform(lowest, 1.0) if rng.uniform() < 0.5 else rng.uniform(1.0, 1.5)
    anon = values[:, SLOT["memory_anon_share"]]
    stretch = min(stretch, 1.0 / max(1e-3, 1.0 - anon.min()))
    values[:, SLOT["memory_anon_share"]] = 1.0 - stretch * (1.0 - anon)
    values[:, SLOT["memory_anon_growth_bytes_per_s"]] *= stretch
    values[:, SLOT["memory_available_share"]] = np.clip(values[:, SLOT["memory_available_share"]] * stretch, 0, 1)
    if run.label["class"] != "leak" and rng.uniform() < 0.35:
        load_data(values, run.label["limit_mib"], rng)
    # Another disk, another writer.
    for name in DISK:
        values[:, SLOT[name]] *= np.exp(rng.normal(0.0, 0.35))
    if rng.uniform() < 0.3:
        values[:, SLOT["disk_write_bytes_per_s"]] += rng.uniform(0, 4 << 20)
        values[:, SLOT["fsyncs_per_s"]] += rng.uniform(0, 20)
    # Stalls that come and go by themselves.
    if rng.uniform() < 0.5:
        for _ in range(rng.integers(1, 6)):
            at, long = int(rng.integers(0, ticks)), int(rng.integers(1, 4))
            for name in STALLS[:2]:
                spot = values[at : at + long, SLOT[name]]
                values[at : at + long, SLOT[name]] = np.maximum(spot, rng.uniform(1e4, 5e5))
            for name in ("fsync_p50_us", "fsync_p99_us"):
                values[at : at + long, SLOT[name]] *= rng.uniform(1.0, 10.0)
    for name in STALLS:
        values[:, SLOT[name]] = np.clip(values[:, SLOT[name]] * np.exp(rng.normal(0.0, 0.2)), 0, 1e6)
    # Noise on everything.
    values *= np.exp(rng.normal(0.0, 0.03, values.shape) * np.array([unit != "Share" for unit in UNIT]))
    # Signals that a host does not have, or not in every tick.
    absent = rng.uniform(size=mask.shape[1]) < 0.06
    mask *= ~absent[None]
    mask *= rng.uniform(size=mask.shape) > 0.01

    def shift(tick):
        return None if tick is None else tick - first

    return dataclasses.replace(run, values=values * mask, mask=mask, start=shift(run.start), failure=shift(run.failure))
