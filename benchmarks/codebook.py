"""Sixteen shared values a layer beside 4-bit weights by group: which loses less, at as many bytes, layer by layer?

    python benchmarks/codebook.py "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000"     # 3 minutes of one core
    python benchmarks/codebook.py benchmarks/efficientnet.py:make_workload --samples 64      # 15
    python benchmarks/codebook.py "sentiment:SST2?model=FOLDER&length=32" --samples 64       # 10

One layer at a time is held in few bits, all others in floats: the loss is the divergence of the answers from the untouched
model's on --samples of validation (KL in nats), in torch. *4-weights* is what the search offers. *codebook* is Lloyd's on the
line, weighed by what is read, the mean of the error taken off the bias. *ordered* rounds to that same codebook column by column
in GPTQ's order, as `eq.share` does. A weight takes half a byte in each; bytes beside it are those of steps (4 for a group of 64
to 16, or a filter) or of the sixteen values (64). At the end all layers at once. Result: results/codebook.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import torch
from torch import nn

from equipoise.batch import take
from equipoise.compress.codebook import clustered
from equipoise.compress.fold import fold
from equipoise.compress.operators import operators
from equipoise.compress.rounding import made_good, round_layer
from equipoise.compress.statistics import Moments, as_matrix, as_weight, collect
from equipoise.compress.trace import copied
from equipoise.measure import machine
from equipoise.ops import Op
from equipoise.schemes import bytes_per_weight
from equipoise.workloads import load, predict

RESULTS = Path(__file__).parent / "results" / "codebook.json"
VALUES = 16
WAYS = ("4-weights", "codebook", "ordered")


@torch.no_grad()
def hold(layer: Any, way: str, moments: Moments | None) -> None:
    """Put the weights of a layer, in place, on what a way can store."""
    if way == "4-weights":
        round_layer(layer, "4-weights", moments, exact=True)
        return
    table = isinstance(layer, nn.Embedding)
    weight = layer.weight.double() if table else as_matrix(layer.weight).double()
    known = moments is not None and moments.finite and len(moments.mean) == weight.shape[1]
    book = clustered(weight, moments.power if known and moments is not None else torch.ones(1).double(), VALUES)
    found, bias = book.weight, getattr(layer, "bias", None)
    if way == "ordered" and known and moments is not None:
        between = (book.values[1:] + book.values[:-1]) / 2
        second = moments.gram if bias is None else moments.covariance
        found = made_good(weight, found, second, lambda some, _: book.values[torch.bucketize(some.contiguous(), between)])
    if known and moments is not None and bias is not None:
        bias += ((weight - found) @ moments.mean).to(bias.dtype)
    layer.weight.copy_((found if table else as_weight(found, layer.weight)).to(layer.weight.dtype))


def stored(op: Op, way: str) -> float:
    """Bytes of a layer's weights."""
    return op.weights * bytes_per_weight("4-weights", op.kind, op.row) if way == "4-weights" else op.weights / 2 + 4 * VALUES


def kind_of(op: Op) -> str:
    if op.kind != "conv":
        return op.kind
    return "depthwise" if op.depthwise else "1x1 conv" if op.kernel == (1, 1) else "conv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a workload")
    parser.add_argument("--samples", type=int, default=256, help="of validation (%(default)s)")
    parser.add_argument("--data", type=int, default=256, help="unlabelled inputs for the moments (%(default)s)")
    args = parser.parse_args()
    photographs.declare_operators()
    torch.set_num_threads(1)
    began, work = time.process_time(), load(args.spec)
    kept, data = work.validation.take(args.samples), work.calibration.take(args.data).tensors()[0]
    net = fold(work.model, take(data, slice(2)), data=take(data, slice(64)))
    ops = operators(net, take(data, slice(2)))
    multiplying = frozenset(name for name, op in ops.items() if op.kind != "embedding")
    moments = collect(net, data, moments_of=multiplying, targets=False).moments
    reference = predict(net, kept, batch=32)[0].numpy()

    def loss(layers: tuple[str, ...], way: str) -> float:
        held = copied(net).eval()
        for name in layers:
            hold(held.get_submodule(name), way, moments.get(name))
        return work.divergence.between(reference, predict(held, kept, batch=32)[0].numpy())

    rows = []
    for name, op in ops.items():
        row = {"layer": name, "kind": kind_of(op), "weights": op.weights}
        row |= {way: {"kl": loss((name,), way), "bytes": stored(op, way)} for way in WAYS}
        rows.append(row)
        print(name, row["kind"], *(f"{way} {row[way]['kl']:.2e}" for way in WAYS), flush=True)
    whole = {way: {"kl": loss(tuple(ops), way), "bytes": sum(row[way]["bytes"] for row in rows)} for way in WAYS}
    found = {"samples": args.samples, "data": args.data, "all": whole, "kinds": told(rows), "layers": rows}
    found |= {"cpu_s": time.process_time() - began, "machine": machine.describe()}
    print(json.dumps({"all": whole, "kinds": found["kinds"]}, indent=1))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, work.name: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def told(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """By kind: layers, those in which each codebook loses less than 4-weights, the geometric mean of the ratios, bytes."""
    out = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = [row for row in rows if row["kind"] == kind]
        out[kind] = {"layers": len(some)}
        for way in WAYS[1:]:
            ratios = [max(row[way]["kl"], 1e-12) / max(row[WAYS[0]]["kl"], 1e-12) for row in some]
            sizes = [sum(row[w]["bytes"] for row in some) for w in (way, WAYS[0])]
            mean = math.exp(float(np.mean(np.log(ratios))))
            out[kind][way] = {
                "better_in": sum(ratio < 1 for ratio in ratios),
                "times_the_loss": mean,
                "times_the_bytes": sizes[0] / sizes[1],
            }
    return out


if __name__ == "__main__":
    main()
