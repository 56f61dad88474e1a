"""What each technique alone costs in accuracy and saves in work and bytes, on a real model, without training.

    python benchmarks/techniques.py "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000"     # 10 minutes of one core
    python benchmarks/techniques.py benchmarks/efficientnet.py:make_workload --samples 341 --data 128
    python benchmarks/techniques.py SPEC --only share factorize                                # some rows

Accuracy is read on --samples of the validation split, in torch; MACs are counted; bytes are those of the ONNX file that would
ship. `eq.sparsify` leaves the file as large as it is: its bytes are those of the file after zlib. Latency is the ratio of
medians of the CPU time of calls that take turns, one thread, batch 1: the median of three loads, the least and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import equipoise as eq
from equipoise.compress.fold import fold
from equipoise.measure.counts import count
from equipoise.runtimes import Program, get
from equipoise.runtimes.export import Exporter
from equipoise.workloads import load

Row = Callable[[], Any]
LOADS, TURNS = 3, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a workload: cifar10:..., images:... or FILE.py:FUNCTION")
    parser.add_argument("--samples", type=int, default=1000, help="of validation (%(default)s)")
    parser.add_argument("--data", type=int, default=256, help="unlabelled inputs that repair and criteria see (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="accuracy and MACs alone: nothing is exported or timed")
    parser.add_argument("--only", nargs="*", default=(), help="names of techniques")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = load(args.spec)
    inputs, targets = work.validation.take(args.samples).tensors()
    data, labels = (part[: args.data] for part in work.calibration.take(args.data).tensors())
    net = fold(work.model, data[:2], data=data[:64])
    whole = None if args.quick else _program(net, data)
    scored = 100 * _accuracy(net, inputs, targets)
    macs = count(net, data[:1]).macs
    print(f"{work.name}: accuracy {scored:.1f}, {macs / 1e6:.1f} M MACs{_bytes(whole)}", flush=True)
    for name, row in _rows(work.model, data, labels).items():
        if args.only and not any(name.startswith(word) for word in args.only):
            continue
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = row()
        took = time.monotonic() - began
        model = made if isinstance(made, nn.Module) else getattr(made, "model", net)  # int8 counts as the whole
        gained = "" if whole is None else _gained(name, made, model, whole, data)
        print(
            f"{name:44s} accuracy {100 * _accuracy(made if callable(made) else model, inputs, targets):5.1f}  "
            f"MACs / {macs / count(model, data[:1]).macs:4.2f}  {gained}{took:4.0f} s",
            flush=True,
        )


def _bytes(program: Program | None) -> str:
    return "" if program is None else f", {program.size_bytes:,} bytes"


def _gained(name: str, made: Any, model: nn.Module, whole: Program, data: Tensor) -> str:
    program = made.program if hasattr(made, "program") else _program(model, data)
    size = len(zlib.compress(program.file("model.onnx"))) if name.startswith("sparsify") else program.size_bytes
    ratios = sorted(_faster(program, whole, data))
    return f"bytes / {whole.size_bytes / size:4.2f}  {ratios[1]:4.2f}x [{ratios[0]:4.2f}, {ratios[2]:4.2f}]  "


def _rows(net: nn.Module, data: Tensor, labels: Tensor) -> dict[str, Row]:
    example = data[:2]

    def known(out: Tensor) -> Tensor:
        return F.cross_entropy(out, labels[: len(out)])

    rows: dict[str, Row] = {}
    for rate in (0.5, 0.7, 0.8):
        for criterion in ("magnitude", "activation", "obs"):
            rows[f"sparsify rate={rate} {criterion}"] = lambda rate=rate, criterion=criterion: eq.sparsify(
                net, example, rate=rate, criterion=criterion, data=data
            )
    rows["sparsify rate=0.5 magnitude, not repaired"] = lambda: eq.sparsify(net, example, rate=0.5)
    rows["sparsify pattern=2:4 obs"] = lambda: eq.sparsify(net, example, pattern="2:4", criterion="obs", data=data)
    for ratio in (0.3, 0.5):
        for form in ("halves", "tucker"):
            rows[f"factorize ratio={ratio} {form}"] = lambda ratio=ratio, form=form: eq.factorize(
                net, example, ratio=ratio, form=form, data=data
            )
    for energy in (0.95, 0.9):
        rows[f"factorize energy={energy}"] = lambda energy=energy: eq.factorize(net, example, energy=energy, data=data)
    for clusters in (256, 16):
        rows[f"share clusters={clusters}"] = lambda clusters=clusters: eq.share(net, example, clusters=clusters, data=data)
    for scheme in ("8-weights", "4-weights", 8):
        rows[f"quantize scheme={scheme}"] = lambda scheme=scheme: eq.quantize(net, data, scheme=scheme)
    for criterion in ("magnitude", "fisher", "activation", "obs"):
        rows[f"prune ratio=0.25 {criterion}"] = lambda criterion=criterion: eq.prune(
            net, example, ratio=0.25, criterion=criterion, data=data, loss=known
        )
    rows["prune blocks=1"] = lambda: eq.prune(net, example, blocks=1, data=data)
    return rows


@torch.no_grad()
def _accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> float:
    found = torch.cat([model(part).argmax(1) for part in inputs.split(50)])
    return float((found == targets).double().mean())


def _program(model: nn.Module, data: Tensor) -> Program:
    return get("onnxruntime").compile(Exporter().source(fold(model, data[:2]), data[:2], topology=""))


def _faster(program: Program, whole: Program, data: Tensor) -> list[float]:
    """How many times faster, once for each of three loads."""
    one, found = data[:1].numpy(), []
    for _ in range(LOADS):
        sessions = [get("onnxruntime").load(each) for each in (whole, program)]
        taken: list[list[float]] = [[], []]
        for _turn in range(TURNS):
            for session, times in zip(sessions, taken, strict=True):
                session.run(one)
                began = time.thread_time()
                for _call in range(5):
                    session.run(one)
                times.append(time.thread_time() - began)
        found.append(statistics.median(taken[0]) / statistics.median(taken[1]))
    return found


if __name__ == "__main__":
    main()
