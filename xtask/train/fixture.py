"""Writes the small untrained models and the expected outputs that the Rust tests of `predict` compare with."""

import json
import pathlib
import sys

import jax
import numpy as np
import onnx

import graph
import network
import schema

HIDDEN, TICKS, HOSTS = 4, 12, 3


def card(layout, stamp, hidden):
    return {
        "id": stamp,
        "features": layout["features"],
        "horizons": [30, 90, 240],
        "horizon": 30,
        "threshold": 0.5,
        "debounce_ticks": 3,
        "warm_up_ticks": 2,
        "state": [{"name": name, "width": width} for name, width in schema.state_tensors(hidden)],
    }


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    layout = schema.layout()
    rng = np.random.default_rng(4)
    layout["mean"] = rng.normal(0.3, 0.2, len(schema.USED)).astype(np.float32)
    layout["deviation"] = rng.uniform(0.5, 2.0, len(schema.USED)).astype(np.float32)
    weights = network.initial(jax.random.PRNGKey(4), HIDDEN)
    weights["head_w"] = weights["head_w"] * 10.0
    weights["shift"] = np.array([[0.5, 0.0, -0.5], [1.0, 0.0, 2.0]], np.float32)
    width = len(layout["features"])
    shares = np.array([unit == "Share" for _, unit in schema.features()])
    values = np.where(shares, rng.uniform(0, 1, (TICKS, HOSTS, width)), rng.lognormal(6, 3, (TICKS, HOSTS, width)))
    mask = (rng.uniform(size=values.shape) < 0.85).astype(np.float32)
    values = (values * mask).astype(np.float32)
    expected = np.asarray(network.run(weights, layout, values, mask))
    model = graph.build(weights, layout, "fixture")
    assert np.abs(graph.stream(model, values, mask) - expected).max() < 1e-5
    onnx.save(model, out / "small.onnx")
    (out / "small.card.json").write_text(json.dumps(card(layout, "fixture", HIDDEN), indent=1) + "\n")
    runs = {
        "values": [[[float(f"{v:.8g}") for v in host] for host in tick] for tick in values],
        "mask": [[[int(v) for v in host] for host in tick] for tick in mask],
        "hazards": expected.astype(float).round(7).tolist(),
    }
    (out / "small.expected.json").write_text(json.dumps(runs) + "\n")
    weights["head_b"] = np.full(weights["head_b"].shape, np.nan, np.float32)
    onnx.save(graph.build(weights, layout, "fixture"), out / "not-a-number.onnx")
    other = network.initial(jax.random.PRNGKey(5), HIDDEN + 1) | {"shift": weights["shift"]}
    onnx.save(graph.build(other, layout, "fixture"), out / "other-shape.onnx")


main(pathlib.Path(sys.argv[1]))
