"""What one change alone costs, for a fraction of a whole build and a whole pass.

A change touches some layers. What comes before them is answered from what was kept of the untouched model (`compress.suffix`),
and only they and the next layers that can mend the damage are re-solved. Few samples come first; more are taken only where two
changes cannot be told apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.compress.repair import refit
from equipoise.compress.statistics import Target, collect
from equipoise.compress.suffix import MOST_BYTES, Suffixes
from equipoise.compress.trace import WEIGHTED, Invocation
from equipoise.training.losses import apart, spreads
from equipoise.workloads.meaning import Divergence
from equipoise.workloads.running import at_once, one_thread

FIRST_SAMPLES = 64
"""Samples that every change is read on first, and by which a reading grows."""
MOST_SAMPLES = 256
"""Samples beyond which a reading does not grow: ranks settle long before (benchmarks/table_cost.py)."""
CALIBRATION = 128
"""Calibration inputs that a change is mended on."""
MENDING = 2
"""Layers re-solved after the last one touched: as far as the next block's sum, which mends most of what is left."""


@dataclass(frozen=True)
class Change:
    """One change to the untouched model.

    Attributes:
        make: Returns the changed model, not repaired: a new module; parameters may be the untouched model's own.
        layers: Names of the modules that differ from the untouched model's, whole blocks or single layers; None where this is
            not known, or everything differs. Naming too many costs time, naming too few gives a wrong loss.
        kept: Output channels that each narrowed layer kept, by layer.
        mended: Whether layers are re-solved after it.
    """

    make: Callable[[], nn.Module]
    layers: frozenset[str] | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    mended: bool = True


class Loss(NamedTuple):
    """Mean divergence from the untouched model, its standard error, and the samples that it was read on (0: estimated)."""

    mean: float
    error: float
    samples: int


@dataclass
class Prober:
    """Reads what changes cost, each alone, on the same samples.

    Attributes:
        teacher: The untouched model in eval mode, BatchNorm folded.
        calibration: Unlabelled inputs `(N, ...)` that repair fits to; the first `CALIBRATION` are used.
        inputs: Validation inputs `(N, ...)`.
        reference: What the untouched model answers to them, (N, ...); of the program that would ship, where there is one.
        divergence: What the outputs mean.
        most_bytes: Bound on the activations kept, half of it for the calibration inputs.

    Example:
        >>> prober = Prober(teacher, calibration, inputs, reference, divergence)  # doctest: +SKIP
        >>> prober.loss(Change(lambda: drop(teacher, ["layer2.1"]), frozenset({"layer2.1"})))  # doctest: +SKIP
        Loss(mean=0.066, error=0.008, samples=64)
    """

    teacher: nn.Module
    calibration: Tensor
    inputs: Tensor
    reference: Tensor
    divergence: Divergence
    most_bytes: int = MOST_BYTES
    _students: dict[int, tuple[Change, nn.Module, list[Tensor]]] = field(default_factory=dict)

    def loss(self, change: Change, samples: int = FIRST_SAMPLES) -> Loss:
        """Return the loss of `change` on the first `samples`, rounded up to whole batches; calls add to one another."""
        if id(change) not in self._students:
            self._students[id(change)] = (change, self._student(change), [])
        _, student, read = self._students[id(change)]
        batches = self._scoring.batches
        while sum(map(len, read)) < min(samples, len(self.inputs)):
            rows = batches[len(read)]
            with one_thread():
                found = self._scoring.run(student, change.layers, batch=len(read))
            read.append(self._each(found, self.reference[rows]))
        each = torch.cat(read)
        spread = float(each.std(correction=1)) if len(each) > 1 else math.inf
        return Loss(float(each.mean()), spread / math.sqrt(len(each)), len(each))

    @cached_property
    def _scoring(self) -> Suffixes:
        step = at_once(self.inputs, FIRST_SAMPLES)
        with one_thread():
            return Suffixes(self.teacher, self.inputs, step=step, samples=MOST_SAMPLES, most_bytes=self.most_bytes // 2)

    @cached_property
    def _fitting(self) -> Suffixes:
        inputs = self.calibration[:CALIBRATION]
        with one_thread():
            return Suffixes(self.teacher, inputs, step=len(inputs), most_bytes=self.most_bytes // 2)

    @cached_property
    def _targets(self) -> dict[str, Target]:
        """What each layer that can be re-solved answers, in execution order."""
        with one_thread():
            found = collect(self.teacher, self.calibration[:CALIBRATION]).targets
        return {name: found[name] for name in sorted(found, key=lambda name: self._fitting.script.first([name]))}

    def _mending(self, layers: Collection[str] | None) -> dict[str, Target]:
        """Return the targets of the layers between the first and the last touched, and of the next ones."""
        if layers is None:
            return self._targets
        script = self._fitting.script
        begin, end = script.first(layers), script.last(layers)
        places = {name: script.first([name]) for name in self._targets}
        inside = [name for name, place in places.items() if begin <= place <= end]
        after = [name for name, place in places.items() if place > end]
        return {name: self._targets[name] for name in (*inside, *after[:MENDING])}

    def _student(self, change: Change) -> nn.Module:
        """Return the changed model, mended, its untouched weights shared with the teacher."""
        student = change.make().eval()
        if not change.mended:
            return _lean(student, self.teacher)
        weighted = {name for name, part in student.named_modules() if isinstance(part, WEIGHTED)}
        targets = {name: target for name, target in self._mending(change.layers).items() if name in weighted}

        def through(model: nn.Module, _inputs: Tensor, answer: Callable[[Invocation], Any]) -> Any:
            return self._fitting.run(model, change.layers, answer=answer)

        with one_thread():
            mended = refit(student, self.calibration, targets=targets, kept=change.kept, through=through)
        return _lean(mended, self.teacher)

    def _each(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the divergence of each sample, (N,)."""
        kind, axis, given = self.divergence.kind, self.divergence.axis, self.divergence.probabilities
        pairs = zip(torch.split(found.double(), 1), torch.split(wanted.double(), 1), strict=True)
        spread = self._spread if kind == "values" else None
        return torch.stack([apart(f, w, kind=kind, axis=axis, probabilities=given, spread=spread) for f, w in pairs])

    @cached_property
    def _spread(self) -> Tensor:
        return spreads(self.reference)


def unsure(read: Mapping[Any, Loss], *, most: int = MOST_SAMPLES) -> list[Any]:
    """Return the changes whose loss cannot be told from that of a neighbor in the ranking and may still grow.

    Those that are hardest to tell come first.
    """
    ranked = sorted(read, key=lambda key: read[key].mean)
    doubt: dict[Any, float] = {}
    for below, above in itertools.pairwise(ranked):
        gap = read[above].mean - read[below].mean
        error = math.hypot(read[above].error, read[below].error)
        for key in (below, above):
            if gap < error and 0 < read[key].samples < most:
                doubt[key] = max(doubt.get(key, 0.0), error / max(gap, 1e-12))
    return sorted(doubt, key=lambda key: -doubt[key])


def _lean(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """Let `student` (in place) hold the teacher's own parameter wherever it is the same; return it."""
    theirs = dict(teacher.named_parameters())
    for name, part in student.named_modules():
        for leaf, value in list(part.named_parameters(recurse=False)):
            same = theirs.get(f"{name}.{leaf}".lstrip("."))
            if same is not None and same.shape == value.shape and torch.equal(same, value):
                setattr(part, leaf, same)
    return student
