"""What a family costs over its scales, before anything is trained: counted, timed, and estimated where it cannot be read."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import call, mapped, size, take
from equipoise.compress.fold import fold
from equipoise.errors import must_be
from equipoise.measure.counts import count
from equipoise.measure.loads import Load, compare_loads
from equipoise.records import Reading, estimated, measured
from equipoise.road.racing import Contender
from equipoise.runtimes import Target
from equipoise.runtimes.export import Exporter
from equipoise.training import Recipe, fit
from equipoise.training.optimizers import optimizer_of
from equipoise.units import show
from equipoise.workloads import Task
from equipoise.workloads.families import Family, Scale

TRAINED = 3
"""Times the weights that training holds at the least: weights, gradients, one state of the optimizer."""
STEPS = 5
"""Training steps timed at each scale; one more comes before them."""

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ScaleCost:
    """What one scale of a family costs to train and to serve.

    Attributes:
        scale: Dimension -> value.
        params: Trainable numbers.
        macs: Multiply-accumulates of one sample, forward.
        size_bytes: Files that ship, fp32.
        latency_s: One request on the target.
        sample_s: Training seconds for one sample (one token of a text): forward, backward and step, on all cores.
        train_memory_bytes: What a training step holds: weights, gradients, optimizer state, activations for the way back.
    """

    scale: Mapping[str, int | float]
    params: int
    macs: int
    size_bytes: Reading
    latency_s: Reading
    sample_s: Reading
    train_memory_bytes: Reading

    @property
    def flops(self) -> float:
        """Forward FLOPs of one sample (1 MAC = 2 FLOPs)."""
        return 2.0 * self.macs

    def train_s(self, samples: float) -> float:
        """Return the seconds that training on `samples` samples takes here."""
        return self.sample_s.get() * samples


def costs(
    family: Family,
    task: Task,
    scales: Sequence[Scale],
    *,
    target: Target,
    recipe: Recipe,
    seconds: float = 5.0,
    seed: int = 0,
    on_step: Step = lambda text: None,
) -> tuple[ScaleCost, ...]:
    """Cost each scale of `family` on `task`; untrained weights cost what trained ones do.

    Args:
        target: Where it will be served; latencies are taken side by side, in shuffled blocks.
        recipe: How it will be trained: its batch and optimizer decide time and memory.
        seconds: Wall time for all latencies together.
        seed: Of the weights.
        on_step: Called with a few words before each long step.
    Raises:
        InputError: No scales, or a scale that the family cannot build.
    """
    if not scales:
        raise must_be("scales", "at least one", 0, "Leave it out for the family's own.")
    for scale in scales:
        check_size(family, scale, task)
    runtime, exporter = runtimes.get(target.row), Exporter()
    request = mapped(take(task.example, torch.arange(target.batch) % size(task.example)), Tensor.numpy)
    rows = []
    contenders: dict[str, Load] = {}
    for number, scale in enumerate(scales):
        on_step(f"cost of {named(scale)} ({number + 1}/{len(scales)})")
        model = family.model(scale, task, generator=torch.Generator().manual_seed(seed))
        counts = count(model, task.example)
        folded = fold(model, task.example)
        program = runtime.compile(exporter.source(folded, task.example, topology=_topology(scale)))
        contenders[str(number)] = Contender(program, target).load(request)
        step, memory = sample_time(model, task, recipe), _held(model, task, recipe)
        rows.append((scale, counts, program.size_bytes, step, memory))
    on_step("latency, side by side")
    timed = compare_loads(contenders, seconds=seconds)
    return tuple(
        ScaleCost(
            scale=dict(scale),
            params=counts.params,
            macs=counts.macs,
            size_bytes=measured(size, "B", note="fp32, all files"),
            latency_s=timed.latency(str(number)),
            sample_s=step,
            train_memory_bytes=memory,
        )
        for number, (scale, counts, size, step, memory) in enumerate(rows)
    )


def check_size(family: Family, scale: Scale, task: Task) -> None:
    """Raise before the memory is asked for where training a size cannot fit into this machine.

    The model is built without memory (on torch's meta device) and counted; what cannot be built so is left to the attempt. A
    family without dimensions has one size, and may bring its weights.

    Raises:
        InputError: Weights, gradients and the state of an optimizer together are more than the machine has.
    """
    if not family.dimensions:
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            counted = sum(
                p.numel() * max(p.element_size(), 4) for p in family.build(family.scale(**scale), task.shape).parameters()
            )
    except (MemoryError, RuntimeError, TypeError, OverflowError, ValueError, AttributeError, NotImplementedError):
        return  # the builder needs real tensors, or refuses: building it will tell
    needed, there = TRAINED * counted, psutil.virtual_memory().total
    if needed > there:
        what = f"{named(scale)}, which needs {show(needed, 'B')} to be trained"
        raise must_be("scale", f"a size that this machine's {show(there, 'B')} hold", what, "Take a smaller one.")


def named(scale: Scale) -> str:
    """Return a scale in words: ``width 32, depth 20``."""
    return ", ".join(f"{name} {value:g}" for name, value in scale.items())


def _topology(scale: Scale) -> str:
    """Widths change shapes alone, so that scales that differ in nothing else share an export."""
    return named({name: value for name, value in scale.items() if name != "width"})


def sample_time(model: nn.Module, task: Task, recipe: Recipe) -> Reading:
    """Return the training seconds of a sample: steps of `model` in the loop, data and augmentation included.

    A sample of a task with an answer for each position counts as many as it has positions.
    """
    ends: list[float] = []
    fit(
        model,
        task.train,
        loss=task.loss,
        steps=STEPS + 1,
        recipe=recipe,
        augment=task.augment,
        on_step=lambda p: ends.append(p.seconds),
    )
    per_step = min(recipe.batch, len(task.train)) * positions(task)
    each = [(after - before) / per_step for before, after in itertools.pairwise(ends)]
    return measured(statistics.median(each), "s", low=min(each), high=max(each), n=STEPS, note="a training step, by sample")


def positions(task: Task) -> int:
    """Return the answers in a sample: tokens of a text, 1 for an image."""
    return math.prod(task.shape.places)


def _held(model: nn.Module, task: Task, recipe: Recipe) -> Reading:
    """Add up what one training step of `model`, which it changes, holds."""
    inputs, targets = next(iter(task.train.batches(recipe.batch)))
    model, optimizer = model.train(), optimizer_of(model, recipe)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = task.loss(call(model, inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()
    weights = {p.untyped_storage().data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    tensors = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, Tensor)]
    saved = sum(size for pointer, size in kept.items() if pointer not in weights)
    total = 2 * sum(weights.values()) + sum(v.numel() * v.element_size() for v in tensors) + saved
    note = f"weights, gradients, optimizer state, activations kept for a batch of {len(targets)}; without the allocator's own"
    return estimated(total, "B", note=note)
