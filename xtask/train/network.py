"""The network in JAX: one step of the recurrent model, exactly what graph.py writes as ONNX."""

import jax
import jax.numpy as jnp
import numpy as np

import schema

CLIP = 6.0
SLOPE_MIN = 1e-5
LEFT_MAX = 1_000.0
# What a host fails of. Each has hazards of its own, so that what looks like a leak costs disks no time.
CAUSES = ["memory", "disk"]
HORIZON_COUNT = 3
HAZARD_MIN = 1e-6


def initial(key, hidden):
    width = schema.input_width()
    keys = jax.random.split(key, 3)
    bias = np.zeros(4 * hidden, np.float32)
    bias[2 * hidden : 3 * hidden] = 1.0  # the forget gate begins open
    return {
        # Gates in ONNX's order: input, output, forget, cell.
        "w": jax.random.normal(keys[0], (4 * hidden, width)) / np.sqrt(width),
        "r": jax.random.normal(keys[1], (4 * hidden, hidden)) / np.sqrt(hidden),
        "b": jnp.asarray(bias),
        "head_w": jax.random.normal(keys[2], (hidden, len(CAUSES) * HORIZON_COUNT)) * 0.1,
        "head_b": jnp.full(len(CAUSES) * HORIZON_COUNT, -3.0),
    }


def zero_state(hosts, hidden):
    return tuple(jnp.zeros((hosts, width)) for _, width in schema.state_tensors(hidden))


def squash(layout, values):
    """Selected raw values → comparable sizes, before normalisation."""
    x = values[:, layout["select"]]
    log = jnp.sign(x) * jnp.log(1.0 + jnp.abs(x) / layout["scale"])
    return layout["is_log"] * log + (1.0 - layout["is_log"]) * x


def observe(layout, past, seen, values, mask):
    """Beacon → network input, and the pasts one tick on."""
    y = squash(layout, values)
    m = mask[:, layout["select"]]
    z = jnp.clip((y - layout["mean"]) / layout["deviation"], -CLIP, CLIP) * m
    yt, mt = y[:, layout["trend"]], m[:, layout["trend"]]
    first = mt * (1.0 - seen)
    spread = layout["deviation"][layout["trend"]]
    trends, lefts, pasts = [], [], []
    count = len(schema.TRENDS)
    at = schema.TRENDS.index(schema.LEVEL)
    for n, tau in enumerate(schema.TAUS):
        before = past[:, n * count : (n + 1) * count]
        before = before + first * (yt - before)
        away = (yt - before) * mt
        trends.append(jnp.clip(3.0 * away / spread, -CLIP, CLIP))
        # A ramp is `tau` ticks of growth ahead of its own moving average: the time left at this pace.
        slope = away[:, at : at + 1] / tau
        left = (1.0 - yt[:, at : at + 1]) / jnp.maximum(slope, SLOPE_MIN)
        near = jnp.log(LEFT_MAX / jnp.clip(left, 1.0, LEFT_MAX)) / np.log(LEFT_MAX)
        lefts.append(2.0 * near * mt[:, at : at + 1])
        pasts.append(before + away / tau)
    x = jnp.concatenate([z, m, *trends, *lefts], axis=1)
    return x, jnp.concatenate(pasts, axis=1), jnp.maximum(seen, mt)


def step(weights, layout, state, values, mask):
    """(state, values, mask) → (state, hazards [hosts, causes, horizons] within 30, 90 and 240 ticks)."""
    h, c, past, seen = state
    x, past, seen = observe(layout, past, seen, values, mask)
    i, o, f, g = jnp.split(x @ weights["w"].T + h @ weights["r"].T + weights["b"], 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    logits = (h @ weights["head_w"] + weights["head_b"]).reshape(-1, len(CAUSES), HORIZON_COUNT)
    # A failure within 30 ticks is one within 90: each head adds to the one before it.
    survive = jnp.cumprod(jax.nn.sigmoid(-logits), axis=2)
    return (h, c, past, seen), 1.0 - survive


def causes(weights, layout, values, mask):
    """Hazards [ticks, hosts, causes, horizons] of whole runs [ticks, hosts, features]."""
    hidden = weights["r"].shape[1]

    def tick(state, inputs):
        return step(weights, layout, state, *inputs)

    return jax.lax.scan(tick, zero_state(values.shape[1], hidden), (values, mask))[1]


def combine(hazards, shift):
    """Hazards by cause → one risk per horizon: the worst cause, each moved by `shift` [causes, horizons] log-odds."""
    hazards = jnp.clip(hazards, HAZARD_MIN, 1.0 - HAZARD_MIN)
    return jax.nn.sigmoid(jnp.log(hazards) - jnp.log(1.0 - hazards) + shift).max(-2)


def run(weights, layout, values, mask):
    """Risks [ticks, hosts, horizons], as the exported graph gives them."""
    return combine(causes(weights, layout, values, mask), weights["shift"])
