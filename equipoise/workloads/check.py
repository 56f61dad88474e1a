"""Everything that makes a workload unusable, told at once and before any work starts."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from equipoise.batch import call, leaves, take
from equipoise.errors import InputError, must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split, asked, predict
from equipoise.workloads.metrics import Metric
from equipoise.workloads.outputs import not_one
from equipoise.workloads.overlap import overlapping
from equipoise.workloads.running import one_thread
from equipoise.workloads.scoring import quality_reading
from equipoise.workloads.sources import Arrays, attempt

SAMPLE = 256
"""Samples of the validation split that the check runs through the model."""

READ_S = 2.0
"""Seconds for which a dataset that is read item by item is looked through for NaN; the rest is looked at when it is used."""

ANSWERED_S = 2.0
"""Seconds for which the model's answers are looked through for NaN, beyond the sample."""

TOLERANCE = 1e-3
"""Largest difference between an output computed alone and in a batch, relative to the largest output."""


def check(work: Workload) -> None:
    """Raise one error that lists everything about `work` that cannot be used; return when there is nothing.

    Looks at the splits and whether they are apart, every number that lies in memory, the labels, the weights, the model's
    answers at batches of 1, 2 and 3, the metric and the claim. The inputs and labels of the test split are not looked at: only
    that there are some, and which samples of the user's dataset they are.

    Raises:
        InputError: One line for each thing found, with its remedy.
    """
    mistakes = [*sizes(work.train, work.validation, work.calibration, work.test), *_weights(work)]
    if not mistakes:
        mistakes = list(overlapping(work.train, work.validation, work.test, calibration=work.calibration))
        mistakes += contents(work.train, work.validation, work.metric, ignore=work.ignore_label)
    if not mistakes:  # what follows runs the model, which needs all of the above
        with one_thread():
            mistakes = list(_answers(work))
    if mistakes:
        raise InputError("\n".join(str(mistake) for mistake in mistakes))


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


def contents(train: Split, validation: Split, metric: Metric, *, ignore: int | None = None) -> Iterator[InputError]:
    """Yield what is wrong with inputs and targets of the splits that are used before verification."""
    for split in (train, validation):
        try:
            found = not_finite(split)
            _, targets = attempt(
                f"{split.name} data", split.take(SAMPLE).tensors, "Look at the dataset and its collate function."
            )
        except InputError as error:
            yield error
            return
        if found:
            yield found
        elif not targets.is_floating_point():
            yield from _labels(split, metric, ignore)
    again = validation.take(8)
    first, second = leaves(again.tensors()[0]), leaves(again.reread().tensors()[0])
    if not all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)):
        yield must_be(
            "validation data",
            "the same at every read",
            "different inputs for the same sample",
            "Random augmentation belongs to training alone: pass validation=... without it.",
        )


def not_finite(split: Split) -> InputError | None:
    """Return an error that names the first sample with NaN or infinity; all are looked at where they lie in memory.

    A dataset that is read item by item raises it itself when it is read, which is done here for a few seconds.
    """
    source = split.source
    if not isinstance(source, Arrays):
        until = time.perf_counter() + READ_S
        for _ in split.batches(64):
            if time.perf_counter() > until:
                break
        return None
    floats = [value for value in (*leaves(source.inputs), source.targets) if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in floats):  # a source may hold other splits' samples too
        mine = take(source.inputs, split.order), source.targets[split.order]
        if found := split.broken(*mine, split.order):
            return found
    if split.transform is not None and any(value.is_floating_point() for value in leaves(source.inputs)):
        for start in range(0, len(split), SAMPLE):
            part = split.part(start, start + SAMPLE)
            if found := split.broken(*part.tensors(), part.order):
                return found
    return None


def some_targets(split: Split) -> Tensor:
    """Return all targets where they lie in memory, and else those of a sample: reading a whole dataset may take minutes."""
    return (split if isinstance(split.source, Arrays) else split.take(SAMPLE)).targets()


def judged_targets(split: Split, ignore: int | None) -> Tensor:
    """Return `some_targets` without those that are not judged."""
    targets = some_targets(split)
    return targets if ignore is None else targets[targets != ignore]


def _labels(split: Split, metric: Metric, ignore: int | None) -> Iterator[InputError]:
    seen = torch.unique(judged_targets(split, ignore))
    if not len(seen):
        yield must_be(f"{split.name} targets", "judged somewhere", f"only ignore_label={ignore}", "Look at the targets.")
        return
    if len(seen) < 2 and metric.labels and (isinstance(split.source, Arrays) or len(split) <= SAMPLE):  # else one may be rare
        yield must_be(
            f"{split.name} targets", "of at least two classes", f"only class {int(seen[0])}", "One class cannot be told apart."
        )
    if int(seen[0]) < 0:
        remedy = f"Number the classes from 0, or pass ignore_label={int(seen[0])} where it marks what is not judged."
        yield must_be(f"{split.name} targets", "0 or more", int(seen[0]), remedy)


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
    try:
        row = _strange_answer(work, outputs)
    except InputError as error:
        yield error
        return
    if row is not None:
        found = f"NaN or infinity for row {row} of the validation data"
        yield must_be("model outputs", "finite", found, "The training diverged, or the input scale is wrong.")
        return
    if work.classifier and not targets.is_floating_point() and (high := _too_high(work, outputs)):
        yield high
        return
    yield from _scores(work, outputs, targets)


def _strange_answer(work: Workload, outputs: Tensor) -> int | None:
    """Return the first validation sample (by its place in the user's data) whose answer is not finite; None for none.

    Beyond the sample the model is run for as long as the check may take.
    """
    order, until, start = work.validation.order, time.perf_counter() + ANSWERED_S, len(outputs)
    while True:
        rows = order[start - len(outputs) : start]
        if outputs.is_floating_point() and not bool(outputs.isfinite().all()):
            return int(rows[~outputs.reshape(len(rows), -1).isfinite().all(1)].min())
        if start >= len(order) or time.perf_counter() > until:
            return None
        part = work.validation.part(start, start + 64)
        outputs, _ = attempt("model", lambda p=part: predict(work.model, p, batch=64), "Look at its forward.")  # type: ignore[misc]
        start += len(outputs)


def _too_high(work: Workload, outputs: Tensor) -> InputError | None:
    """Return an error where a label has no output."""
    classes = 2 if outputs.ndim == 1 or outputs.shape[1] == 1 else outputs.shape[1]
    if outputs.ndim > 2 and outputs.shape[2:] != work.validation.take(1).targets().shape[1:]:
        classes = outputs.shape[-1]
    highest = max(int(judged_targets(split, work.ignore_label).max()) for split in (work.train, work.validation))
    if highest < classes or (highest == classes and work.divergence.kind == "bernoulli"):  # grades: one more than outputs
        return None
    remedy = (
        f"Number the classes from 0 or give the model more outputs; pass ignore_label={highest} where it marks what is not "
        "judged, or metric='mae' where targets are values to predict."
    )
    return must_be("targets", f"below the model's {classes} classes", highest, remedy)


def _batches_agree(work: Workload) -> None:
    """Raise unless a batch of n gives n answers, each the one that its sample gives alone."""
    inputs, _ = work.validation.take(3).tensors()
    dynamic = "The batch must stay dynamic: no fixed sizes in view or reshape."
    kinds = " and ".join(sorted({str(value.dtype) for value in leaves(inputs) if not value.is_floating_point()}))
    raw = f" Inputs are {kinds}: pass transform=... where the model takes floats." if kinds else ""
    with torch.inference_mode():
        answers: list[Tensor] = []
        for n in (1, 2, 3):
            output = attempt(f"model at batch {n}", lambda n=n: call(work.model, take(inputs, slice(n))), dynamic + raw)  # type: ignore[misc]
            if not isinstance(output, Tensor):
                raise not_one(output)
            if output.ndim == 0 or len(output) != n:
                raise must_be(f"model output at batch {n}", f"{n} rows", tuple(output.shape), dynamic)
            answers.append(output.float())
        last = attempt("model at batch 1", lambda: call(work.model, take(inputs, slice(2, 3))).float(), dynamic)
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
        score = attempt(f"metric {work.metric.name}", lambda: _score(work, outputs, targets), takes)
        with warnings.catch_warnings():  # torch only warns where (N, 1) and (N,) would be compared all with all
            warnings.filterwarnings("error", message="Using a target size")
            loss = attempt("loss", lambda: work.loss(outputs, targets), f"{takes[:-1]} {_sizes(outputs, targets)}.")
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


def _score(work: Workload, outputs: Tensor, targets: Tensor) -> float:
    """The metric of the answers, or where it asks for itself what it finds on as many samples."""
    metric = work.metric
    given = (outputs, targets) if metric.ask is None else asked(metric, work.model, work.validation.take(len(outputs)))
    return metric.score(*given)


def _sizes(outputs: Tensor, targets: Tensor) -> str:
    return f"of shapes {tuple(outputs.shape)} and {tuple(targets.shape)}"


def _claim(work: Workload, claimed: float) -> Iterator[InputError]:
    """A claim far above what is found means wrong weights, wrong preprocessing or wrong labels.

    The opposite is no mistake: the model may have been trained on what is the validation split here.
    """
    outputs, targets = asked(work.metric, work.model, work.validation)
    found = quality_reading(work.metric, outputs.numpy(), targets)
    if found.low is None or found.high is None:
        return
    scale = work.metric.scale or 1.0
    points = claimed * scale if scale != 1 and abs(claimed) <= 1 else claimed  # as the user's own function says it
    apart = 2 / 1.96 * (found.get() - found.low if work.metric.maximize else found.high - found.get())
    if work.metric.drop(points, found.get()) > apart:
        yield must_be(
            "claimed_quality",
            f"within two sigma ({apart:.2g}) of what is found on validation ({found.get():.4g})",
            claimed,
            "Look at the weights, the preprocessing and the order of the classes.",
        )
