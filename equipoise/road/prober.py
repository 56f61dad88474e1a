"""What one change alone costs, for a fraction of a whole build and a whole pass.

A change touches some layers. What comes before them is answered from what was kept of the untouched model (`compress.suffix`),
and only they and the next layers that can mend the damage are re-solved. Few samples come first; more are taken only where two
changes cannot be told apart.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped, size, take
from equipoise.compress.fakequant import input_ranges
from equipoise.compress.repair import refit
from equipoise.compress.statistics import Target, collect
from equipoise.compress.suffix import MOST_BYTES, Suffixes
from equipoise.compress.trace import WEIGHTED, Invocation
from equipoise.road.entries import FIRST_SAMPLES, MOST_SAMPLES, Loss, sketched
from equipoise.workloads.divergence import Divergence, spreads
from equipoise.workloads.running import at_once, threads

CALIBRATION = 128
"""Calibration inputs that a change is mended on."""
HELD = 0.25
"""Share of them that no layer is fitted on: each output moves only as far as helps there."""
GUESSING = 32
"""Samples that an estimate is made of."""
DRAWS = 2
"""Labels drawn for each of these samples: a backward pass each."""
SKETCH = 1024
"""Numbers by which the record knows which way a change moves the answers."""
MENDING = 2
"""Dense layers re-solved after the last one touched: as far as the next block's sum, which mends most of what is left."""


class _EnoughSeen(BaseException):
    """All that was wanted of a run has been seen."""


@dataclass(frozen=True)
class Change:
    """One change to the untouched model.

    Attributes:
        make: Returns the changed model, not repaired: a new module; parameters may be the untouched model's own.
        layers: Names of the modules that differ from the untouched model's, whole blocks or single layers; None where this is
            not known, or everything differs. Naming too many costs time, naming too few gives a wrong loss.
        kept: Output channels that each narrowed layer kept, by layer.
        renamed: Layer -> the one inside it that now gives its answer.
        mended: Whether layers are re-solved after it.
        mending: How many dense layers beyond the last one touched, and what lies between; None for all that follow, as a whole
            build does.
    """

    make: Callable[[], nn.Module]
    layers: frozenset[str] | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    mended: bool = True
    mending: int | None = MENDING


@dataclass
class Prober:
    """Reads what changes cost, each alone, on the same samples.

    Attributes:
        teacher: The untouched model in eval mode, BatchNorm folded.
        calibration: Unlabelled inputs `(N, ...)` that repair fits to; the first `CALIBRATION` are used.
        inputs: Validation inputs `(N, ...)`.
        reference: What the untouched model answers to them, and to others after them whose spread counts as well, (M, ...); of
            the program that would ship, where there is one.
        divergence: What the outputs mean.
        kept: Which positions of the answers count; None where all do.
        threads: Threads to run models with.
        most_bytes: Bound on the activations kept, half of it for the calibration inputs; half as much again may go into the
            layers of changed models.

    Example:
        >>> prober = Prober(teacher, calibration, inputs, reference, divergence)  # doctest: +SKIP
        >>> prober.loss(Change(lambda: drop(teacher, [blocks["layer2.1"]]), frozenset({"layer2.1"})))  # doctest: +SKIP
        Loss(mean=0.066, error=0.008, samples=64)
    """

    teacher: nn.Module
    calibration: Inputs
    inputs: Inputs
    reference: Tensor
    divergence: Divergence
    kept: Tensor | None = None
    threads: int = 1
    most_bytes: int = MOST_BYTES
    _students: dict[int, nn.Module] = field(default_factory=dict)
    _read: dict[int, tuple[Change, list[Tensor]]] = field(default_factory=dict)
    _toward: dict[int, Tensor] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Samples beyond which a reading does not grow."""
        return min(MOST_SAMPLES, size(self.inputs))

    def prepare(self) -> None:
        """Prepare now what the first readings would: the runs that are kept, what layers answer, the ranges of their inputs."""
        self._scoring, self._fitting, self._targets, self.ranges  # noqa: B018

    @property
    def kept_bytes(self) -> int:
        """Bytes of the activations that are kept now."""
        return self._scoring.held_bytes + self._fitting.held_bytes

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Layer -> range of its input, from which int8 is simulated."""
        with threads(self.threads):
            return input_ranges(self.teacher, self.calibration)

    def loss(self, change: Change, samples: int = FIRST_SAMPLES) -> Loss:
        """Return the loss of `change` on the first `samples`, rounded up to whole batches; calls add to one another."""
        _, read = self._read.setdefault(id(change), (change, []))
        batches = self._scoring.batches
        while sum(map(len, read)) < min(samples, size(self.inputs)):
            student = self._students.pop(id(change), None) or self._student(change)
            with threads(self.threads):
                found = self._scoring.run(student, change.layers, batch=len(read))
            if sum(map(len, read)) < FIRST_SAMPLES:
                push = self._push(found, batches[len(read)], seed=len(read))
                self._toward[id(change)] = self._toward.get(id(change), torch.zeros(SKETCH)) + push
            read.append(self._each(found, batches[len(read)]))
            self._hold(id(change), student)
        each = torch.cat(read)
        return Loss(float(each.mean()), _error(each), len(each), sketched(self._toward[id(change)].tolist()))

    def estimate(self, changes: Mapping[Any, Change], *, apart: bool = False) -> dict[Any, Loss]:
        """Return the loss of every change to second order, for the price of its own layers and `DRAWS` backward passes.

        With u drawn so that E[u uᵀ] is the Hessian of the divergence at the untouched model's outputs (Fisher's: u = a drawn
        label's one-hot minus the probabilities), and g = Jᵀ u its gradient at what a changed layer hands on, the loss is near
        E[(g · dy)²] / 2, dy being the difference that the layer makes there, after it alone was mended. Larger changes leave
        the range of it, and layers that would mend more are not run: a scale for each kind of change is read off those that
        were measured, see `calibrated`. Left out: changes whose layers are not known, or do not run, or change every shape.

        Args:
            apart: Take what happens to each number that a layer hands on for independent, as roundings nearly are:
                E[Σ (g dy)²] / 2, for the scores of `leant`.
        """
        sketches = {
            key: self._student(replace(change, mending=0)) for key, change in changes.items() if change.layers is not None
        }
        sums: dict[Any, list[Tensor]] = {key: [] for key in sketches}
        sites = {name for key in sketches for name in changes[key].layers or ()}
        batches = self._scoring.batches
        for batch in range(min(len(batches), max(1, GUESSING // len(self.reference[batches[0]])))):
            given, slopes = self._slopes(take(self.inputs, batches[batch]), sites, seed=batch)
            for key, student in sketches.items():
                moved = self._moved(student, changes[key].layers or frozenset(), batch, given)
                for draw in slopes:
                    along = [(draw[name] * moved[name]).flatten(1) for name in moved if name in draw]
                    if along and apart:
                        sums[key].append(torch.stack([each.square().sum(1) for each in along]).sum(0) / 2)
                    elif along:
                        sums[key].append(torch.stack([each.sum(1) for each in along]).sum(0).square() / 2)
        return {key: Loss(float(torch.cat(found).mean()), _error(torch.cat(found)), 0) for key, found in sums.items() if found}

    def _slopes(
        self, inputs: Inputs, sites: Collection[str], *, seed: int
    ) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], ...]]:
        """Return what each of these modules hands on, (N, ...), and the gradient of each draw of u in it."""
        found: dict[str, Tensor] = {}

        def note(name: str, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point() or name in found:
                return output
            found[name] = output if output.requires_grad else output.requires_grad_()
            return output.clone()  # what is done to it in place is not done to the one kept

        parts = dict(self.teacher.named_modules())
        handles = [
            parts[name].register_forward_hook(lambda _m, _x, output, name=name: note(name, output))
            for name in sites
            if name in parts
        ]
        try:
            with threads(self.threads), torch.inference_mode(False), torch.enable_grad():
                scores = self._scores(call(self.teacher, mapped(inputs, torch.Tensor.clone)))
                random = torch.Generator().manual_seed(seed)
                drawn = [self._drawn(scores.detach(), random) for _ in range(DRAWS)]
                draws = [torch.autograd.grad(scores, [*found.values()], u, retain_graph=True, allow_unused=True) for u in drawn]
        finally:
            for handle in handles:
                handle.remove()
        slopes = [{name: g for name, g in zip(found, draw, strict=True) if g is not None} for draw in draws]
        return {name: output.detach() for name, output in found.items()}, tuple(slopes)

    def _scores(self, outputs: Tensor) -> Tensor:
        """Return the outputs as what the divergence is taken of: logits where they mean labels."""
        if not self.divergence.probabilities:
            return outputs
        kept = outputs.clamp(1e-7, 1 - 1e-7)
        return kept.log() if self.divergence.kind == "softmax" else kept.logit()

    def _drawn(self, scores: Tensor, random: torch.Generator) -> Tensor:
        """Draw u, in the shape of the scores: E[u uᵀ] is the Hessian of each sample's divergence."""
        each = scores[0].numel()
        if self.divergence.kind == "softmax":
            last = scores.movedim(self.divergence.axis, -1)
            chances = last.softmax(-1)
            labels = torch.multinomial(chances.flatten(0, -2), 1, generator=random).view(last.shape[:-1])
            drawn = nn.functional.one_hot(labels, last.shape[-1]).to(last.dtype) - chances
            return drawn.movedim(-1, self.divergence.axis) / math.sqrt(each / last.shape[-1])
        chances = scores.sigmoid() if self.divergence.kind == "bernoulli" else torch.full_like(scores, 0.5)
        drawn = (torch.rand(scores.shape, generator=random) < chances).to(scores.dtype) - chances
        if self.divergence.kind == "bernoulli":
            return drawn / math.sqrt(each)
        return 2 * drawn * math.sqrt(2 / each) / self._spread.to(scores.dtype)

    def _moved(self, student: nn.Module, layers: Collection[str], batch: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return how far off the changed modules are in what they hand on, where it still has the shape of the teacher's."""
        parts = dict(student.named_modules())
        left = {name for name in layers if name in parts and name in given}
        found: dict[str, Tensor] = {}

        def note(name: str, output: Any) -> None:
            left.discard(name)
            if isinstance(output, Tensor) and output.shape == given[name].shape and name not in found:
                found[name] = output.detach().clone() - given[name]
            if not left:
                raise _EnoughSeen

        handles = [parts[name].register_forward_hook(lambda _m, _x, output, name=name: note(name, output)) for name in left]
        try:
            with threads(self.threads), contextlib.suppress(_EnoughSeen):
                self._scoring.run(student, layers, batch=batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    @cached_property
    def _scoring(self) -> Suffixes:
        step = at_once(self.inputs, FIRST_SAMPLES)
        with threads(self.threads):
            return Suffixes(self.teacher, self.inputs, step=step, samples=MOST_SAMPLES, most_bytes=self.most_bytes // 2)

    @cached_property
    def _fitting(self) -> Suffixes:
        inputs = take(self.calibration, slice(CALIBRATION))
        with threads(self.threads):
            return Suffixes(self.teacher, inputs, step=size(inputs), most_bytes=self.most_bytes // 2)

    @cached_property
    def _targets(self) -> dict[str, Target]:
        """What each layer that can be re-solved answers, in execution order."""
        with threads(self.threads):
            found = collect(self.teacher, take(self.calibration, slice(CALIBRATION))).targets
        return {name: found[name] for name in sorted(found, key=lambda name: self._fitting.script.first([name]))}

    def _mending(self, layers: Collection[str] | None, further: int | None) -> dict[str, Target]:
        """Return the targets of the layers between the first and the last touched, and of the next ones."""
        if layers is None:
            return self._targets
        script = self._fitting.script
        begin, end = script.first(layers), script.last(layers)
        places = {name: script.first([name]) for name in self._targets}
        inside = [name for name, place in places.items() if begin <= place <= end]
        after = [name for name, place in places.items() if place > end]
        dense = [i for i, name in enumerate(after, 1) if getattr(self.teacher.get_submodule(name), "groups", 1) == 1]
        ends = [0, *dense]
        enough = None if further is None or further >= len(ends) else ends[further]
        return {name: self._targets[name] for name in (*inside, *after[:enough])}

    def _student(self, change: Change) -> nn.Module:
        """Return the changed model, mended, its untouched weights shared with the teacher."""
        student = change.make().eval()
        if not change.mended:
            return _lean(student, self.teacher)
        weighted = {name for name, part in student.named_modules() if isinstance(part, WEIGHTED)}
        mending = {change.renamed.get(name, name): t for name, t in self._mending(change.layers, change.mending).items()}
        targets = {name: target for name, target in mending.items() if name in weighted}

        def through(model: nn.Module, _inputs: Inputs, answer: Callable[[Invocation], Any]) -> Any:
            return self._fitting.run(model, change.layers, answer=answer)

        with threads(self.threads):
            kept = {change.renamed.get(name, name): places for name, places in change.kept.items()}
            mended = refit(student, self.calibration, targets=targets, kept=kept, through=through, held=HELD)
        return _lean(mended, self.teacher)

    def _hold(self, key: int, student: nn.Module) -> None:
        """Keep a student for its next reading; forget those of long ago that are too many bytes."""
        self._students[key] = student
        own = {id(value) for value in self.teacher.parameters()}
        sizes = {key: sum(v.nbytes for v in kept.parameters() if id(v) not in own) for key, kept in self._students.items()}
        for old in list(self._students):
            if sum(sizes[k] for k in self._students) > self.most_bytes // 2:
                del self._students[old]

    def _push(self, found: Tensor, rows: slice, *, seed: int) -> Tensor:
        """Return which way a batch's answers move, (`SKETCH`,), in units in which a loss is half the squared length.

        Each answer is added to one of the places, or taken from it, by lot: angles stay as they are to 1 / sqrt(`SKETCH`).

        References:
            Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams": the count sketch.
        """
        spread = self._spread if self.divergence.kind == "values" else None
        kept = None if self.kept is None else self.kept[rows]
        moved = self.divergence.push(found.double(), self.reference[rows].double(), spread=spread, kept=kept)
        flat = moved.flatten().float()
        lots = torch.Generator().manual_seed(seed)
        places = torch.randint(0, SKETCH, flat.shape, generator=lots)
        signs = torch.randint(0, 2, flat.shape, generator=lots) * 2.0 - 1.0
        return torch.zeros(SKETCH).index_add_(0, places, signs * flat)

    def _each(self, found: Tensor, rows: slice) -> Tensor:
        """Return the divergence of each sample of a batch, (N,)."""
        pairs = zip(torch.split(found.double(), 1), torch.split(self.reference[rows].double(), 1), strict=True)
        counted = None if self.kept is None else torch.split(self.kept[rows], 1)
        spread = self._spread if self.divergence.kind == "values" else None
        losses = [
            self.divergence.loss(f, w, spread=spread, kept=None if counted is None else counted[i])
            for i, (f, w) in enumerate(pairs)
        ]
        return torch.stack(losses)

    @cached_property
    def _spread(self) -> Tensor:
        return spreads(self.reference)


def _error(each: Tensor) -> float:
    """Return the standard error of the mean of `each` (N,)."""
    return float(each.std(correction=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf


def _lean(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """Let `student` (in place) hold the teacher's own parameter wherever it is the same; return it."""
    theirs = dict(teacher.named_parameters())
    for name, part in student.named_modules():
        for leaf, value in list(part.named_parameters(recurse=False)):
            same = theirs.get(f"{name}.{leaf}".lstrip("."))
            if same is not None and same.shape == value.shape and torch.equal(same, value):
                setattr(part, leaf, same)
    return student
