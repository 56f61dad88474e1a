"""Everything that makes a workload unusable, told at once and before any work starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from equipoise.errors import InputError, must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Arrays, Split, predict
from equipoise.workloads.metrics import Metric

SAMPLE = 256
"""Samples of the validation split that the check runs through the model."""

TOLERANCE = 1e-3
"""Largest difference between an output computed alone and in a batch, relative to the largest output."""

OF_LABELS = frozenset({"accuracy", "f1", "cross_entropy", "bits_per_character"})
"""Metrics of class labels; with one class alone they say nothing."""

T = TypeVar("T")


def check(work: Workload) -> None:
    """Raise one error that lists everything about `work` that cannot be used; return when there is nothing.

    Looks at the splits, the labels, the weights, the model's answers at batches of 1, 2 and 3, the metric and the claim.
    The inputs and labels of the test split are not looked at: only that there are some.

    Raises:
        InputError: One line for each thing found, with its remedy.
    """
    mistakes = [*sizes(work.train, work.validation, work.calibration, work.test), *_weights(work)]
    if not mistakes:
        mistakes = list(contents(work.train, work.validation, work.metric))
    if not mistakes:  # what follows runs the model, which needs all of the above
        mistakes = list(_answers(work))
    if mistakes:
        raise InputError("\n".join(str(mistake) for mistake in mistakes))


def attempt(what: str, call: Callable[[], T], remedy: str) -> T:
    """Return ``call()``; whatever the user's own code raises becomes an `InputError` that shows it."""
    try:
        return call()
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        raise InputError(f"{what} must run; it raised {type(error).__name__}: {error}. {remedy}") from error


def sizes(*splits: Split) -> Iterator[InputError]:
    """Yield an error for each split with too few samples; three serve to validate, one to anything else."""
    for split in splits:
        least = 3 if split.name == "validation" else 1
        if len(split) < least:
            yield must_be(f"{split.name} split", f"at least {least} samples", len(split), f"Pass more {split.name} data.")


def _weights(work: Workload) -> Iterator[InputError]:
    for name, value in work.model.state_dict().items():
        if value.is_meta:
            yield must_be(f"model.{name}", "a tensor with values", "a meta tensor", "Load the trained weights first.")
            return
        if value.is_floating_point() and not value.isfinite().all():
            yield must_be(f"model.{name}", "finite", "NaN or infinity", "The training diverged, or the file is damaged.")


def contents(train: Split, validation: Split, metric: Metric) -> Iterator[InputError]:
    """Yield what is wrong with inputs and targets of the splits that are used before verification."""
    for split in (train, validation):
        try:
            inputs, targets = attempt(
                f"{split.name} data", split.take(SAMPLE).tensors, "Look at the dataset and its collate function."
            )
        except InputError as error:
            yield error
            return
        for name, value in (("inputs", inputs), ("targets", targets)):
            if value.is_floating_point() and not value.isfinite().all():
                yield must_be(f"{split.name} {name}", "finite", "NaN or infinity", "Clean the data.")
        if not targets.is_floating_point():
            yield from _labels(split, metric)
    again = validation.take(8)
    if not torch.equal(again.tensors()[0], again.reread().tensors()[0]):
        yield must_be(
            "validation data", "the same at every read", "different inputs for the same sample",
            "Random augmentation belongs to training alone: pass validation=... without it.",
        )  # fmt: skip


def some_targets(split: Split) -> Tensor:
    """Return all targets where they lie in memory, and else those of a sample: reading a whole dataset may take minutes."""
    return (split if isinstance(split.source, Arrays) else split.take(SAMPLE)).targets()


def _labels(split: Split, metric: Metric) -> Iterator[InputError]:
    seen = torch.unique(some_targets(split))
    if len(seen) < 2 and metric.name in OF_LABELS:
        yield must_be(
            f"{split.name} targets", "of at least two classes", f"only class {int(seen[0])}", "One class cannot be told apart."
        )
    if int(seen[0]) < 0:
        yield must_be(f"{split.name} targets", "0 or more", int(seen[0]), "Number the classes from 0.")


def _answers(work: Workload) -> Iterator[InputError]:
    """Run the model: alone and in batches, then through the metric."""
    try:
        _batches_agree(work)
        remedy = "Look at the model's forward."
        sample = work.validation.take(SAMPLE)
        outputs, targets = attempt("model", lambda: predict(work.model, sample, batch=64), remedy)
    except InputError as error:
        yield error
        return
    if not outputs.isfinite().all():
        yield must_be("model outputs", "finite", "NaN or infinity", "The training diverged, or the input scale is wrong.")
        return
    if not targets.is_floating_point():
        most = 1 if outputs.ndim == 1 or outputs.shape[1] == 1 else outputs.shape[1] - 1
        highest = int(max(some_targets(work.train).max(), some_targets(work.validation).max()))
        if highest > most:
            remedy = "Number the classes from 0, or give the model more outputs."
            yield must_be("targets", f"below the model's {most + 1} classes", highest, remedy)
            return
    yield from _scores(work, outputs, targets)


def _batches_agree(work: Workload) -> None:
    """Raise unless a batch of n gives n answers, each the one that its sample gives alone."""
    inputs, _ = work.validation.take(3).tensors()
    dynamic = "The batch must stay dynamic: no fixed sizes in view or reshape."
    with torch.inference_mode():
        answers: list[Tensor] = []
        for n in (1, 2, 3):
            output = attempt(f"model at batch {n}", lambda n=n: work.model(inputs[:n]), dynamic)  # type: ignore[misc]
            if not isinstance(output, Tensor):
                raise must_be("model output", "one tensor", type(output).__name__, "Wrap the model to return its logits.")
            if output.ndim == 0 or len(output) != n:
                raise must_be(f"model output at batch {n}", f"{n} rows", tuple(output.shape), dynamic)
            answers.append(output.float())
        last = attempt("model at batch 1", lambda: work.model(inputs[2:3]).float(), dynamic)
    if last.shape[1:] != answers[2].shape[1:]:
        raise must_be("model output", "of one shape at every batch size", tuple(answers[2].shape), dynamic)
    pairs = ((answers[0][0], answers[2][0]), (answers[1][1], answers[2][1]), (last[0], answers[2][2]))
    scale = float(answers[2].abs().max()) or 1.0
    worst = max(float((one - other).abs().max()) for one, other in pairs)
    if worst > TOLERANCE * scale:
        raise must_be(
            "model output",
            "the same for a sample alone and in a batch",
            f"a difference of {worst:.3g} at outputs up to {scale:.3g}",
            "Something mixes samples or draws at random in eval mode: batch statistics, or functional dropout.",
        )


def _scores(work: Workload, outputs: Tensor, targets: Tensor) -> Iterator[InputError]:
    """Check the metric, the loss and the claimed quality on the model's answers."""
    takes = "It is called with (outputs, targets)."
    try:
        score = attempt(f"metric {work.metric.name}", lambda: work.metric.score(outputs, targets), takes)
        loss = attempt("loss", lambda: work.loss(outputs, targets), takes)
    except InputError as error:
        yield error
        return
    if not math.isfinite(score):
        yield must_be(f"metric {work.metric.name}", "finite", score, "It must be defined on every validation sample.")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite().all()):
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.numel() != 1 else loss
        yield must_be("loss", "one finite number as a tensor", found, "Pass loss=... that suits outputs and targets.")
    if work.claimed_quality is not None and math.isfinite(score):
        yield from _claim(work, work.claimed_quality)


def _claim(work: Workload, claimed: float) -> Iterator[InputError]:
    """A claim far above what is found means wrong weights, wrong preprocessing or wrong labels.

    The opposite is no mistake: the model may have been trained on what is the validation split here.
    """
    outputs, targets = predict(work.model, work.validation)
    found, each = work.metric.score(outputs, targets), work.metric.per_sample(outputs, targets)
    if each is None or len(each) < 2:
        return
    sigma = float(each.double().std()) / math.sqrt(len(each)) * (100 if work.metric.name == "accuracy" else 1)
    if work.metric.drop(claimed, found) > 2 * sigma:
        yield must_be(
            "claimed_quality", f"within two sigma ({2 * sigma:.2g}) of what is found on validation ({found:.4g})", claimed,
            "Look at the weights, the preprocessing and the order of the classes.",
        )  # fmt: skip
