"""Win back what compression lost: the student learns the untouched model's answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.batch import Inputs, call, leaves, mapped, take
from equipoise.errors import must_be, unknown
from equipoise.training.blend import blended
from equipoise.training.decoupled import MANY, decoupled
from equipoise.training.distribution.base import Distribution, beside
from equipoise.training.hold import Kept, holding
from equipoise.training.loop import Augment, Plan, Trained, run
from equipoise.training.losses import Divergence, cross_entropy, mse, smoothed
from equipoise.training.outputs import Answer, answer_of, first_of
from equipoise.training.progress import Progress
from equipoise.training.recipe import Recipe
from equipoise.training.samples import Batches
from equipoise.training.supervised import fingerprint

Teacher = Callable[..., Any]
"""Inputs -> outputs (tensor or array), or (outputs, sequence of features): a module, or a faster runtime's session."""


def distill(
    student: nn.Module,
    teacher: Teacher,
    data: Batches,
    *,
    divergence: Divergence,
    steps: int | None = None,
    seconds: float | None = None,
    recipe: Recipe | None = None,
    features: Sequence[str | tuple[str, str]] = (),
    augment: Augment | None = None,
    generator: torch.Generator | None = None,
    hard_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    hold: Kept | None = None,
    checkpoint: Path | None = None,
    every_s: float = 20.0,
    distribution: Distribution | None = None,
    before_step: Callable[[nn.Module, float], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a copy of `student` to answer as `teacher` does, and return it.

    The loss is ``soft_weight`` times the `divergence` (for class scores ``T^2 KL(teacher || student)`` at temperature T; from
    50 classes on its decoupled form, see `Recipe.soft`), plus ``feature_weight`` times the squared error of each feature over
    the teacher's mean square, plus ``hard_weight * hard_loss``.
    A model that returns more in training mode than in evaluation mode is trained by what it answers in evaluation mode;
    `Trained.notes` tells.

    With a file for the checkpoint, the same call after a crash goes on where the file stands; the file stays when the run is
    done, and the same call then returns its result at once. Delete it when the result is stored.

    Args:
        student: Left as it is. A fake-quantized module trains as such.
        teacher: A module (run on a copy, in evaluation mode), or a function of the inputs that the student gets: a tensor, or
            a mapping of several by name.
        data: Training split; labels are used only with ``hard_weight``.
        divergence: What is to become small: how far outputs are from the teacher's, told by what they mean.
        steps, seconds: The run ends at the first that is reached; give one of them. Only `steps` resumes to the same curve.
        recipe: Hyperparameters; None takes `Recipe`'s.
        features: Names of modules whose outputs should agree, the same in both models or pairs (student, teacher). A teacher
            that is not a module returns (outputs, features) with the features in this order.
        augment: Random changes of the inputs; both models see the changed ones.
        generator: Source of all randomness; None is seeded with 0.
        hard_loss: Loss on the labels; None takes the one that the divergence's kind asks for.
        hold: What the student's weights must keep: ``zeros``: those that are zero now; ``shared``: that those are equal which
            are equal now; None: nothing.
        checkpoint, every_s: File to go on from, and seconds between writes.
        distribution: Where to compute; None is this process, on the device of the student.
        before_step: Called with (student, fraction of the run done) before each step, to switch a fake quantizer on late.
        on_step: Called with the `Progress` after each step.
    Raises:
        InputError: No length, no data, nothing to hold, an unknown feature, outputs of different shapes, or a checkpoint of
            another run.
        EquipoiseError: The loss is no longer finite.
        StoreError: The checkpoint cannot be read or written.

    Example:
        >>> small = distill(student, teacher, work.train, steps=200).model  # doctest: +SKIP

    References:
        Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2; `decoupled` has its own.
    """
    recipe = recipe or Recipe()
    pairs = [(name, name) if isinstance(name, str) else name for name in features]
    guide, where = teacher, distribution or beside(student)
    _known("student feature", [pair[0] for pair in pairs], student)
    if isinstance(teacher, nn.Module):
        guide = copy.deepcopy(teacher).eval().to(where.device)
        _known("teacher feature", [pair[1] for pair in pairs], guide)

    def ask(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        given = mapped(inputs, lambda value: value.to(where.device) if isinstance(value, Tensor) else value)
        return _ask(guide, given, [pair[1] for pair in pairs])

    answer, spread = _understood(student, ask, data, recipe.batch, divergence)
    if recipe.patience is not None:
        raise must_be("recipe.patience", "None: nothing is validated on the way", recipe.patience, "Give steps or seconds.")
    criterion = hard_loss or (mse if divergence.kind == "values" else _bce if divergence.kind == "bernoulli" else cross_entropy)

    if recipe.label_smoothing:
        criterion = smoothed(criterion, recipe.label_smoothing)

    def objective(learner: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        wanted, wanted_features = ask(inputs)
        with _watched(learner, [pair[0] for pair in pairs]) as seen:
            outputs = answer.of(learner, inputs)
        _same_shape("output", outputs, wanted)
        kept = divergence.kept(inputs, targets)
        if (logits := _decoupling(divergence, recipe, outputs, wanted)) is not None:
            soft = decoupled(*logits, targets, temperature=recipe.temperature, others=recipe.others_weight, kept=kept)
        else:
            soft = divergence.loss(outputs, wanted, temperature=recipe.temperature, spread=spread, kept=kept)
        loss = recipe.soft_weight * soft
        if recipe.hard_weight:
            loss = loss + recipe.hard_weight * criterion(outputs, targets)
        for (name, _), feature in zip(pairs, wanted_features, strict=True):
            _same_shape(f"feature {name}", seen[name], feature)
            loss = loss + recipe.feature_weight * F.mse_loss(seen[name], feature) / feature.square().mean().clamp_min(1e-12)
        return loss

    identity = {"divergence": repr(divergence), "features": pairs, "student": fingerprint(student)}
    identity |= {"teacher": fingerprint(teacher)} if isinstance(teacher, nn.Module) else {}
    identity |= {"hold": hold} if hold else {}
    kept = holding(student, hold)
    augment = blended(augment, recipe.mix) if recipe.mix else augment
    plan = Plan(steps, seconds, augment, before_step, on_step, checkpoint, every_s, identity, hold=kept, distribution=where)
    trained = run(student, data, objective, recipe, generator, plan)
    return replace(trained, notes=(answer.note,)) if answer.note else trained


def _decoupling(divergence: Divergence, recipe: Recipe, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the class scores of student and teacher where their distillation is decoupled, else None."""
    if recipe.soft == "kl":
        return None
    ours, theirs = divergence.logits(outputs), divergence.logits(wanted)
    if ours is None or theirs is None or ours.shape[-1] < 2:
        if recipe.soft == "dkd":
            raise must_be("recipe.soft", "'kl' or 'auto' where outputs are no class scores", "dkd", "Leave it out.")
        return None
    return (ours, theirs) if recipe.soft == "dkd" or ours.shape[-1] >= MANY else None


def _understood(
    student: nn.Module,
    ask: Callable[[Inputs], tuple[Tensor, list[Tensor]]],
    data: Batches,
    batch: int,
    divergence: Divergence,
) -> tuple[Answer, Tensor | None]:
    """Read off the first batch, in the data's own order, how the student answers and values spread: the same when resumed."""
    first = next(iter(data.batches(batch)), None) if len(data) else None
    if first is None:  # the loop says what is wrong with the data
        return Answer(), None
    inputs, _ = first
    answer = answer_of(student, take(inputs, slice(4)))
    return answer, divergence.spread(ask(inputs)[0]) if divergence.kind == "values" else None


def _bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


def _ask(guide: Teacher, inputs: Inputs, names: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Return the teacher's outputs and features for a batch, without gradients."""
    with torch.no_grad():
        if isinstance(guide, nn.Module):
            with _watched(guide, names) as seen:
                outputs = first_of(call(guide, inputs))
            return outputs, [seen[name] for name in names]
        answer = guide(mapped(inputs, torch.Tensor.contiguous))  # a session takes rows in plain order
    found: Sequence[Any] = ()
    if isinstance(answer, (tuple, list)):
        answer, found = answer
    if len(found) != len(names):
        raise must_be("teacher features", f"{len(names)}, one for each name", len(found), "Return (outputs, features).")
    where = leaves(inputs)[0].device
    return torch.as_tensor(answer, device=where), [torch.as_tensor(value, device=where) for value in found]


@contextmanager
def _watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named modules during a forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _known(kind: str, names: Sequence[str], model: nn.Module) -> None:
    valid = dict(model.named_modules())
    for name in names:
        if name not in valid or not name:
            raise unknown(kind, name, (n for n in valid if n))


def _same_shape(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise must_be(
            f"student {what}", f"of the teacher's shape {tuple(theirs.shape)}", tuple(ours.shape), "Name another place."
        )
