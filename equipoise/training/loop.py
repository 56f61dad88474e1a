"""The one training loop: steps or seconds, any objective, on one device or many, resumable to the same curve."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs, mapped
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.records import as_data, digest
from equipoise.training.blocks import recomputed
from equipoise.training.distribution.base import Distribution, Objective, OneProcess
from equipoise.training.dropout import dropping
from equipoise.training.ema import Average
from equipoise.training.hold import Hold
from equipoise.training.logs import Log
from equipoise.training.optimizers import optimizer_of
from equipoise.training.progress import Progress
from equipoise.training.randomness import deterministic, mixed, private, seed_dropout
from equipoise.training.recipe import Recipe
from equipoise.training.samples import Batches, bears_channels_last, channels_last
from equipoise.training.shards import here
from equipoise.training.state import State, Stopped
from equipoise.training.validation import CurvePoint, Validation
from equipoise.units import is_real

Augment = Callable[[Tensor, torch.Generator], Tensor]

UNREAD = 10
"""Losses that wait on a GPU before the host reads them: reading one makes the host wait for its step."""


@dataclass(frozen=True)
class Trained:
    """A trained copy and how it got there.

    Attributes:
        model: The trained copy, in evaluation mode, on the device of the model given.
        log: Loss of each step.
        seconds: Wall time of training, over all processes of a resumed run.
        steps: Steps made.
        curve: Looks at the validation data, oldest first.
        best: The best of them; with patience `model` has its weights.
        stopped: What ended the run.
        notes: What the user should know of how it was trained.
    """

    model: nn.Module
    log: tuple[float, ...]
    seconds: float
    steps: int
    curve: tuple[CurvePoint, ...] = ()
    best: CurvePoint | None = None
    stopped: Stopped = "steps"
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Trained({type(self.model).__name__}: {self.steps} steps in {self.seconds:.3g} s, ended by {self.stopped})"


@dataclass(frozen=True)
class Plan:
    """When to stop, what to call and where to save; `run` takes its arguments in this form.

    Attributes:
        steps, seconds: The run ends at the first of them that is reached; at least one is given.
        before_step: Called with (model, fraction done) before each step; may freeze parameters or switch a fake quantizer on,
            but not replace parameters.
        on_step: Called with the `Progress` of each step; on a GPU a few steps late.
        path, every_s: Checkpoint file, and seconds between writes; None keeps none.
        identity: What a checkpoint must agree on to be resumed.
        start: Checkpoint of a run of the same recipe but another end, to go on from.
        rates: Parameter name -> factor on the learning rate.
        validation: What to look at on the way.
        logs: Where the steps are written down.
        distribution: Where to compute.
        hold: Puts back what a step has changed and must not; in one process alone.
    """

    steps: int | None = None
    seconds: float | None = None
    augment: Augment | None = None
    before_step: Callable[[nn.Module, float], None] | None = None
    on_step: Callable[[Progress], None] | None = None
    path: Path | None = None
    every_s: float = 20.0
    identity: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    rates: Mapping[str, float] | None = None
    validation: Validation | None = None
    logs: Sequence[Log] = ()
    distribution: Distribution = field(default_factory=OneProcess)
    hold: Hold | None = None


def run(
    model: nn.Module, data: Batches, objective: Objective, recipe: Recipe, generator: torch.Generator | None, plan: Plan
) -> Trained:
    """Train a copy of `model` under `plan`.

    A run that ends by steps and is resumed from its checkpoint makes the same steps as an uninterrupted one. One that ends by
    seconds does not: its schedule follows the clock.
    """
    _check(data, recipe, plan)
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (3,), generator=generator).tolist()
    where = plan.distribution
    student = copy.deepcopy(model)
    if recipe.channels_last and not bears_channels_last(student, _few(data, student)):
        recipe = replace(recipe, channels_last=False)
    if recipe.channels_last:
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with ExitStack() as stack:
        stack.enter_context(private(where.device))
        stack.enter_context(deterministic(recipe.deterministic))
        stack.enter_context(dropping(student, recipe.dropout))
        stack.enter_context(recomputed(student, recipe.activation_checkpointing))
        placed = where.place(student)
        train_mode(placed, recipe)
        state = State(placed, optimizer_of(placed, recipe, plan.rates), where)
        state.scaler = torch.amp.GradScaler(where.device.type) if recipe.precision == "fp16" else None
        state.average = Average(placed, recipe.ema) if recipe.ema is not None else None
        identity = _identity(data, recipe, plan, seeds)
        _resume(state, recipe, plan, identity)
        for log in plan.logs if where.rank == 0 else ():
            stack.callback(log.close)
            log.begin(state.step)
        try:
            _Run(state, data, objective, recipe, plan, identity, seeds).go()
        except (RuntimeError, IndexError) as error:
            explained = _explained(error, recipe, where)
            if explained is None:
                raise
            raise explained from error
    return _result(model, student, state, recipe)


def _explained(error: Exception, recipe: Recipe, where: Distribution) -> InputError | None:
    """Say in the user's words what torch says in its own; None for anything else."""
    text = str(error).splitlines()[0] if str(error) else ""
    if recipe.precision != "fp32" and "not implemented for" in text:
        return must_be("recipe.precision", f"one that every layer has on {where.device.type}", recipe.precision, f"{text}.")
    if recipe.deterministic and "CUBLAS_WORKSPACE_CONFIG" in text:
        remedy = "Set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts: cuBLAS was used here without it."
        return must_be("recipe.deterministic", "false in this process", True, remedy)
    if recipe.deterministic and "deterministic implementation" in text:
        return must_be("recipe.deterministic", f"false for this model and loss on {where.device.type}", True, f"{text}.")
    if text.startswith(("Target ", "Class values must be")):
        return must_be("targets", "labels from 0 to the number of outputs - 1", text, "Check the labels or the last layer.")
    return None


def _identity(data: Batches, recipe: Recipe, plan: Plan, seeds: list[int]) -> dict[str, Any]:
    """Return what a checkpoint must have to be this run's, and to be of its ``lineage``: the same but for its end."""
    common = {"seeds": seeds, "size": len(data), "rates": plan.rates, **plan.identity}
    trunk = replace(recipe, schedule="constant", decay_share=0.0, patience=None)
    watched = None if plan.validation is None else [plan.validation.every, len(plan.validation.data)]
    whole = {"recipe": as_data(recipe), "steps": plan.steps, "validation": watched, **common}
    return {"identity": digest(whole), "lineage": digest({"recipe": as_data(trunk), **common})}


def _resume(state: State, recipe: Recipe, plan: Plan, identity: dict[str, Any]) -> None:
    """Go on from the run's own checkpoint, or else from the one it starts from."""
    if plan.path is not None and state.load(plan.path, {"identity": identity["identity"]}):
        if state.stopped == "seconds" and (plan.seconds is None or plan.seconds > state.seconds):
            state.stopped = None  # it is given more time now
        return
    if plan.start is None:
        return
    if _cooled(recipe, 0.0):
        raise must_be("recipe.schedule", "wsd or constant to start from a checkpoint", recipe.schedule, "Use wsd.")
    if not state.load(plan.start, {"lineage": identity["lineage"], "cooled": False}):
        raise must_be("start", "a checkpoint", str(plan.start), "Train the trunk first.")
    state.stopped = None
    if plan.steps is not None and (state.step >= plan.steps or _cooled(recipe, state.step / plan.steps)):
        share = recipe.decay_share if recipe.schedule == "wsd" else 0.0
        least = max(state.step + 1, math.ceil(state.step / (1 - share) - 1e-9))
        raise must_be("steps", f"at least {least}", plan.steps, f"The trunk has made {state.step} at its full rate.")


def _cooled(recipe: Recipe, fraction: float) -> bool:
    """Return whether a run has begun to lower its rate before `fraction` of it."""
    if recipe.schedule == "wsd":
        return recipe.decay_share == 1 or fraction > 1 - recipe.decay_share + 1e-9
    return recipe.schedule != "constant"


def _result(model: nn.Module, student: nn.Module, state: State, recipe: Recipe) -> Trained:
    """Take the weights that the run returns out of wherever they were placed."""
    tensors = state.best_tensors if recipe.patience is not None and state.best_tensors else None
    if not isinstance(state.where, OneProcess):  # placed in part here, or wrapped, also where it is the same object
        student, tensors = copy.deepcopy(model), tensors or state.weights()
    elif tensors is None and state.average is not None:
        state.average.settle()
    if tensors is not None:
        student.load_state_dict(tensors)
    first = next(model.parameters())
    return Trained(
        student.to(first.device).eval(),
        tuple(state.losses),
        state.seconds,
        state.step,
        tuple(state.curve),
        state.best,
        state.stopped or "steps",
    )


@dataclass
class _Run:
    """The run under way: `go` makes its steps."""

    state: State
    data: Batches
    objective: Objective
    recipe: Recipe
    plan: Plan
    identity: dict[str, Any]
    seeds: list[int]
    noise: torch.Generator = field(default_factory=torch.Generator)
    unread: list[tuple[int, Tensor, float, float]] = field(default_factory=list)
    began: float = 0.0

    def go(self) -> None:
        """Make steps until the plan ends, looking, telling and saving on the way."""
        state, plan, where = self.state, self.plan, self.state.where
        self.began, saved_at = time.monotonic() - state.seconds, state.seconds
        keeps = 1 if where.device.type == "cpu" else UNREAD
        batches = self.batches()
        while state.stopped is None:
            inputs, targets = next(batches)
            loss, lr = self.step(inputs, targets)
            state.step, state.in_epoch = state.step + 1, state.in_epoch + 1
            read = len(self.unread) + 1 >= keeps
            self.tick(together=plan.seconds is not None or (plan.path is not None and read))
            self.unread.append((state.step, loss, lr, state.seconds))
            state.stopped = self.end()
            look = plan.validation is not None and (state.stopped is not None or state.step % plan.validation.every == 0)
            if read or look or state.stopped is not None:
                self.read(look)
            if plan.path is not None and (state.stopped is not None or (read and state.seconds - saved_at >= plan.every_s)):
                state.save(plan.path, {**self.identity, "cooled": _cooled(self.recipe, self.fraction())})
                saved_at = state.seconds

    def tick(self, *, together: bool) -> None:
        """Read the clock; `together` makes all processes go by that of the first."""
        seconds = time.monotonic() - self.began
        self.state.seconds = self.state.where.agree(seconds) if together else seconds

    def step(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, float]:
        """Make one step and return its loss, still on the device, and its learning rate."""
        state, recipe, plan, where = self.state, self.recipe, self.plan, self.state.where
        fraction = self.fraction()
        if plan.augment is not None:
            inputs = plan.augment(inputs, self.noise.manual_seed(mixed(self.seeds[1], state.step)))
        if recipe.channels_last:
            inputs = channels_last(inputs)
        if plan.before_step is not None:
            plan.before_step(state.model, fraction)
        lr = recipe.lr_at(state.step, fraction)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        state.optimizer.zero_grad(set_to_none=True)
        seed_dropout(mixed(self.seeds[2], state.step * where.world + where.rank), where.device)
        loss = where.gradients(state.model, self.objective, inputs, targets, recipe=recipe, scaler=state.scaler)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        if recipe.l1:
            _add_l1(state.optimizer, recipe.l1)
        if recipe.clip is not None:
            where.clip(state.model, recipe.clip)
        if state.scaler is None:
            state.optimizer.step()
        else:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        if plan.hold is not None:
            plan.hold(state.model)
        if state.average is not None:
            state.average.update(state.step)
        return loss, lr

    def read(self, look: bool) -> None:
        """Bring the waiting losses to the host, look at the validation data if asked, and tell of each step."""
        state, plan = self.state, self.plan
        losses = [loss for _, loss, _, _ in self.unread]
        values = [float(losses[0])] if len(losses) == 1 else torch.stack(losses).tolist()
        for (step, _, lr, _), value in zip(self.unread, values, strict=True):
            if not math.isfinite(value):
                raise EquipoiseError(self.diverged(step, value, lr))
        if state.where.device.type != "cpu":  # only now are the steps made that were asked for before
            self.tick(together=plan.seconds is not None or plan.path is not None)
            self.unread[-1] = (*self.unread[-1][:3], state.seconds)
        state.losses += values
        point = self.look() if look else None
        told = [plan.on_step] if plan.on_step is not None else []
        told += [log.add for log in plan.logs] if state.where.rank == 0 else []
        for (step, _, lr, seconds), value in zip(self.unread, values, strict=True) if told else ():
            last = step == state.step
            done = Progress(
                step,
                self.fraction(step, seconds),
                value,
                lr,
                seconds,
                step / per_epoch(self.data, self.recipe),
                point if last else None,
            )
            for tell in told:
                tell(done)
        self.unread.clear()

    def look(self) -> CurvePoint | None:
        """Add a point to the curve, and stop the run when its patience is at an end."""
        state, recipe, validation = self.state, self.recipe, self.plan.validation
        if validation is None:
            return None
        with state.average.swapped() if state.average else nullcontext():
            loss, score = validation.look(state.where, state.model, recipe)
        train_mode(state.model, recipe)
        since = state.losses[state.curve[-1].step if state.curve else 0 :]
        epoch, lr = state.step / per_epoch(self.data, recipe), self.unread[-1][2]
        point = CurvePoint(state.step, epoch, state.seconds, sum(since) / len(since), loss, score, lr)
        state.curve.append(point)
        if validation.better(point, state.best):
            state.best, state.waited = point, 0
            state.best_tensors = state.weights() if recipe.patience is not None else {}
        else:
            state.waited += 1
        if recipe.patience is not None and state.waited >= recipe.patience and state.stopped is None:
            state.stopped = "patience"
        return point

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches epoch after epoch, from where the state stands in its epoch; each epoch has its own counted seed."""
        state, order, size = self.state, torch.Generator(), self.recipe.batch
        while True:
            found = False
            order.manual_seed(mixed(self.seeds[0], state.epoch))
            for batch in islice(self.data.batches(size, shuffle_with=order), state.in_epoch, None):
                found = True
                yield batch
            if not found and not state.in_epoch:
                raise must_be("training data", f"enough for a batch of {size}", len(self.data), "Lower recipe.batch.")
            state.epoch, state.in_epoch = state.epoch + 1, 0

    def fraction(self, step: int | None = None, seconds: float | None = None) -> float:
        """Return the share of the run that is done after `step` and `seconds` (None: now), at most 1."""
        step, seconds = (self.state.step if step is None else step), (self.state.seconds if seconds is None else seconds)
        by_steps = step / self.plan.steps if self.plan.steps else 0.0
        by_time = seconds / self.plan.seconds if self.plan.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def end(self) -> Stopped | None:
        """Return which limit is reached."""
        if self.plan.steps and self.state.step >= self.plan.steps:
            return "steps"
        return "seconds" if self.plan.seconds and self.state.seconds >= self.plan.seconds else None

    def diverged(self, step: int, value: float, lr: float) -> str:
        """Say at which step the loss was lost, and what is left."""
        text = f"the loss must stay finite; got {value} at step {step}. Lower the learning rate ({lr:.3g})"
        text += ", or clip the gradients" if self.recipe.clip is None else ""
        text += ", or train in bf16" if self.recipe.precision == "fp16" else ""
        kept = self.plan.path is not None and self.plan.path.exists()
        return text + (f". The checkpoint {self.plan.path} is from before." if kept else ".")


def per_epoch(data: Batches, recipe: Recipe) -> int:
    """Return the steps in one pass over the data."""
    return max(1, len(data) // recipe.batch)


def _few(data: Batches, model: nn.Module) -> Inputs:
    """Two samples, where the model is."""
    inputs, _ = next(data.batches(2))
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    return mapped(inputs, lambda value: value.to(place))


def _check(data: Batches, recipe: Recipe, plan: Plan) -> None:
    given = {"steps": plan.steps, "seconds": plan.seconds}
    if all(value is None for value in given.values()):
        raise must_be("steps", "given, or seconds or epochs", None, "Say how long to train, for example steps=200.")
    for name, value in given.items():
        whole = name == "steps"
        if value is not None and not (is_real(value) and value > 0 and (not whole or float(value).is_integer())):
            raise must_be(name, "a whole number above 0" if whole else "positive", value, "Give the length of the run.")
    if len(data) == 0:
        raise must_be("training data", "at least one sample", 0, "Pass a training split.")
    if plan.hold is not None and not isinstance(plan.distribution, OneProcess):
        kind = type(plan.distribution).__name__
        raise must_be("hold", "None where weights are spread or offloaded", kind, "Train in one process, on one device.")
    if recipe.accumulate > recipe.batch:
        raise must_be("recipe.accumulate", f"at most the batch of {recipe.batch}", recipe.accumulate, "Lower it.")


def train_mode(model: nn.Module, recipe: Recipe) -> None:
    """Put `model` into training mode, but for BatchNorm that the recipe or its own frozen parameters keep still."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if recipe.frozen_norm or (own and not any(p.requires_grad for p in own)):
                module.eval()


@torch.no_grad()
def _add_l1(optimizer: torch.optim.Optimizer, weight: float) -> None:
    """Add the gradient of ``weight * sum |w|`` for tensors of two or more dimensions."""
    for group in optimizer.param_groups:
        members = [p for p in group["params"] if p.grad is not None and p.ndim > 1]
        if members:
            signs = torch._foreach_sign([here(p) for p in members])
            torch._foreach_add_([here(p.grad) for p in members], signs, alpha=weight)
