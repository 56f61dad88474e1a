"""From genomes to what the cost models are affine in: operators timed alone, counted by what each knob makes of each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from equipoise.ops import Op
from equipoise.records import Choice, digest
from equipoise.road.facts import Act, Layer
from equipoise.schemes import bytes_per_weight, menu, scheme
from equipoise.search import Genomes, Space
from equipoise.stats import median

FLOAT_BYTES = 4
Floats = np.ndarray[Any, Any]
Shares = tuple[tuple[int, ...], Floats]
"""Columns, and what is left under each of their choices together; an axis each."""


def entry(op: Op, way: Choice) -> str:
    """Key of a look-up entry: an operator in a scheme."""
    return f"{way}:{digest(op)}"


def timed_in(ops: Sequence[Op], precisions: Sequence[Choice]) -> list[tuple[Op, Choice]]:
    """Return each operator with each scheme that it may be timed in."""
    return [(op, way) for op in ops for way in menu(op.kind) if way in precisions]


def variants(layers: Sequence[Layer], knobs: Collection[str] | None = None) -> list[Op]:
    """Every operator that one knob alone (of `knobs`, or of all) can give, without repeats; the whole layers come first."""
    whole = [layer.op for layer in layers]
    acts = [act for layer in layers for act in layer.acts if knobs is None or act.knob in knobs]
    changed = [op for act in acts for under in act.ops for op in under]
    return list({digest(op): op for op in (*whole, *changed)}.values())


def completed(times: Mapping[str, float], layers: Sequence[Layer], precisions: Sequence[Choice]) -> dict[str, float]:
    """Return `times` with what was not timed predicted from its MACs, at the pace of its layer or else of what was timed.

    What has no form of its own in a scheme is in floats, and there as quick.
    """
    every = {entry(op, way): (op, way) for op, way in timed_in(variants(layers), precisions)}
    timed = [(times[key] / op.work, bits) for key, (op, bits) in every.items() if key in times and op.work > 1]
    paces = {bits: [pace for pace, b in timed if b == bits] for bits in precisions}
    anywhere = [pace for some in paces.values() for pace in some] or [1e-9]
    out = dict(times)
    for layer in layers:
        shapes = [layer.op, *(op for act in layer.acts for under in act.ops for op in under)]
        for bits in precisions:
            whole = entry(layer.op, bits)
            for op in shapes:
                if bits not in menu(op.kind) and entry(op, 32) in out:
                    out.setdefault(entry(op, bits), out[entry(op, 32)])
            out.setdefault(whole, layer.op.work * median(paces[bits] or anywhere))
            for op in shapes[1:]:
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
        precisions: Schemes that the target computes in, floats first.
    """

    space: Space
    layers: tuple[Layer, ...]
    times: Mapping[str, float]
    precisions: tuple[Choice, ...]

    def of(self, axis: str, genomes: Genomes) -> Floats:
        """Return the features `(n, ...)` of an axis, by its key."""
        return FEATURES[axis](self, genomes)

    def latency(self, genomes: Genomes) -> Floats:
        """Return ``(n, 5)``: one, seconds in layers that take floats, seconds in those of int8 or half precision, changes from
        one to the other, operators.
        """
        return np.stack([np.ones(len(genomes)), *(part.sum(axis=1) for part in self._parts(genomes))], axis=1)

    def by_layer(self, genomes: Genomes) -> Floats:
        """Return ``(n, layers, 5)``: what each layer adds to the features of `latency`, and to the first of them nothing."""
        parts = self._parts(genomes)
        return np.stack([np.zeros(parts[0].shape), *parts], axis=2)

    def _parts(self, genomes: Genomes) -> tuple[Floats, ...]:
        """What each layer adds to the features of `latency` but the first, ``(n, layers)`` each."""
        live, ways = self._state(genomes)
        seconds = np.zeros(live.shape)
        for way, whole in self._seconds.items():
            chosen = ways == self.precisions.index(way)
            if chosen.any():
                seconds += np.where(chosen, self._product(genomes, self._time_ratios[way], whole), 0.0)
        seconds, apart = seconds * live, self._within(ways, "static", "half")
        parts = seconds * ~apart, seconds * apart, _changes(live, apart), self._operators(genomes) * live
        calls = np.array([float(layer.calls) for layer in self.layers])
        return tuple(part * calls for part in parts)

    def size(self, genomes: Genomes) -> Floats:
        """Return ``(n, 6)``: one, parameters kept in layers that take floats, in int8, operators in floats, in int8, encoded.

        What is held in fewer bits counts as as many floats as take its bytes.
        """
        live, ways = self._state(genomes)
        int8, kept, there = self._within(ways, "static"), self._kept(genomes, live), self._operators(genomes) * live
        held = kept * np.take_along_axis(self._bytes, ways.T, axis=1).T / FLOAT_BYTES
        encoded = np.array([scheme(way).encoded for way in self.precisions])[ways]
        counted = [(there * which).sum(1) for which in (~int8 & ~encoded, int8, encoded)]
        columns = [(held * ~int8).sum(1), (kept * int8).sum(1), *counted]
        return np.stack([np.ones(len(genomes)), *columns], axis=1)

    def params(self, genomes: Genomes) -> Floats:
        """Return ``(n, 2)``: one, parameters kept."""
        live, _ = self._state(genomes)
        return np.stack([np.ones(len(genomes)), self._kept(genomes, live).sum(axis=1)], axis=1)

    def macs(self, genomes: Genomes) -> Floats:
        """Return ``(n, 2)``: one, MACs of the layers."""
        live, _ = self._state(genomes)
        whole = np.array([layer.op.work * layer.calls for layer in self.layers])
        work = self._product(genomes, self._work_ratios, whole) * live
        return np.stack([np.ones(len(genomes)), work.sum(axis=1)], axis=1)

    def _operators(self, genomes: Genomes) -> Floats:
        """How many operators each layer is, ``(n, layers)``: one that was put into two is two."""
        return self._product(genomes, self._count_ratios, np.ones(len(self.layers)))

    def _kept(self, genomes: Genomes, live: Floats) -> Floats:
        """Parameters that each layer keeps, ``(n, layers)``."""
        return self._product(genomes, self._weight_ratios, np.array([float(layer.params) for layer in self.layers])) * live

    def _state(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Whether each layer is there, and in which of the `precisions` it is: ``(n, layers)`` each."""
        live = np.tile(self._present, (len(genomes), 1))
        ways = np.zeros(live.shape, dtype=np.int64)
        for i, layer in enumerate(self.layers):
            for column, gone in self._removals[i]:
                live[:, i] &= ~gone[genomes[:, column]]
            if layer.bits in self.space.positions:
                offered = self.space.knob(layer.bits).menu
                places = np.array([self.precisions.index(way) if way in self.precisions else 0 for way in offered])
                ways[:, i] = places[genomes[:, self.space.positions[layer.bits]]]
        return live, ways

    def _within(self, ways: Floats, *inputs: str) -> Floats:
        """Which layers take inputs of these kinds, and give such to others that do, ``(n, layers)``."""
        which = np.array([scheme(way).inputs in inputs for way in self.precisions])
        return which[ways]

    def _product(self, genomes: Genomes, ratios: Sequence[Sequence[Shares]], whole: Floats) -> Floats:
        """What is left of `whole` `(layers,)` under each genome, ``(n, layers)``."""
        out = np.repeat(whole[None], len(genomes), axis=0)
        for i, acts in enumerate(ratios):
            for columns, shares in acts:
                out[:, i] *= shares[tuple(genomes[:, column] for column in columns)]
        return out

    @cached_property
    def _seconds(self) -> dict[Choice, Floats]:
        return {bits: np.array([self.times[entry(layer.op, bits)] for layer in self.layers]) for bits in self.precisions}

    @cached_property
    def _bytes(self) -> Floats:
        """Bytes of a weight of each layer in each of the `precisions`, ``(layers, precisions)``."""
        rows = [(layer.op.kind, layer.op.row) for layer in self.layers]
        return np.array([[bytes_per_weight(way, kind, width) for way in self.precisions] for kind, width in rows])

    @cached_property
    def _time_ratios(self) -> dict[Choice, list[list[Shares]]]:
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
        factors = np.array(act.factors).reshape([*(len(choices) for _, choices in act.given), len(act.menu)])
        columns, kept = [], []
        for name, choices in act.given:
            there = name in self.space.positions
            columns += [self.space.positions[name]] if there else []
            kept.append([choices.index(choice) for choice in self.space.knob(name).menu] if there else 0)
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
    """Whether the precision changes from the live layer before to each, ``(n, layers)``."""
    changes, last = np.zeros(live.shape), np.full(len(live), -1)
    for layer in range(live.shape[1]):
        here, state = live[:, layer], int8[:, layer].astype(np.int64)
        changes[:, layer] = here & (last >= 0) & (state != last)
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
    "size_bytes": np.array([0.0, 4.0, 1.0, 300.0, 1300.0, 700.0]),
    "peak_memory_bytes": np.array([0.0, 4.0, 1.0, 0.0, 0.0, 0.0]),
    "params": np.array([0.0, 1.0]),
    "macs": np.array([0.0, 1.0]),
}
"""Believed before any whole net is measured: the sum of the isolated operators, four bytes a float and one an int8 weight.

Names, shapes and scales take some hundred bytes an operator, some four times that of an int8 one with its zero points, and
twice that of one with encoded weights, as counted in the ONNX files of the digits study.
"""
