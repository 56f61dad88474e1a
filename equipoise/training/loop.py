"""The one training loop: steps or seconds, any objective, resumable to the same curve."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.errors import EquipoiseError, must_be
from equipoise.records import as_data, digest
from equipoise.training import checkpoint as saved
from equipoise.training.distribution.base import Distribution, Objective, OneProcess
from equipoise.training.recipe import Recipe

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Batches(Protocol):
    """Training data: a workload's split, or anything that reads like one."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of (inputs, targets) in an order drawn from the generator."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step: `fraction` of it done, `loss` of the step, `seconds` of training so far."""

    step: int
    fraction: float
    loss: float
    lr: float
    seconds: float

    def __str__(self) -> str:
        return f"step {self.step}, {100 * self.fraction:.0f} % of training, loss {self.loss:.4g}"


@dataclass(frozen=True)
class Recovery:
    """A trained copy and how it got there.

    Attributes:
        model: The trained copy, in evaluation mode.
        log: Loss of each step.
        seconds: Wall time of training, over all processes of a resumed run.
        steps: Steps made.
    """

    model: nn.Module
    log: tuple[float, ...]
    seconds: float
    steps: int


@dataclass(frozen=True)
class Plan:
    """When to stop, what to call and where to save; `run` takes its arguments in this form.

    Attributes:
        steps, seconds: The run ends at the first of them that is reached; at least one is given.
        before_step: Called with (model, fraction done) before each step; may switch a fake quantizer on, but not replace
            parameters.
        on_step: Called with the `Progress` after each step.
        path, every_s: Checkpoint file, and seconds between writes; None keeps none.
        identity: What a checkpoint must agree on to be resumed.
    """

    steps: int | None = None
    seconds: float | None = None
    augment: Augment | None = None
    before_step: Callable[[nn.Module, float], None] | None = None
    on_step: Callable[[Progress], None] | None = None
    path: Path | None = None
    every_s: float = 20.0
    identity: dict[str, Any] = field(default_factory=dict)
    distribution: Distribution = field(default_factory=OneProcess)


def fit(
    model: nn.Module,
    data: Batches,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int | None = None,
    epochs: float | None = None,
    recipe: Recipe | None = None,
    augment: Augment | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Recovery:
    """Train a copy of `model` on labels and return it.

    Args:
        model: Left as it is.
        data: Training split.
        loss: (outputs, targets) -> scalar.
        steps, epochs: Length of the run; give one of them.
        recipe: Hyperparameters; None takes `Recipe`'s.
        augment: Random changes of the inputs.
        generator: Source of all randomness; None is seeded with 0.
        on_step: Called with the `Progress` after each step.
    Raises:
        InputError: No length, or no data.
        EquipoiseError: The loss is no longer finite.
    """
    recipe = recipe or Recipe()
    if epochs is not None:
        steps = math.ceil(epochs * max(1, len(data) // recipe.batch))

    def objective(student: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(student(inputs), targets)

    return run(copy.deepcopy(model), data, objective, recipe, generator, Plan(steps=steps, augment=augment, on_step=on_step))


def run(
    model: nn.Module, data: Batches, objective: Objective, recipe: Recipe, generator: torch.Generator | None, plan: Plan
) -> Recovery:
    """Train `model` in place under `plan`; callers pass a copy.

    A run that ends by steps and is resumed from its checkpoint makes the same steps as an uninterrupted one. One that ends by
    seconds does not: its schedule follows the clock.
    """
    _check(data, plan)
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (3,), generator=generator).tolist()
    identity = digest({"recipe": as_data(recipe), "seeds": seeds, "steps": plan.steps, "size": len(data), **plan.identity})
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _train_mode(model, recipe)
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator: give it our seed, then put it back
        torch.manual_seed(seeds[2])
        order, noise = torch.Generator().manual_seed(seeds[0]), torch.Generator().manual_seed(seeds[1])
        state = _State(model, recipe.optimizer_of(model), order, noise)
        if plan.path is not None:
            state.load(plan.path, identity)
        _steps(state, data, objective, recipe, plan, identity)
    return Recovery(model.eval(), tuple(state.losses), state.seconds, state.step)


@dataclass
class _State:
    """All that changes from step to step, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    noise: torch.Generator
    step: int = 0
    in_epoch: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    epoch_order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def save(self, path: Path, identity: str) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in saved.pack_optimizer(self.model, self.optimizer).items()}
        tensors["rng.order"], tensors["rng.noise"] = self.epoch_order, self.noise.get_state()
        tensors["rng.global"] = torch.get_rng_state()
        tensors["log"] = torch.tensor(self.losses, dtype=torch.float64)
        facts = {"identity": identity, "step": self.step, "in_epoch": self.in_epoch, "seconds": self.seconds}
        saved.write(path, tensors, facts)

    def load(self, path: Path, identity: str) -> None:
        found = saved.read(path)
        if found is None:
            return
        tensors, facts = found
        if facts["identity"] != identity:
            raise must_be("checkpoint", "one of this same run", str(path), "Delete it, or name another file.")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        held = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")}
        saved.unpack_optimizer(self.model, self.optimizer, held)
        self.step, self.in_epoch, self.seconds = facts["step"], facts["in_epoch"], facts["seconds"]
        self.losses = tensors["log"].tolist()
        self.order.set_state(tensors["rng.order"])
        self.noise.set_state(tensors["rng.noise"])
        torch.set_rng_state(tensors["rng.global"])


def _steps(state: _State, data: Batches, objective: Objective, recipe: Recipe, plan: Plan, identity: str) -> None:
    """Make steps until the plan ends, saving on the way and at the end."""
    before, start = state.seconds, time.monotonic()
    last_saved = start
    batches = _endless(state, data, recipe)
    while (fraction := _fraction(state, plan)) < 1:
        inputs, targets = next(batches)
        loss, lr = _one_step(state, inputs, targets, objective, recipe, plan, fraction)
        state.losses.append(loss)
        state.step += 1
        state.in_epoch += 1
        state.seconds = before + time.monotonic() - start
        if plan.on_step is not None:
            plan.on_step(Progress(state.step, min(1.0, _fraction(state, plan)), loss, lr, state.seconds))
        if plan.path is not None and time.monotonic() - last_saved >= plan.every_s:
            state.save(plan.path, identity)
            last_saved = time.monotonic()
    if plan.path is not None:
        state.save(plan.path, identity)


def _one_step(
    state: _State, inputs: Tensor, targets: Tensor, objective: Objective, recipe: Recipe, plan: Plan, fraction: float
) -> tuple[float, float]:
    """Make one step and return its loss and learning rate."""
    if plan.augment is not None:
        inputs = plan.augment(inputs, state.noise)
    if recipe.channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if plan.before_step is not None:
        plan.before_step(state.model, fraction)
    lr = recipe.lr_at(state.step, fraction)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    state.optimizer.zero_grad(set_to_none=True)
    value = float(plan.distribution.gradients(state.model, objective, inputs, targets, recipe=recipe))
    if not math.isfinite(value):
        raise EquipoiseError(
            f"the loss must stay finite; got {value} at step {state.step + 1}. Lower the learning rate ({lr:.3g})."
        )
    if recipe.clip is not None:
        plan.distribution.clip(state.model, recipe.clip)
    state.optimizer.step()
    return value, lr


def _endless(state: _State, data: Batches, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches epoch after epoch, from where the state stands in its epoch."""
    while True:
        state.epoch_order = state.order.get_state()
        yield from islice(data.batches(recipe.batch, shuffle_with=state.order), state.in_epoch, None)
        state.in_epoch = 0


def _fraction(state: _State, plan: Plan) -> float:
    by_steps = state.step / plan.steps if plan.steps else 0.0
    by_time = state.seconds / plan.seconds if plan.seconds else 0.0
    return max(by_steps, by_time)


def _check(data: Batches, plan: Plan) -> None:
    given = {"steps": plan.steps, "seconds": plan.seconds}
    if all(value is None for value in given.values()):
        raise must_be("steps", "given, or seconds or epochs", None, "Say how long to train, for example steps=200.")
    for name, value in given.items():
        if value is not None and not value > 0:
            raise must_be(name, "positive", value, "Give the length of the run.")
    if len(data) == 0:
        raise must_be("training data", "at least one sample", 0, "Pass a training split.")


def _train_mode(model: nn.Module, recipe: Recipe) -> None:
    model.train()
    if recipe.frozen_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
