"""The trained step as an ONNX graph: (values, mask, state) → (hazard, next state), any number of hosts."""

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

import network
import schema

OPSET = 17


class Builder:
    """Collects nodes and constants under readable names."""

    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0

    def constant(self, value, dtype=np.float32):
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def __call__(self, op, *inputs, out=None, **attributes):
        self.count += 1
        out = out or f"{op.lower()}{self.count}"
        outs = [out] if isinstance(out, str) else list(out)
        self.nodes.append(helper.make_node(op, list(inputs), outs, **attributes))
        return outs[0] if isinstance(out, str) else outs


def observe(b, layout):
    """As `network.observe`, line by line."""
    select = b.constant(layout["select"], np.int64)
    one = b.constant(1.0)
    lo, hi = b.constant(-network.CLIP), b.constant(network.CLIP)
    x = b("Gather", "values", select, axis=1)
    m = b("Gather", "mask", select, axis=1)
    log = b("Log", b("Add", b("Div", b("Abs", x), b.constant(layout["scale"])), one))
    log = b("Mul", b("Sign", x), log)
    is_log = np.asarray(layout["is_log"])
    y = b("Add", b("Mul", log, b.constant(is_log)), b("Mul", x, b.constant(1.0 - is_log)))
    z = b("Div", b("Sub", y, b.constant(layout["mean"])), b.constant(layout["deviation"]))
    z = b("Mul", b("Clip", z, lo, hi), m)
    trend = b.constant(layout["trend"], np.int64)
    yt, mt = b("Gather", y, trend, axis=1), b("Gather", m, trend, axis=1)
    first = b("Mul", mt, b("Sub", one, "seen"))
    spread = b.constant(np.asarray(layout["deviation"])[layout["trend"]] / 3.0)
    count, at = len(schema.TRENDS), schema.TRENDS.index(schema.LEVEL)
    column = b.constant([at], np.int64)
    level, present = b("Gather", yt, column, axis=1), b("Gather", mt, column, axis=1)
    trends, lefts, pasts = [], [], []
    for n, tau in enumerate(schema.TAUS):
        mine = b.constant(np.arange(n * count, (n + 1) * count), np.int64)
        before = b("Gather", "past", mine, axis=1)
        before = b("Add", before, b("Mul", first, b("Sub", yt, before)))
        away = b("Mul", b("Sub", yt, before), mt)
        trends.append(b("Clip", b("Div", away, spread), lo, hi))
        slope = b("Div", b("Gather", away, column, axis=1), b.constant(tau))
        slope = b("Max", slope, b.constant(network.SLOPE_MIN))
        left = b("Div", b("Sub", one, level), slope)
        left = b("Clip", left, one, b.constant(network.LEFT_MAX))
        near = b("Log", b("Div", b.constant(network.LEFT_MAX), left))
        near = b("Mul", near, b.constant(2.0 / np.log(network.LEFT_MAX)))
        lefts.append(b("Mul", near, present))
        pasts.append(b("Add", before, b("Div", away, b.constant(tau))))
    x = b("Concat", z, m, *trends, *lefts, axis=1)
    b("Concat", *pasts, axis=1, out="past_next")
    b("Max", "seen", mt, out="seen_next")
    return x


def build(weights, layout, stamp):
    b = Builder()
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    hidden = weights["r"].shape[1]
    time = b.constant([0], np.int64)
    x = b("Unsqueeze", observe(b, layout), time)
    bias = np.concatenate([weights["b"], np.zeros(4 * hidden, np.float32)])
    lstm = [b.constant(weights["w"][None]), b.constant(weights["r"][None]), b.constant(bias[None])]
    state = [b("Unsqueeze", name, time) for name in ("h", "c")]
    _, h, c = b("LSTM", x, *lstm, "", *state, out=("lstm_y", "lstm_h", "lstm_c"), hidden_size=hidden)
    h = b("Squeeze", h, time, out="h_next")
    b("Squeeze", c, time, out="c_next")
    logits = b("Add", b("MatMul", h, b.constant(weights["head_w"])), b.constant(weights["head_b"]))
    alive = b("Sigmoid", b("Neg", logits))
    risks = []
    for cause, shift in enumerate(weights["shift"]):
        first = cause * network.HORIZON_COUNT
        columns = [b("Gather", alive, b.constant([first + n], np.int64), axis=1) for n in range(network.HORIZON_COUNT)]
        for n in range(1, network.HORIZON_COUNT):
            columns[n] = b("Mul", columns[n - 1], columns[n])
        least, most = b.constant(network.HAZARD_MIN), b.constant(1.0 - network.HAZARD_MIN)
        fails = b("Clip", b("Sub", b.constant(1.0), b("Concat", *columns, axis=1)), least, most)
        odds = b("Sub", b("Log", fails), b("Log", b("Sub", b.constant(1.0), fails)))
        risks.append(b("Sigmoid", b("Add", odds, b.constant(shift))))
    b("Max", *risks, out="hazard")

    def rows(name, width):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["hosts", width])

    features = len(layout["features"])
    tensors = schema.state_tensors(hidden)
    graph = helper.make_graph(
        b.nodes,
        "understudy-fast",
        [rows("values", features), rows("mask", features), *(rows(*tensor) for tensor in tensors)],
        [rows("hazard", 3), *(rows(f"{name}_next", width) for name, width in tensors)],
        b.constants,
    )
    model = helper.make_model(
        graph, producer_name="understudy", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )
    helper.set_model_props(model, {"understudy_id": stamp})
    checker.check_model(model)
    return model


def stream(model, values, mask):
    """Hazards [ticks, hosts, 3] of the graph under ONNX Runtime, state carried from tick to tick."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    hidden = next(tensor.shape[1] for tensor in session.get_inputs() if tensor.name == "h")
    names = [name for name, _ in schema.state_tensors(hidden)]
    state = {
        name: np.zeros((values.shape[1], width), np.float32) for name, width in schema.state_tensors(hidden)
    }
    hazards = []
    for value, present in zip(values, mask):
        outputs = ["hazard"] + [f"{name}_next" for name in names]
        hazard, *after = session.run(outputs, {"values": value, "mask": present, **state})
        state = dict(zip(names, after))
        hazards.append(hazard)
    return np.stack(hazards)
