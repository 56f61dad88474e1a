"""One knob at a time: what each choice costs in loss, what each layer costs in time, measured once and kept.

The tables are what the predicted front is solved from. Loss is the divergence from the untouched model when one choice alone
is changed (repaired, not trained). Time is each layer's own look-up entry, as a single operator on the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from equipoise import runtimes
from equipoise.compress import fakequant
from equipoise.measure import latency
from equipoise.records import digest
from equipoise.runtimes import Target
from equipoise.runtimes.ops import OpSpec, op_inputs, op_program, specs
from equipoise.search import Genomes, Knob
from equipoise.stats import median
from equipoise.workbench import BATCH, Workbench, damage, one_thread

PROBE_SAMPLES = 1000
"""Validation samples for one-knob losses: KL needs far fewer than accuracy (METHODS 2.4)."""


def choices(bench: Workbench) -> list[tuple[Knob, Any]]:
    """Every single change that costs quality: one (knob, choice) for each entry of the loss table."""
    return [(k, c) for k in bench.space.knobs if k.kind != "runtime" for c in k.menu[1:]]


def loss_of(bench: Workbench, knob: Knob, choice: Any) -> float:
    """Return the loss in nats when `knob` alone is set to `choice`, on the first `PROBE_SAMPLES` of validation."""
    if knob.kind == "bits":
        calibration = torch.from_numpy(bench.calibration)
        model = fakequant.simulate(bench.teacher, calibration, layers={knob.place}, weight_bits=8)
    else:
        model = bench.build(bench.space.untouched.but({knob.name: choice}))
    inputs = bench.validation[0][:PROBE_SAMPLES]
    with one_thread(), torch.inference_mode():
        found = torch.cat([model(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)])
    return damage(bench.reference.outputs[:PROBE_SAMPLES], found.numpy(), bench.work.divergence)


def layer_times(bench: Workbench, target: Target, *, seconds: float) -> dict[str, float]:
    """Return the seconds of every operator that some plan could contain, keyed by `entry`.

    Each is its own little program on the target, timed in blocks beside all the others.
    """
    runtime = runtimes.get(target.runtime)
    calls: dict[str, Callable[[], object]] = {}
    for spec in variants(bench):
        for bits in runtime.precisions:
            session = runtime.load(op_program(spec, runtime, bits=bits), threads=target.threads, batch=target.batch)
            request = op_inputs(spec, bits=bits, batch=target.batch)
            calls[entry(spec, bits)] = partial(session.run, request)
    timed = latency.compare(calls, rounds=8, calls=12, discard=4, min_block_s=0.0005, seconds=seconds)
    return {key: median([median(block) for block in timed.blocks[key]]) for key in calls}


def entry(spec: OpSpec, bits: int) -> str:
    """Key of a look-up entry."""
    return f"{bits}:{digest(spec)}"


def variants(bench: Workbench) -> list[OpSpec]:
    """Every operator shape that one width knob alone can give, without repeats."""
    out: dict[str, OpSpec] = {}
    for layer in layers(bench):
        for spec in (layer.spec, *layer.narrower_in, *layer.narrower_out):
            out[digest(spec)] = spec
    return list(out.values())


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
        return tuple(replace(self.spec, cin=round(self.spec.cin * f)) for f in self.in_kept[1:])

    @property
    def narrower_out(self) -> tuple[OpSpec, ...]:
        """The layer at each narrower output width."""
        return tuple(replace(self.spec, cout=round(self.spec.cout * f)) for f in self.out_kept[1:])


def layers(bench: Workbench) -> list[Layer]:
    """Tie every weighted layer to the knobs that act on it."""
    space = bench.space
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
