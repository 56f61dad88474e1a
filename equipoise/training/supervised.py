"""Training on labels: the simple way into the loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, size, take
from equipoise.errors import must_be
from equipoise.training.distribution.base import Distribution, Objective, beside
from equipoise.training.logs import Log
from equipoise.training.loop import Augment, Plan, Trained, per_epoch, run
from equipoise.training.losses import Loss, smoothed
from equipoise.training.outputs import Answer, answer_of
from equipoise.training.progress import Progress
from equipoise.training.recipe import Recipe
from equipoise.training.samples import Batches
from equipoise.training.validation import Metric, Validation

FEW = 4
"""Samples on which it is tried what the model returns."""


def fit(
    model: nn.Module,
    data: Batches,
    *,
    loss: Loss,
    steps: int | None = None,
    epochs: float | None = None,
    seconds: float | None = None,
    recipe: Recipe | None = None,
    augment: Augment | None = None,
    validation: Batches | None = None,
    metric: Metric | None = None,
    evaluate_steps: int | None = None,
    evaluate_epochs: float = 1.0,
    objective: Objective | None = None,
    rates: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    checkpoint: Path | None = None,
    every_s: float = 20.0,
    start: Path | None = None,
    logs: Sequence[Log] = (),
    distribution: Distribution | None = None,
    before_step: Callable[[nn.Module, float], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a copy of `model` on labels and return it.

    With a file for the checkpoint, the same call after a crash goes on where the file stands, to the same curve when the run
    ends by steps; the file stays when the run is done, and the same call then returns its result at once.

    Args:
        model: Left as it is.
        data: Training split.
        loss: (outputs, targets) -> scalar, a mean over the samples. Of a model that returns more in training mode it gets the
            answer of evaluation mode, unless it takes all that is returned.
        steps, epochs, seconds: Length of the run, which ends at the first that is reached; give one of them.
        recipe: Hyperparameters; None takes `Recipe`'s.
        augment: Random changes of the inputs.
        validation: Held-out split; None looks at nothing.
        metric: Watched in place of the validation loss.
        evaluate_steps, evaluate_epochs: Steps (if given) or epochs from one look at the validation split to the next.
        objective: (model, inputs, targets) -> scalar to minimize in place of the loss of the outputs; label smoothing is then
            the objective's own affair.
        rates: Parameter name -> factor on the learning rate (`transfer.discriminative`).
        generator: Source of all randomness; None is seeded with 0.
        checkpoint, every_s: File to go on from, and seconds between writes.
        start: Checkpoint of a ``wsd`` or constant run that differs in its length and `decay_share` alone; this run goes on
            from there to its own end. One trunk trained with ``decay_share=0`` serves cool-downs of several lengths: a
            branch of N steps is, step for step, the ``wsd`` run of N steps.
        logs: Where the steps are written down.
        distribution: Where to compute; None is this process, on the device of the model.
        before_step: Called with (model, fraction of the run done) before each step, to freeze or unfreeze.
        on_step: Called with the `Progress` of each step; on a GPU a few steps late.
    Raises:
        InputError: No length, no data, or a checkpoint of another run.
        EquipoiseError: The loss is no longer finite.
        StoreError: A checkpoint or log cannot be read or written.

    Example:
        >>> trained = fit(net, work.train, loss=work.loss, epochs=5, validation=work.validation)  # doctest: +SKIP
    """
    recipe = recipe or Recipe()
    if epochs is not None:
        by_epochs = math.ceil(epochs * per_epoch(data, recipe))
        steps = by_epochs if steps is None else min(steps, by_epochs)
    shown = None
    for name, value in (("evaluate_steps", evaluate_steps), ("evaluate_epochs", evaluate_epochs)):
        if value is not None and not value > 0:
            raise must_be(name, "positive", value, "Say how often to look at the validation split.")
    if validation is not None:
        every = evaluate_steps or max(1, round(evaluate_epochs * per_epoch(data, recipe)))
        shown = Validation(validation, loss, every, metric)
    elif recipe.patience is not None:
        raise must_be("validation", "given with recipe.patience", None, "Pass the split whose quality is watched.")
    criterion = smoothed(loss, recipe.label_smoothing) if recipe.label_smoothing else loss
    reader = _Reader(model, criterion)
    identity = {"model": fingerprint(model)} if checkpoint or start else {}
    plan = Plan(
        steps,
        seconds,
        augment,
        before_step,
        on_step,
        checkpoint,
        every_s,
        identity,
        start,
        rates,
        shown,
        logs,
        distribution or beside(model),
    )
    trained = run(model, data, objective or reader.loss, recipe, generator, plan)
    return replace(trained, notes=(reader.answer.note,)) if reader.answer and reader.answer.note else trained


@dataclass
class _Reader:
    """Hands the model's outputs to the loss; the first step shows whether these are its answer alone."""

    model: nn.Module
    criterion: Loss
    answer: Answer | None = None

    def loss(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.answer is None:
            return self._first(student, inputs, targets)
        answers = self.answer.of(student, inputs)
        return self.criterion(answers, placed(answers, targets))

    def _first(self, student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        try:
            returned = call(student, inputs)
        except Exception:  # the user's forward, which may want more than inputs in training mode
            found = answer_of(self.model, take(inputs, slice(FEW)))
            if found.plain:
                raise
            self.answer = found
            return self.loss(student, inputs, targets)
        if isinstance(returned, Tensor) and returned.ndim and len(returned) == size(inputs):
            self.answer = Answer()
            return self.criterion(returned, placed(returned, targets))
        try:
            loss = self.criterion(returned, targets)
            self.answer = Answer()
            return loss
        except Exception:  # noqa: BLE001 - the user's loss, on outputs that it may not be made for: it gets the answer alone
            self.answer = answer_of(self.model, take(inputs, slice(FEW)))
        return self.loss(student, inputs, targets)


def placed(outputs: Any, targets: Tensor) -> Tensor:
    """Return the targets (N, T) of the places that outputs (N, C, T) have: the first T of rows that were cut shorter."""
    dense = isinstance(outputs, Tensor) and outputs.ndim == 3 and targets.ndim == 2
    return targets[:, : outputs.shape[2]] if dense and outputs.shape[2] < targets.shape[1] else targets


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits that change with any weight of `model`, with which are trained, and with how layers round theirs."""
    found = hashlib.sha256()
    kept = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    rounded = [(name, str(part.choice)) for name, part in model.named_modules() if hasattr(part, "choice")]
    found.update(repr((kept, rounded)).encode() if kept or rounded else b"")
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
