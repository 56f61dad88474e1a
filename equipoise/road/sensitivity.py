"""One knob at a time: what each choice costs in loss, what each layer costs in time, measured once and kept.

The tables are what the predicted front is solved from. Loss is the divergence from the untouched model when one choice alone
is changed (repaired, not trained). Time is each layer's own look-up entry, as a single operator on the target.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from equipoise import runtimes
from equipoise.batch import mapped
from equipoise.compress import fakequant
from equipoise.measure import latency
from equipoise.records import digest
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.runtimes.ops import OpSpec, op_inputs, op_program, specs
from equipoise.search import Genomes, Knob, Space
from equipoise.stats import median
from equipoise.workloads import predict
from equipoise.workloads.running import one_thread

PROBE_SAMPLES = 1000
"""Validation samples for one-knob losses: KL needs far fewer than accuracy (METHODS 2.4)."""
FEWEST_SAMPLES = 64
"""Where time is short, entries are read on as few as this many samples rather than left unread."""


def choices(space: Space, macs: Mapping[str, float], places: Mapping[str, Sequence[str]]) -> list[tuple[Knob, Any]]:
    """Every single change that costs quality, one (knob, choice) for each entry of the loss table, the most telling first.

    The first pass takes the middle of each menu, the second its end, the third what lies between. Within a pass the heaviest
    knob of each kind comes first, from which its kin can be predicted, then the others by what their layers compute. So
    wherever the time ends, what is missing is what matters least.

    Args:
        macs: Layer name -> MACs of one sample.
        places: Place of a width knob -> the layers that make or read its channels; other knobs act on the layer or on the
            block that they name.
    """
    knobs = [k for k in space.knobs if k.kind != "runtime" and len(k.menu) > 1]

    def weight(knob: Knob) -> float:
        layers = places.get(knob.place) if knob.kind == "width" else None
        acts_on = layers or [n for n in macs if n == knob.place or n.startswith(knob.place + ".")]
        return -sum(macs.get(name, 0.0) for name in acts_on)

    ordered = sorted(knobs, key=weight)  # stable: knobs of equal weight stay in the order of the model
    heads = [next(k for k in ordered if k.kind == kind) for kind in sorted({k.kind for k in ordered})]
    ordered = [*heads, *(k for k in ordered if k not in heads)]
    passes = [[(k, k.menu[i]) for k in ordered for i in _pass(len(k.menu) - 1, turn)] for turn in range(3)]
    return [entry for each in passes for entry in each]


def _pass(last: int, turn: int) -> list[int]:
    """Menu indices that belong to pass `turn` of a menu that ends at index `last`."""
    middle = (last + 1) // 2
    if turn == 0:
        return [middle]
    if turn == 1:
        return [last] if last != middle else []
    return [i for i in range(1, last) if i != middle]


def loss_of(bench: Workbench, knob: Knob, choice: Any, *, samples: int = PROBE_SAMPLES) -> float:
    """Return the loss in nats when `knob` alone is set to `choice`, on the first `samples` of validation."""
    if knob.kind == "bits":
        calibration = mapped(bench.calibration, torch.from_numpy)
        model = fakequant.simulate(bench.teacher, calibration, layers={knob.place}, weight_bits=8)
    else:
        model = bench.build(bench.space.untouched.but({knob.name: choice}))
    with one_thread():
        found, _ = predict(model, bench.work.validation.take(samples), batch=bench.at_once)
    return bench.damage(found.numpy())


def layer_times(
    bench: Workbench, target: Target, layers: Sequence[Layer], *, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds of the operators that plans could contain, keyed by `entry`, and why some could not be timed.

    Each is its own little program on the target, timed in blocks beside all the others. Half of `seconds` may go into making
    the programs, whole layers first; those that found no time are in neither answer.
    """
    runtime = runtimes.get(target.runtime)
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    began = clock.perf_counter()
    for spec in variants(layers):
        for bits in runtime.precisions:
            if calls and clock.perf_counter() - began > seconds / 2:
                break
            try:
                session = runtime.load(op_program(spec, runtime, bits=bits), threads=target.threads, batch=target.batch)
                request = op_inputs(spec, bits=bits, batch=target.batch)
                session.run(request)
            except Exception as error:  # noqa: BLE001 - an operator that the runtime cannot run is predicted, and told
                failed[entry(spec, bits)] = f"{spec.kind} {spec.cin}x{spec.cout}, {bits} bits: {one_line(error)}"
                continue
            calls[entry(spec, bits)] = partial(session.run, request)
    if not calls:
        return {}, failed
    left = max(0.3, seconds - (clock.perf_counter() - began))
    timed = latency.interleave(calls, rounds=8, calls=12, discard=4, min_block_s=0.0005, seconds=left)
    return {key: median([median(block) for block in timed[key]]) for key in calls}, failed


def completed(times: Mapping[str, float], layers: Sequence[Layer], precisions: Sequence[int]) -> dict[str, float]:
    """Return `times` with what was not timed predicted from its MACs, at the pace of its layer or else of what was timed."""
    every = {entry(spec, bits): (spec, bits) for spec in variants(layers) for bits in precisions}
    paces = {bits: [times[k] / work_of(s) for k, (s, b) in every.items() if b == bits and k in times] for bits in precisions}
    anywhere = [pace for some in paces.values() for pace in some] or [1e-9]
    out = dict(times)
    for layer in layers:
        for bits in precisions:
            whole = entry(layer.spec, bits)
            out.setdefault(whole, work_of(layer.spec) * median(paces[bits] or anywhere))
            for spec in (*layer.narrower_in, *layer.narrower_out):
                out.setdefault(entry(spec, bits), out[whole] * work_of(spec) / work_of(layer.spec))
    return out


def work_of(spec: OpSpec) -> float:
    """MACs of an operator on one sample, near enough to compare operators by."""
    steps = spec.height * spec.width / (spec.stride[0] * spec.stride[1])
    return max(1.0, spec.cin / spec.groups * spec.cout * spec.kernel[0] * spec.kernel[1] * steps)


def one_line(error: BaseException) -> str:
    """Say in one line what was raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def entry(spec: OpSpec, bits: int) -> str:
    """Key of a look-up entry."""
    return f"{bits}:{digest(spec)}"


def variants(layers: Sequence[Layer]) -> list[OpSpec]:
    """Every operator shape that one width knob alone can give, without repeats; the whole layers come first."""
    whole = [layer.spec for layer in layers]
    narrower = [spec for layer in layers for spec in (*layer.narrower_in, *layer.narrower_out)]
    return list({digest(spec): spec for spec in (*whole, *narrower)}.values())


@dataclass(frozen=True)
class Layer:
    """A layer's place in the space: which knobs set its input and output widths, its precision and its presence."""

    spec: OpSpec
    name: str
    params: int
    in_knob: int
    out_knob: int
    bits_knob: int
    drop_knobs: tuple[int, ...]
    in_kept: tuple[float, ...]
    out_kept: tuple[float, ...]

    @property
    def narrower_in(self) -> tuple[OpSpec, ...]:
        """The layer at each narrower input width."""
        return tuple(_narrowed(self.spec, f, 1.0) for f in self.in_kept[1:])

    @property
    def narrower_out(self) -> tuple[OpSpec, ...]:
        """The layer at each narrower output width."""
        return tuple(_narrowed(self.spec, 1.0, f) for f in self.out_kept[1:])


def _narrowed(spec: OpSpec, into: float, out_of: float) -> OpSpec:
    """Return an operator with these shares of its widths; a depthwise one keeps both equal, a grouped one whole groups."""
    if spec.groups == spec.cin == spec.cout:
        width = max(1, round(spec.cin * min(into, out_of)))
        return replace(spec, cin=width, cout=width, groups=width)
    cin, cout = (max(1, round(width * f / spec.groups)) * spec.groups for width, f in ((spec.cin, into), (spec.cout, out_of)))
    return replace(spec, cin=cin, cout=cout)


def layers(bench: Workbench, space: Space) -> list[Layer]:
    """Tie every weighted layer to the knobs of `space` that act on it."""
    makes: dict[str, str] = {}
    reads: dict[str, str] = {}
    for group in bench.pruner.groups:
        if f"width.{group.name}" in space.positions:
            makes.update(dict.fromkeys(group.producers, f"width.{group.name}"))
            reads.update(dict.fromkeys(group.consumers, f"width.{group.name}"))
    modules = dict(bench.teacher.named_modules())

    def kept(knob: str | None) -> tuple[int, tuple[float, ...]]:
        if knob is None:
            return -1, (1.0,)
        at = space.positions[knob]
        menu = [int(c) for c in space.knobs[at].menu]
        return at, tuple(c / menu[0] for c in menu)

    out = []
    for name, spec in specs(bench.teacher, bench.work.example).items():
        (in_knob, in_kept), (out_knob, out_kept) = kept(reads.get(name)), kept(makes.get(name))
        drops = tuple(space.positions[f"depth.{b}"] for b in bench.pruner.blocks if name.startswith(b + "."))
        params = sum(p.numel() for p in modules[name].parameters(recurse=False))
        bits_knob = space.positions.get(f"bits.{name}", -1)  # -1 only where no target has int8
        out.append(Layer(spec, name, params, in_knob, out_knob, bits_knob, drops, in_kept, out_kept))
    return out


@dataclass(frozen=True)
class Features:
    """Turns genomes into what the cost models are affine in, for one target.

    A layer's time at a joint width is the product of its two single-width ratios; what that misses, the fit on whole nets
    absorbs.
    """

    layers: tuple[Layer, ...]
    times: Mapping[str, float]
    precisions: tuple[int, ...]

    def latency(self, genomes: Genomes) -> np.ndarray[Any, Any]:
        """Return ``(n, 5)``: one, seconds in fp32 layers, seconds in int8 layers, precision changes, live layers."""
        live, int8 = self._state(genomes)
        seconds = {bits: self._seconds(genomes, bits) * live for bits in self.precisions}
        fp32 = (seconds[32] * ~int8).sum(axis=1)
        quantized = (seconds[8] * int8).sum(axis=1) if 8 in seconds else np.zeros(len(genomes))
        return np.stack([np.ones(len(genomes)), fp32, quantized, _changes(live, int8), live.sum(axis=1)], axis=1)

    def size(self, genomes: Genomes) -> np.ndarray[Any, Any]:
        """Return ``(n, 4)``: one, parameters kept in fp32, in int8, live layers."""
        live, int8 = self._state(genomes)
        kept = np.stack(
            [layer.params * _take(genomes, layer.in_knob, layer.in_kept) * _take(genomes, layer.out_knob, layer.out_kept)
             for layer in self.layers], axis=1
        )  # fmt: skip
        ones = np.ones(len(genomes))
        return np.stack([ones, (kept * live * ~int8).sum(1), (kept * live * int8).sum(1), live.sum(1)], axis=1)

    def _state(self, genomes: Genomes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Whether each layer is there, and whether it is int8: two ``(n, layers)`` masks."""
        live = np.stack([~(genomes[:, list(layer.drop_knobs)] > 0).any(axis=1) for layer in self.layers], axis=1)
        if 8 not in self.precisions:
            return live, np.zeros_like(live)
        return live, np.stack([genomes[:, layer.bits_knob] > 0 for layer in self.layers], axis=1)

    def _seconds(self, genomes: Genomes, bits: int) -> np.ndarray[Any, Any]:
        return np.stack(
            [self._base(i, bits) * _take(genomes, layer.in_knob, self._ratios[i, bits][0])
             * _take(genomes, layer.out_knob, self._ratios[i, bits][1]) for i, layer in enumerate(self.layers)], axis=1
        )  # fmt: skip

    def _base(self, i: int, bits: int) -> float:
        return self.times[entry(self.layers[i].spec, bits)]

    @cached_property
    def _ratios(self) -> dict[tuple[int, int], tuple[tuple[float, ...], tuple[float, ...]]]:
        """(layer, bits) -> time at each input width and at each output width, relative to the whole layer."""
        out = {}
        for i, layer in enumerate(self.layers):
            for bits in self.precisions:
                base = self._base(i, bits)
                into, out_of = (
                    (1.0, *(self.times[entry(spec, bits)] / base for spec in specs))
                    for specs in (layer.narrower_in, layer.narrower_out)
                )
                out[i, bits] = (into, out_of)
        return out


def _take(genomes: Genomes, knob: int, values: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """Value of each genome's choice of a knob; 1 where no knob acts."""
    return np.asarray(values)[genomes[:, knob]] if knob >= 0 else np.ones(len(genomes))


def _changes(live: np.ndarray[Any, Any], int8: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Number of times the precision changes from one live layer to the next, ``(n,)``."""
    out = np.zeros(len(live))
    for row in range(len(live)):
        states = int8[row][live[row]]
        out[row] = np.count_nonzero(states[1:] != states[:-1])
    return out
