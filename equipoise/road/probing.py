"""One knob at a time: what each choice costs in loss, what each operator costs in time, measured once and kept.

Loss is the divergence from the untouched model when one choice alone is changed (repaired, not trained). Time is each layer's
own look-up entry, as a single operator on the target.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch

from equipoise import runtimes
from equipoise.batch import mapped
from equipoise.compress.builder import Builder
from equipoise.errors import words_of
from equipoise.measure import latency
from equipoise.ops import Op
from equipoise.records import Choice
from equipoise.road.bench import Workbench
from equipoise.road.entries import MOST_SAMPLES
from equipoise.road.facts import Layer
from equipoise.road.features import entry, timed_in, variants
from equipoise.road.prober import Change, Prober
from equipoise.runtimes import Target
from equipoise.runtimes.base import Resident
from equipoise.runtimes.ops import op_inputs, op_program
from equipoise.schemes import menu
from equipoise.stats import median

CALL = Op("add", 1, 1)
"""An operator whose time is that of the call."""
MAKING = 0.7
"""Share of the time of a table that may go into making its programs."""
OWN = 0.05
"""Share of its time that is an operator's own at least, however small it is."""


def prober(bench: Workbench) -> Prober:
    """Return what reads single changes on this bench; nothing is prepared before the first is read."""
    inputs = bench.laid(bench.work.validation.take(MOST_SAMPLES).tensors()[0])
    reference, calibration = torch.from_numpy(bench.reference), bench.laid(mapped(bench.calibration, torch.from_numpy))
    divergence, kept = bench.work.divergence, bench.kept
    return Prober(bench.teacher, calibration, inputs, reference, divergence, kept, threads=bench.threads)


def change_of(builder: Builder, prober: Prober, knob: str, choice: Choice) -> Change:
    """Return what one knob alone set to `choice` does to the untouched model."""
    draft = builder.changed(knob, choice, prober.ranges)
    kept = {layer: places for (layer, axis), places in draft.keep.items() if axis == "out"}
    reach = builder.reach(knob, draft)
    mended = draft.damaged and reach is not None
    return Change(lambda: builder.changed(knob, choice, prober.ranges).model, reach, kept, draft.renamed, mended)


def layer_times(
    target: Target, layers: Sequence[Layer], knobs: Collection[str], *, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds of the operators that plans could contain, keyed by `entry`, and why some could not be timed.

    Each is its own little program on the target, timed in blocks beside all the others, less what a call of next to nothing
    takes: a net pays that once, and the sum of its operators would hold it for each. So it is with the way to a device of its
    own memory and back, which is left out. Most of `seconds` may go into making the programs, whole layers first; those that
    found no time are in neither answer.

    Args:
        knobs: Those that are still in the space; what others would make of a layer is not timed.
    """
    runtime = runtimes.get(target.row)
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    began = clock.perf_counter()
    for op, bits in ((CALL, 32), *timed_in(variants(layers, knobs), runtime.precisions)):
        if len(calls) > 1 and clock.perf_counter() - began > MAKING * seconds:
            break
        try:
            session = runtime.load(op_program(op, runtime, bits=bits), threads=target.threads, batch=target.batch)
            request = op_inputs(op, bits=bits, batch=target.batch)
            session.run(request)
        except Exception as error:  # noqa: BLE001 - an operator that the runtime cannot run is predicted, and told
            failed[entry(op, bits)] = f"{op.kind} {op.cin}x{op.cout}, {bits} bits: {one_line(error)}"
            continue
        calls[entry(op, bits)] = session.again if isinstance(session, Resident) else partial(session.run, request)
    if not calls:
        return {}, failed
    left = max(0.3, seconds - (clock.perf_counter() - began))
    times = _read(calls, seconds=0.8 * left)
    if again := doubtful(times, layers):  # what seems slower for being less, or stood beside what does, was perhaps disturbed
        times |= _read({key: calls[key] for key in calls if key in again}, seconds=0.2 * left)
    call = times.pop(entry(CALL, 32), 0.0)
    return {key: max(time - call, OWN * time) for key, time in times.items()}, failed


def _read(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Return the seconds of each call, timed in blocks beside all the others."""
    timed = latency.interleave(calls, rounds=8, calls=12, discard=4, min_block_s=0.0005, seconds=seconds)
    return {key: median([median(block) for block in timed[key]]) for key in calls}


def doubtful(times: Mapping[str, float], layers: Sequence[Layer]) -> set[str]:
    """Return the entries of operators that take longer than the layer they are less of, and those of these layers."""
    found: set[str] = set()
    for layer in layers:
        lesser = [under[0] for act in layer.acts for under in act.ops if len(under) == 1 and under[0].work < layer.op.work]
        for way in menu(layer.op.kind):
            whole = entry(layer.op, way)
            slower = {entry(op, way) for op in lesser if times.get(entry(op, way), 0.0) > times.get(whole, math.inf)}
            found |= slower | ({whole} if slower else set())
    return found


def one_line(error: BaseException) -> str:
    """Say in one line what was raised."""
    return f"{type(error).__name__}: {words_of(error)[:200]}"
