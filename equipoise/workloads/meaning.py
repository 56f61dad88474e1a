"""What a model's outputs mean, decided in one place: class scores, yes-or-no scores or values; logits or probabilities.

Distillation, the loss tables and `verify` compare outputs by it. Neither the type of the targets nor a metric's name tells:
whole numbers may be classes, several labels of a sample, ages or ordered grades. So the user's own loss and metric are asked.
They are shown the answers that would be perfect under each meaning, and what they call best is what the outputs are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped
from equipoise.workloads.data import Split, predict
from equipoise.workloads.divergence import MASK, Divergence, Kind
from equipoise.workloads.metrics import (
    METRICS,
    OF_PROBABILITIES,
    Loss,
    Metric,
    class_axis,
    left,
    natural_loss,
    natural_loss_of_probabilities,
    number,
    one_hot,
    unsquashed,
    yes_or_no,
)

SAMPLE = 64
"""Validation samples that loss and metric are asked about."""
SIZES = (2.0, 6.0, 20.0)
"""Logits of a sure answer; a smoothed loss likes a small one best."""
PATIENCE_S = 5.0
"""A loss or metric that takes longer is asked no further."""
TIE = 1e-4
SURE = 1e-3
"""Slack of a sum of probabilities."""

_SQUASHING = ("Sigmoid", "Softmax", "Hardsigmoid", "SpecialExpit")
_LINEAR = ("Addmm", "Mm", "Bmm", "Convolution", "LogSoftmax", "NativeLayerNorm", "NativeBatchNorm")
_MOVING = (
    "View",
    "Reshape",
    "Unsafe",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Permute",
    "TBackward",
    "Slice",
    "Select",
    "Clone",
    "Expand",
    "ToCopy",
    "Alias",
    "Clamp",
    "Cat",
    "Stack",
    "Index",
    "Split",
    "Unbind",
)


Judge = tuple[str, Callable[[Tensor, Tensor], Any], bool]
"""Who judges answers, how, and whether more is better."""


class Judged(Protocol):
    """A workload, as far as it is looked at here."""

    @property
    def model(self) -> nn.Module:
        """Return the trained model."""
        ...

    @property
    def validation(self) -> Split:
        """Return the validation split."""
        ...

    @property
    def metric(self) -> Metric:
        """Return the quality metric."""
        ...

    @property
    def loss(self) -> Loss:
        """Return the loss."""
        ...


def divergence_of(work: Judged) -> Divergence:
    """Return how outputs of `work`'s model are compared, told by its loss, its metric and some 64 validation samples."""
    sample = work.validation.take(SAMPLE)
    outputs, targets = predict(lambda inputs: first_tensor(call(work.model, inputs)), sample, batch=SAMPLE)
    natural = work.loss in (natural_loss, natural_loss_of_probabilities)
    ignored = getattr(work, "ignore_label", None)
    found = decide(
        outputs.float(),
        targets,
        loss=None if natural else work.loss,
        metric=work.metric.of_outputs,
        probabilities=squashed(work.model, work.validation),
        ignored=ignored,
    )
    return replace(found, ignored=ignored, masked=_by_place(outputs, found.axis, sample.tensors()[0]))


def _by_place(outputs: Tensor, axis: int, inputs: Inputs) -> bool:
    """Whether there is an output, or one for each class, for every place of the attention mask."""
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    if mask is None or mask.ndim < 2:
        return False
    return bool(mask.shape == outputs.shape or mask.shape == outputs.movedim(min(axis, outputs.ndim - 1), -1).shape[:-1])


def decide(
    outputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    probabilities: bool | None = None,
    ignored: int | None = None,
) -> Divergence:
    """Return what outputs (N, ...) mean beside targets (N, ...).

    Args:
        loss: The user's own; None where there is none, or only the natural one, which follows the targets.
        metric: The quality metric.
        probabilities: Whether the outputs are squashed; None looks at their range.
        ignored: A label that marks positions without one.
    """
    axis = class_axis(outputs, targets)
    if probabilities is None:
        probabilities = _in_range(outputs, axis)
    if ignored is not None and not targets.is_floating_point() and bool((targets == ignored).any()):
        if bool((targets == ignored).all()):
            return Divergence("values", axis, why="every target of the sample is ignored")
        kept, wanted, _ = left(outputs, targets, ignored)
        return replace(decide(kept, wanted, loss=loss, metric=metric, probabilities=probabilities), axis=axis)
    answers = perfect(outputs, targets, probabilities=probabilities)
    alive, why = tuple(answers), "shapes of outputs and targets"
    judges: list[Judge] = []
    if loss is not None:
        judges.append(("the loss", loss, False))
    if metric is not None:
        judges.append((f"metric {metric.name}", metric.function, metric.maximize))
    if not answers and (grades := _graded(outputs, targets, probabilities, judges)):
        return Divergence("bernoulli", axis, probabilities, grades)
    if not answers and not probabilities and (reader := _shifted_alike(outputs, targets, judges)):
        return Divergence("softmax", 1, why=f"{reader}, to which a shift of all scores of a place is nothing")
    if not answers:
        return Divergence("values", axis, why="no class scores fit the targets")
    for who, judge, maximize in judges:
        best = _best(judge, {kind: answers[kind] for kind in alive}, targets, maximize)
        if len(alive) > 1 and len(best) < len(alive):
            alive, why = best, who
    kind = alive[0]
    if kind == "softmax" and metric is not None and not probabilities and _moved_by_a_shift(outputs, targets, metric, axis):
        kind, why = "values", f"metric {metric.name}, which reads no class scores"
    return Divergence(kind, axis, probabilities and kind != "values", why)


def perfect(outputs: Tensor, targets: Tensor, *, probabilities: bool = False) -> dict[Kind, list[Tensor]]:
    """Return the right answers under each meaning that the shapes allow, in the outputs' shape, the likeliest meaning first."""
    found: dict[Kind, list[Tensor]] = {}
    same, whole = outputs.numel() == targets.numel(), not targets.is_floating_point()
    if whole and not same and (spread := _one_hot_of(outputs, targets)) is not None:
        found["softmax"] = [spread] if probabilities else [2 * size * spread + 3 for size in SIZES]
        if not probabilities:
            found["bernoulli"] = [size * (2 * spread - 1) for size in SIZES]
            found["values"] = [spread]
    if "softmax" in found and (steps := _steps_of(outputs, targets)) is not None:
        found["bernoulli"] = [*found.get("bernoulli", ()), *_sure(steps, probabilities)]
    if same:
        wanted = targets.reshape(outputs.shape).float()
        if one_hot(outputs, targets):
            found["softmax"] = [wanted if probabilities else 2 * size * wanted + 3 for size in SIZES]
            if not yes_or_no(targets):
                found["softmax"] = [wanted if probabilities else wanted.clamp_min(1e-7).log()]
        if yes_or_no(targets) and bool((targets != targets.flatten()[0]).any() or whole):
            found["bernoulli"] = _sure(wanted, probabilities)
        elif bool((targets.abs() == 1).all()) and not probabilities:
            found["bernoulli"] = [size * wanted for size in SIZES]
        elif "softmax" not in found and bool(((wanted >= 0) & (wanted <= 1)).all()):
            found["values"] = [wanted]  # likelier than shares of a yes
            found["bernoulli"] = [wanted if probabilities else unsquashed(wanted, True)]
        found.setdefault("values", [wanted])
    return found


def _sure(yes: Tensor, probabilities: bool) -> list[Tensor]:
    return [yes] if probabilities else [size * (2 * yes - 1) for size in SIZES]


def _one_hot_of(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Labels spread over the classes, in the outputs' shape; None where they do not fit."""
    axis = class_axis(outputs, targets)
    if outputs.ndim < 2 or outputs.numel() != targets.numel() * outputs.shape[axis]:
        return None
    rest = [size for i, size in enumerate(outputs.shape) if i != axis]
    if not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[axis]:
        return None
    return F.one_hot(targets.reshape(rest), outputs.shape[axis]).movedim(-1, axis).float()


def _steps_of(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Ordered grades 0..C of (N,) as C yes-or-no answers "is it above k?"; None where they do not fit."""
    if outputs.ndim != 2 or targets.numel() != len(outputs) or outputs.shape[1] < 2:
        return None
    if not 0 <= int(targets.min()) <= int(targets.max()) <= outputs.shape[1]:
        return None
    return (targets.reshape(-1, 1) > torch.arange(outputs.shape[1])).float()


def _graded(outputs: Tensor, targets: Tensor, probabilities: bool, judges: list[Judge]) -> str:
    """Return who likes ordered grades, one more than there are outputs, better told right than told wrong; "" for nobody."""
    steps = None if targets.is_floating_point() else _steps_of(outputs, targets)
    if steps is None:
        return ""
    for who, judge, maximize in judges:
        right, wrong = (list(_asked(judge, _sure(yes, probabilities), targets)) for yes in (steps, 1 - steps))
        if right and wrong and ((max(right) > max(wrong)) if maximize else (min(right) < min(wrong))):
            return who
    return ""


def _shifted_alike(outputs: Tensor, targets: Tensor, judges: list[Judge]) -> str:
    """Return who reads class scores of targets laid out otherwise (CTC): one whom other scores move, and a shift does not."""
    laid_out_alike = outputs.numel() == targets.numel() * outputs.shape[min(1, outputs.ndim - 1)]
    if targets.is_floating_point() or outputs.ndim < 3 or laid_out_alike:
        return ""
    generator = torch.Generator().manual_seed(0)
    wide = float(outputs.std()) + 1.0
    shift = wide * torch.randn(outputs[:, :1].shape, generator=generator)
    others = wide * torch.randn(outputs.shape, generator=generator)
    for who, judge, _ in judges:
        said = list(_asked(judge, [outputs, outputs + shift, others], targets))
        if len(said) == 3 and all(map(math.isfinite, said)):
            near = TIE * max(1.0, abs(said[0]))
            if abs(said[1] - said[0]) <= near < abs(said[2] - said[0]):
                return who
    return ""


def _best(
    judge: Callable[[Tensor, Tensor], Any], answers: Mapping[Kind, list[Tensor]], targets: Tensor, maximize: bool
) -> tuple[Kind, ...]:
    """Return the kinds whose answers the judge likes best; all of them where it says nothing."""
    sign, scores = (1.0 if maximize else -1.0), dict[Kind, float]()
    for kind, shown in answers.items():
        values = [sign * value for value in _asked(judge, shown, targets) if not math.isnan(value)]
        if values:
            scores[kind] = max(values)
    if not scores:
        return tuple(answers)
    top = max(scores.values())
    return tuple(kind for kind in answers if kind in scores and scores[kind] >= top - TIE * max(1.0, abs(top)))


def _asked(judge: Callable[[Tensor, Tensor], Any], shown: list[Tensor], targets: Tensor) -> Iterator[float]:
    """Yield what the user's function says of each answer; what it raises counts as having nothing to say."""
    began = time.monotonic()
    for answer in shown:
        if time.monotonic() - began > PATIENCE_S:
            return
        try:
            with torch.no_grad():
                value = judge(answer, targets)
            said = number("asked", value.detach() if isinstance(value, Tensor) else value)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - the user's function; `check` tells what it raises on real answers
            continue
        yield said


def _moved_by_a_shift(outputs: Tensor, targets: Tensor, metric: Metric, axis: int) -> bool:
    """Whether the outputs are no class scores: the largest is the label by chance alone, and a shift changes the score."""
    if METRICS.get(metric.name) is metric or OF_PROBABILITIES.get(metric.name) is metric:
        return False
    answers = outputs.argmax(axis)
    wanted = targets.argmax(axis) if targets.shape == outputs.shape else targets.reshape(answers.shape)
    agree = float((answers == wanted).double().mean())
    likeliest = float(wanted.flatten().bincount().max()) / wanted.numel()
    if agree > max(2 / outputs.shape[axis], likeliest + 0.05):
        return False
    shift = torch.linspace(-1, 1, len(outputs)).reshape(-1, *[1] * (outputs.ndim - 1)) * float(outputs.abs().max() + 1)
    said = list(_asked(metric.function, [outputs, outputs + shift], targets))
    return len(said) == 2 and abs(said[0] - said[1]) > TIE * max(1.0, abs(said[0]))


def first_tensor(output: Any) -> Any:
    """Return the first tensor in what a model returned: itself, or in a tuple, list, mapping or record."""
    if isinstance(output, Tensor):
        return output
    for part in parts(output):
        found = first_tensor(part)
        if isinstance(found, Tensor):
            return found
    return output if not isinstance(output, (tuple, list, Mapping)) else None


def parts(output: Any) -> list[Any]:
    """Return the members of a tuple, list, mapping or dataclass."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    return list(vars(output).values()) if hasattr(output, "__dataclass_fields__") else []


def squashed(model: nn.Module, split: Split) -> bool:
    """Whether a model ends in a sigmoid or a softmax: told by its last operation, or else by the range of its outputs."""
    few = mapped(split.take(2).tensors()[0], _leaf)
    with torch.enable_grad():
        last = first_tensor(call(model, few))
    told = _last_step(getattr(last, "grad_fn", None))
    if told is not None:
        return told
    outputs, targets = predict(lambda inputs: first_tensor(call(model, inputs)), split.take(SAMPLE), batch=SAMPLE)
    return _in_range(outputs, class_axis(outputs, targets))


def _leaf(value: Tensor) -> Tensor:
    """Return a copy in which gradients begin, where it can have them."""
    return value.detach().clone().requires_grad_(value.is_floating_point())


def _last_step(node: Any, depth: int = 0) -> bool | None:
    """Walk back over operations that only move numbers; True at a squashing one, False at a linear one, None at any other."""
    if node is None or depth > 20:
        return None
    name = type(node).__name__
    if name.startswith(_LINEAR):
        return False
    if name.startswith(_SQUASHING):
        return True
    if not name.startswith(_MOVING):
        return None
    told = {_last_step(before, depth + 1) for before, _ in node.next_functions if before is not None}
    return told.pop() if len(told) == 1 else None


def _in_range(outputs: Any, axis: int) -> bool:
    """Whether outputs look like probabilities: of classes that add up to 1, or all between 0 and 1 and not just 0 and 1."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or not outputs.numel():
        return False
    if float(outputs.min()) < -SURE or float(outputs.max()) > 1 + SURE:
        return False
    if outputs.ndim > 1 and outputs.shape[axis] > 1 and bool(((outputs.sum(axis) - 1).abs() < SURE).all()):
        return True
    return outputs.numel() >= 16 and float(outputs.min()) < 0.4 and float(outputs.max()) > 0.6


def settled(metric: Metric, loss: Loss, model: nn.Module, validation: Split) -> tuple[Metric, Loss]:
    """Return metric and loss as they must be read with this model.

    One of ours is told whether the model ends in a sigmoid or a softmax. One of the user's own without a scale gets it from
    the values that it gives: 100 for fractions, so that one point is one in a hundred, and else 1. A model that cannot be run
    changes nothing: `check` says why.
    """
    ours = metric.name in OF_PROBABILITIES and METRICS[metric.name] is metric
    try:
        if ours or loss is natural_loss:
            squash = squashed(model, validation)
            metric = OF_PROBABILITIES[metric.name] if ours and squash else metric
            if loss is natural_loss and squash:
                loss = _natural_of(model, validation)
        if metric.scale is None:
            metric = replace(metric, scale=_scale_here(metric, model, validation))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's model and data; `check` tells what they raise
        return metric, loss
    return metric, loss


def _natural_of(model: nn.Module, validation: Split) -> Loss:
    """A squashed model of labels gets the loss of probabilities; of numbers between 0 and 1 it keeps the squared error."""
    return natural_loss if validation.take(2).tensors()[1].is_floating_point() else natural_loss_of_probabilities


def _scale_here(metric: Metric, model: nn.Module, validation: Split) -> float | None:
    """Ask the metric about a few samples; about more where it cannot say anything of so few."""
    for count in (SAMPLE, 4 * SAMPLE):
        outputs, targets = predict(lambda inputs: first_tensor(call(model, inputs)), validation.take(count), batch=SAMPLE)
        if (scale := scale_of(metric, outputs.float(), targets)) is not None:
            return scale
    return None


def scale_of(metric: Metric, outputs: Tensor, targets: Tensor) -> float | None:
    """Return the points for 1 of a metric: 100 where its values are fractions, 1 where they are not, None where it gives none.

    Fractions are values that stay at or below 1 whatever the answers, the perfect ones included, and that reach above 0:
    accuracy, AUC, F1, R squared, an error rate. An error that some answer pushes above 1 is in a unit of its own. Where this
    reads wrongly, a point is smaller than meant: no bound is met by mistake.
    """
    right = [answer for kind in perfect(outputs, targets).values() for answer in kind]
    at = list(_asked(metric.function, [outputs], targets))
    best = list(_asked(metric.function, right, targets))
    worst = list(_asked(metric.function, [-outputs, 1e6 * outputs, outputs.roll(1, 0), torch.zeros_like(outputs)], targets))
    values = [value for value in (*at, *best, *worst) if not math.isnan(value)]
    if not at or not values:
        return None
    if metric.maximize:
        top = max(values)
        return 100.0 if -1 <= top <= 1 + TIE and (top > 0 or not best) else 1.0
    return 100.0 if min(values) >= -TIE and 0 < max(values) <= 1 + TIE else 1.0
