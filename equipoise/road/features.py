"""From genomes to what the cost models are affine in: operators timed alone, counted by what each knob makes of each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from equipoise.ops import Op
from equipoise.records import digest
from equipoise.road.facts import Act, Layer
from equipoise.search import Genomes, Space
from equipoise.stats import median

Floats = np.ndarray[Any, Any]
Shares = tuple[tuple[int, ...], Floats]
"""Columns, and what is left under each of their choices together; an axis each."""


def entry(op: Op, bits: int) -> str:
    """Key of a look-up entry."""
    return f"{bits}:{digest(op)}"


def variants(layers: Sequence[Layer], knobs: Collection[str] | None = None) -> list[Op]:
    """Every operator that one knob alone (of `knobs`, or of all) can give, without repeats; the whole layers come first."""
    whole = [layer.op for layer in layers]
    acts = [act for layer in layers for act in layer.acts if knobs is None or act.knob in knobs]
    changed = [op for act in acts for under in act.ops for op in under]
    return list({digest(op): op for op in (*whole, *changed)}.values())


def completed(times: Mapping[str, float], layers: Sequence[Layer], precisions: Sequence[int]) -> dict[str, float]:
    """Return `times` with what was not timed predicted from its MACs, at the pace of its layer or else of what was timed."""
    every = {entry(op, bits): (op, bits) for op in variants(layers) for bits in precisions}
    timed = [(times[key] / op.work, bits) for key, (op, bits) in every.items() if key in times and op.weights]
    paces = {bits: [pace for pace, b in timed if b == bits] for bits in precisions}
    anywhere = [pace for some in paces.values() for pace in some] or [1e-9]
    out = dict(times)
    for layer in layers:
        for bits in precisions:
            whole = entry(layer.op, bits)
            out.setdefault(whole, layer.op.work * median(paces[bits] or anywhere))
            for op in (op for act in layer.acts for under in act.ops for op in under):
                out.setdefault(entry(op, bits), out[whole] * op.work / layer.op.work)
    return out


@dataclass(frozen=True)
class Features:
    """Turns genomes into features, for one target.

    What several knobs make of a layer together is taken as the product of what each makes of it alone; weights and MACs are
    that times the factors that an act names. Seconds are nearer without: 2.8 against 4.5 % off on ResNet-20, 4.0 against 6.4
    on digits. What is still missed, the fit on whole nets absorbs.

    Attributes:
        times: Seconds of operators by `entry`, complete.
        precisions: Bits that the target computes in.
    """

    space: Space
    layers: tuple[Layer, ...]
    times: Mapping[str, float]
    precisions: tuple[int, ...]

    def of(self, axis: str, genomes: Genomes) -> Floats:
        """Return the features `(n, ...)` of an axis, by its key."""
        return FEATURES[axis](self, genomes)

    def latency(self, genomes: Genomes) -> Floats:
        """Return ``(n, 5)``: one, seconds in fp32 layers, seconds in int8 layers, precision changes, operators."""
        live, int8 = self._state(genomes)
        seconds = {bits: self._product(genomes, self._time_ratios[bits], self._seconds[bits]) for bits in self.precisions}
        fp32 = (seconds[32] * live * ~int8).sum(axis=1)
        quantized = (seconds[8] * live * int8).sum(axis=1) if 8 in seconds else np.zeros(len(genomes))
        operators = (self._operators(genomes) * live).sum(axis=1)
        return np.stack([np.ones(len(genomes)), fp32, quantized, _changes(live, int8), operators], axis=1)

    def size(self, genomes: Genomes) -> Floats:
        """Return ``(n, 5)``: one, parameters kept in fp32, in int8, operators in fp32, in int8."""
        live, int8 = self._state(genomes)
        kept = self._product(genomes, self._weight_ratios, np.array([float(layer.params) for layer in self.layers])) * live
        there = self._operators(genomes) * live
        columns = [(kept * ~int8).sum(1), (kept * int8).sum(1), (there * ~int8).sum(1), (there * int8).sum(1)]
        return np.stack([np.ones(len(genomes)), *columns], axis=1)

    def params(self, genomes: Genomes) -> Floats:
        """Return ``(n, 2)``: one, parameters kept."""
        size = self.size(genomes)
        return np.stack([size[:, 0], size[:, 1] + size[:, 2]], axis=1)

    def macs(self, genomes: Genomes) -> Floats:
        """Return ``(n, 2)``: one, MACs of the layers."""
        live, _ = self._state(genomes)
        work = self._product(genomes, self._work_ratios, np.array([layer.op.work for layer in self.layers])) * live
        return np.stack([np.ones(len(genomes)), work.sum(axis=1)], axis=1)

    def _operators(self, genomes: Genomes) -> Floats:
        """How many operators each layer is, ``(n, layers)``: one that was put into two is two."""
        return self._product(genomes, self._count_ratios, np.ones(len(self.layers)))

    def _state(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Whether each layer is there, and whether it is int8: two ``(n, layers)`` masks."""
        live = np.tile(self._present, (len(genomes), 1))
        int8 = np.zeros_like(live)
        for i, layer in enumerate(self.layers):
            for column, gone in self._removals[i]:
                live[:, i] &= ~gone[genomes[:, column]]
            if 8 in self.precisions and layer.bits in self.space.positions:
                int8[:, i] = genomes[:, self.space.positions[layer.bits]] > 0
        return live, int8

    def _product(self, genomes: Genomes, ratios: Sequence[Sequence[Shares]], whole: Floats) -> Floats:
        """What is left of `whole` `(layers,)` under each genome, ``(n, layers)``."""
        out = np.repeat(whole[None], len(genomes), axis=0)
        for i, acts in enumerate(ratios):
            for columns, shares in acts:
                out[:, i] *= shares[tuple(genomes[:, column] for column in columns)]
        return out

    @cached_property
    def _seconds(self) -> dict[int, Floats]:
        return {bits: np.array([self.times[entry(layer.op, bits)] for layer in self.layers]) for bits in self.precisions}

    @cached_property
    def _time_ratios(self) -> dict[int, list[list[Shares]]]:
        return {b: self._ratios(lambda op, b=b: self.times[entry(op, b)], together=False) for b in self.precisions}

    @cached_property
    def _weight_ratios(self) -> list[list[Shares]]:
        return self._ratios(lambda op: float(op.weights))

    @cached_property
    def _work_ratios(self) -> list[list[Shares]]:
        return self._ratios(lambda op: op.work)

    @cached_property
    def _count_ratios(self) -> list[list[Shares]]:
        return self._ratios(lambda _: 1.0, together=False)

    def _ratios(self, value: Any, *, together: bool = True) -> list[list[Shares]]:
        """For each layer and each knob that reshapes it, what is left under its choices, and those of others `together`."""
        out = []
        for layer in self.layers:
            found = []
            for act, column, under in self._acting(layer):
                whole = value(layer.op) or 1.0  # what has no weights keeps none
                shares = np.array([sum(map(value, ops)) / whole if ops else 1.0 for ops in under])
                found.append(self._beside(act, column, shares) if together and act.given else ((column,), shares))
            out.append(found)
        return out

    def _beside(self, act: Act, column: int, alone: Floats) -> Shares:
        """What an act leaves under each choice of the knobs that it depends on; one that is gone changes nothing."""
        factors = np.array(act.factors).reshape([*(len(menu) for _, menu in act.given), len(act.menu)])
        columns, kept = [], []
        for name, menu in act.given:
            there = name in self.space.positions
            columns += [self.space.positions[name]] if there else []
            kept.append([menu.index(choice) for choice in self.space.knob(name).menu] if there else 0)
        kept.append([act.menu.index(choice) for choice in self.space.knob(act.knob).menu])
        for axis in reversed(range(len(kept))):
            factors = factors.take(kept[axis], axis=axis)
        return (*columns, column), factors * alone

    @cached_property
    def _present(self) -> Floats:
        """Whether a layer is there at all, ``(layers,)``: what a knob that is gone would put before the model is not."""
        return np.array([all(act.ops[0] or act.knob in self.space.positions for act in layer.acts) for layer in self.layers])

    @cached_property
    def _removals(self) -> list[list[tuple[int, Floats]]]:
        found = [[(column, np.array([not ops for ops in under])) for _, column, under in self._acting(x)] for x in self.layers]
        return [[(column, gone) for column, gone in some if gone.any()] for some in found]

    def _acting(self, layer: Layer) -> list[tuple[Act, int, list[tuple[Op, ...]]]]:
        """What acts on a layer, its column, and the operators under each choice that is left on the menu."""
        acts = [act for act in layer.acts if act.knob in self.space.positions]
        return [(act, self.space.positions[act.knob], [act.of(c) for c in self.space.knob(act.knob).menu]) for act in acts]


def _changes(live: Floats, int8: Floats) -> Floats:
    """Number of times the precision changes from one live layer to the next, ``(n,)``."""
    changes, last = np.zeros(len(live)), np.full(len(live), -1)
    for layer in range(live.shape[1]):
        here, state = live[:, layer], int8[:, layer].astype(np.int64)
        changes += here & (last >= 0) & (state != last)
        last = np.where(here, state, last)
    return changes


FEATURES = {
    "latency_s": Features.latency,
    "energy_j": Features.latency,
    "size_bytes": Features.size,
    "peak_memory_bytes": Features.size,
    "params": Features.params,
    "macs": Features.macs,
}
"""Key of a predicted axis -> what it is affine in."""

PRIORS = {
    "latency_s": np.array([0.0, 1.0, 1.0, 0.0, 0.0]),
    "energy_j": np.array([0.0, 10.0, 10.0, 0.0, 0.0]),
    "size_bytes": np.array([0.0, 4.0, 1.0, 300.0, 1300.0]),
    "peak_memory_bytes": np.array([0.0, 4.0, 1.0, 0.0, 0.0]),
    "params": np.array([0.0, 1.0]),
    "macs": np.array([0.0, 1.0]),
}
"""Believed before any whole net is measured: the sum of the isolated operators, four bytes a float and one an int8 weight.

Names, shapes and scales take some hundred bytes an operator, and of an int8 one with its zero points some four times that, as
counted in the ONNX files of the digits study.
"""
