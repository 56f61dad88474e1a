"""One knob at a time: what each choice costs in loss, what each operator costs in time, measured once and kept.

Loss is the divergence from the untouched model when one choice alone is changed (repaired, not trained). Time is each layer's
own look-up entry, as a single operator on the target.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch

from equipoise import runtimes
from equipoise.measure import latency
from equipoise.records import Choice, Plan
from equipoise.road.bench import BATCH, Workbench, damage
from equipoise.road.facts import Layer
from equipoise.road.features import entry, variants
from equipoise.runtimes import Target
from equipoise.runtimes.ops import op_inputs, op_program
from equipoise.stats import median
from equipoise.workloads.running import at_once, one_thread

PASS_SAMPLES = 32
"""Samples of the forward pass from which the pace of the model is read."""


def loss_of(bench: Workbench, knob: str, choice: Choice, *, samples: int) -> float:
    """Return the loss when one knob alone is set to `choice`, on the first `samples` of validation."""
    model = bench.builder.imitated(bench.build(Plan({knob: choice})))
    inputs = bench.validation[0][:samples]
    with one_thread(), torch.inference_mode():
        step = at_once(inputs, BATCH)
        found = torch.cat([model(inputs[i : i + step]) for i in range(0, len(inputs), step)])
    return damage(bench.reference[:samples], found.numpy(), bench.work.divergence)


def pace(bench: Workbench) -> float:
    """Return the seconds that the untouched model takes in torch for a sample, one thread."""
    inputs = bench.validation[0][:PASS_SAMPLES]
    with one_thread(), torch.inference_mode():
        bench.teacher(inputs)
        began = clock.perf_counter()
        bench.teacher(inputs)
    return (clock.perf_counter() - began) / len(inputs)


def layer_times(
    target: Target, layers: Sequence[Layer], knobs: Collection[str], *, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds of the operators that plans could contain, keyed by `entry`, and why some could not be timed.

    Each is its own little program on the target, timed in blocks beside all the others. Half of `seconds` may go into making
    the programs, whole layers first; those that found no time are in neither answer.

    Args:
        knobs: Those that are still in the space; what others would make of a layer is not timed.
    """
    runtime = runtimes.get(target.runtime)
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    began = clock.perf_counter()
    for op in variants(layers, knobs):
        for bits in runtime.precisions:
            if calls and clock.perf_counter() - began > seconds / 2:
                break
            try:
                session = runtime.load(op_program(op, runtime, bits=bits), threads=target.threads, batch=target.batch)
                request = op_inputs(op, bits=bits, batch=target.batch)
                session.run(request)
            except Exception as error:  # noqa: BLE001 - an operator that the runtime cannot run is predicted, and told
                failed[entry(op, bits)] = f"{op.kind} {op.cin}x{op.cout}, {bits} bits: {one_line(error)}"
                continue
            calls[entry(op, bits)] = partial(session.run, request)
    if not calls:
        return {}, failed
    left = max(0.3, seconds - (clock.perf_counter() - began))
    timed = latency.interleave(calls, rounds=8, calls=12, discard=4, min_block_s=0.0005, seconds=left)
    return {key: median([median(block) for block in timed[key]]) for key in calls}, failed


def one_line(error: BaseException) -> str:
    """Say in one line what was raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
