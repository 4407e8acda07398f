"""Recorded runs, packed small: `traces.py pack RECORDED PACKED`. Needs nothing but Python.

A run that is packed already stays as it is: models are trained on it.

A packed run is one line of JSON (the label) and an LZMA stream: ticks, masks, then one column of `f32` after the
other, each value cut to 15 bits of mantissa and split into its bytes.
"""

import array
import hashlib
import json
import lzma
import pathlib
import struct
import sys

MAGIC = b"USTRACE1"
HEAD = struct.Struct("<8sIIQ")
SUFFIX = ".trace.xz"
CUT = 0xFFFFFF00


def pack(recorded, committed):
    committed.mkdir(parents=True, exist_ok=True)
    for label_path in sorted(recorded.glob("run-*.json")):
        if (committed / (label_path.stem + SUFFIX)).exists():
            continue
        label = json.loads(label_path.read_text())
        raw = label_path.with_suffix(".trace").read_bytes()
        magic, features, _, fingerprint = HEAD.unpack_from(raw)
        if magic != MAGIC:
            raise SystemExit(f"{label_path}: the trace beside it is no trace")
        row = struct.Struct(f"<QQ{features}f")
        body = raw[HEAD.size :]
        rows = list(row.iter_unpack(body[: len(body) // row.size * row.size]))
        label |= {"features": features, "fingerprint": f"{fingerprint:016x}", "ticks": len(rows)}
        words = array.array("Q", [r[0] for r in rows]) + array.array("Q", [r[1] for r in rows])
        columns = b""
        for n in range(features):
            bits = struct.pack(f"<{len(rows)}f", *(r[2 + n] for r in rows))
            bits = struct.pack(f"<{len(rows)}I", *(b & CUT for b in struct.unpack(f"<{len(rows)}I", bits)))
            columns += b"".join(bits[byte::4] for byte in (1, 2, 3))
        packed = lzma.compress(words.tobytes() + columns, preset=9)
        line = json.dumps(label, sort_keys=True).encode() + b"\n"
        (committed / (label_path.stem + SUFFIX)).write_bytes(line + packed)


def read(path):
    """(label, ticks, masks, rows of values as lists) of a packed run."""
    line, _, packed = path.read_bytes().partition(b"\n")
    label = json.loads(line)
    raw = lzma.decompress(packed)
    count, features = label["ticks"], label["features"]
    words = array.array("Q")
    words.frombytes(raw[: 16 * count])
    columns = []
    for n in range(features):
        at = 16 * count + 3 * count * n
        planes = [raw[at + byte * count : at + (byte + 1) * count] for byte in range(3)]
        bits = bytearray(4 * count)
        for byte in range(3):
            bits[byte + 1 :: 4] = planes[byte]
        columns.append(struct.unpack(f"<{count}f", bytes(bits)))
    return label, list(words[:count]), list(words[count:]), [list(row) for row in zip(*columns)]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    _, command, recorded, committed = sys.argv
    assert command == "pack"
    pack(pathlib.Path(recorded), pathlib.Path(committed))
