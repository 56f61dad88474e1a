"""Which widths are quick: one operator at many widths, on each runtime and in each precision, timed side by side.

    python benchmarks/widths.py          # 1 minute; writes results/widths.json

A width that takes as long as a larger one is never worth its loss: this is what `runtimes.cpu.liked_channels` rounds to.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from equipoise import runtimes
from equipoise.errors import EquipoiseError
from equipoise.measure import latency, machine
from equipoise.ops import Op
from equipoise.runtimes.cpu import liked_channels
from equipoise.runtimes.ops import op_inputs, op_program
from equipoise.stats import median

WIDTHS = (32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 96)
RESULT = Path(__file__).parent / "results" / "widths.json"


def operator(kind: str, width: int) -> Op:
    """The operator at one width."""
    if kind == "3x3 convolution, 16x16":
        return Op("conv", width, width, (3, 3), padding=(1, 1), height=16, width=16)
    if kind == "1x1 convolution, 20x20":
        return Op("conv", 2 * width, width, height=20, width=20)
    return Op("linear", 4 * width, 4 * width, height=32)


def times(kind: str, name: str, bits: int) -> dict[int, list[float]]:
    """Return the median seconds of each block, by width."""
    runtime, calls = runtimes.get(name), {}
    for width in WIDTHS:
        op = operator(kind, width)
        session, request = runtime.load(op_program(op, runtime, bits=bits)), op_inputs(op, bits=bits)
        calls[str(width)] = partial(session.run, request)
    timed = latency.interleave(calls, rounds=20, calls=15, discard=3, min_block_s=0.0005, seconds=4.0)
    return {width: [median(block) for block in timed[str(width)]] for width in WIDTHS}


def main() -> None:
    rows = []
    for kind in ("3x3 convolution, 16x16", "1x1 convolution, 20x20", "linear, 32 rows, 4 times the width"):
        for name in ("onnxruntime", "openvino"):
            for bits in (32, 8):
                try:
                    found = times(kind, name, bits)
                except EquipoiseError as error:
                    print(f"{kind}, {name}, {bits} bits: {error}")
                    continue
                best = {width: min(blocks) for width, blocks in found.items()}
                spread = {width: median(blocks) / min(blocks) - 1 for width, blocks in found.items()}
                rows.append({"operator": kind, "runtime": name, "bits": bits, "best_s": best, "median_over_best": spread})
                print(f"{kind}, {name}, {bits} bits: " + "  ".join(f"{w}: {1e6 * s:.1f}" for w, s in best.items()) + " us")
    content = {"n": 20, "likes": liked_channels(), "machine": machine.describe(), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
