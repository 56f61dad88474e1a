"""What must be learned, before there is a model: data, metric and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.batch import SOURCE, WRITTEN, Inputs, call, is_pair, leaves, named
from equipoise.errors import InputError, must_be
from equipoise.workloads import identity
from equipoise.workloads.augment import Augment
from equipoise.workloads.base import Workload, carved, readers, together
from equipoise.workloads.beside import checked_files, checked_labels
from equipoise.workloads.check import contents, judged_targets, sizes
from equipoise.workloads.data import Split, Transform
from equipoise.workloads.labels import masked_metric
from equipoise.workloads.meaning import scale_of
from equipoise.workloads.metrics import (
    METRICS,
    OF_PROBABILITIES,
    Loss,
    Metric,
    Quality,
    Score,
    ignoring_loss,
    metric_of,
    natural_loss,
    natural_loss_of_probabilities,
)
from equipoise.workloads.overlap import overlapping
from equipoise.workloads.sources import Arrays, attempt

Kind = Literal["vectors", "images", "tokens", "arrays", "pairs"]

PROBE = 64
"""Samples on which the metric and the loss are tried before any work."""


@dataclass(frozen=True)
class Shape:
    """What a model must take and give for one sample; all that a family needs to know of a task.

    Attributes:
        sample: Shape of one input: (features,), (channels, height, width), or (length,) of tokens.
        outputs: Classes, or numbers to predict for each sample.
        vocabulary: How many tokens there are; None where the inputs are numbers.
        dense: One label for each position of the input (the next character), rather than one for each sample.
        padding: The token that fills a shorter text up; families whose models give one answer for each sample pass over it.
        written: Length of the second of two sequences, where a model writes one while it looks at another (translation): its
            inputs are then ``source`` (N, length) and ``written`` (N, this), and it answers what comes next in the second.
        unseen: The outputs are the tokens, and the answer is none of the sample's own: something new is to be recommended.
        aligned: Of a dense one, whether it is known which position a label belongs to. Else a model answers for as many
            positions as it likes, and the loss lays the row of labels against them (CTC).

    Example:
        >>> Shape((3, 32, 32), 10).kind
        'images'
    """

    sample: tuple[int, ...]
    outputs: int
    vocabulary: int | None = None
    dense: bool = False
    padding: int = field(default=0, repr=False)
    written: int | None = field(default=None, repr=False)
    unseen: bool = field(default=False, repr=False)
    aligned: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        counts = (*self.sample, self.outputs, *(n for n in (self.vocabulary, self.written) if n is not None))
        if not self.sample or not all(isinstance(n, int) and n >= 1 for n in counts):
            raise must_be("shape", "made of whole numbers of at least 1", self, "Write Shape((3, 32, 32), outputs=10).")
        if self.unseen and (self.vocabulary != self.outputs or self.dense):
            remedy = "Number the outputs as the tokens."
            raise must_be("outputs", f"the vocabulary of {self.vocabulary} where it is unseen tokens", self.outputs, remedy)

    @property
    def places(self) -> tuple[int, ...]:
        """Shape of the places that are answered one by one, of one sample; nothing where these are not known."""
        if not self.dense or not self.aligned:
            return ()
        return self.sample if self.written is None else (self.written,)

    @property
    def kind(self) -> Kind:
        """Whether a sample is a vector, an image, a row of tokens, two such rows, or an array of another rank."""
        if self.written is not None:
            return "pairs"
        if self.vocabulary is not None:
            return "tokens"
        return "vectors" if len(self.sample) == 1 else "images" if len(self.sample) == 3 else "arrays"


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled data with the metric and the loss to learn them by; make one with `Task.of`, which checks all of it.

    Attributes:
        name: For tables and reports.
        shape: What a model must take and give.
        train, validation, test: Disjoint splits; the test split is left unread.
        metric: Quality and its direction.
        loss: (outputs, targets) -> scalar tensor.
        augment: (inputs, generator) -> inputs, random changes for training; or None.
        ignore_label: A target that is not judged, or None.
        labels: Names of the classes in the order of their numbers; empty where they have none.
        files: Name -> content of what belongs to the data and ships beside a model: a tokenizer.
        also: Further qualities, which are read at the end and decide nothing.

    Example:
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> task = Task.of(train=(x[:60], y[:60]), test=(x[60:], y[60:]), name="toy")
        >>> task.sample, task.outputs, len(task.train), len(task.validation)
        ((4,), 3, 48, 12)
    """

    name: str
    shape: Shape
    train: Split
    validation: Split
    test: Split
    metric: Metric
    loss: Loss
    augment: Augment | None = None
    ignore_label: int | None = None
    labels: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    also: tuple[Metric, ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(part)} {part.name}" for part in (self.train, self.validation, self.test))
        return f"Task({self.name}: {self.shape}; {sizes} samples; {self.metric.name})"

    @classmethod
    def of(
        cls,
        *,
        train: Any,
        test: Any,
        validation: Any = None,
        metric: str | Metric | Quality | Score = "accuracy",
        loss: str | Loss = "natural",
        augment: Augment | None = None,
        transform: Transform | None = None,
        maximize: bool = True,
        name: str = "task",
        outputs: int | None = None,
        vocabulary: int | None = None,
        seed: int = 0,
        ignore_label: int | None = None,
        padding: int = 0,
        unseen: bool = False,
        also: Sequence[Quality] = (),
        aligned: bool = True,
        labels: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> Task:
        """Make a task of what the user has; everything in it that cannot be learned from is told in one error.

        Args:
            train, test, validation: Anything that `Split.of` takes. Without validation data one training sample in five
                serves, by the fixed shuffle, as in a `Workload`.
            metric: A key of `METRICS`, a `Metric`, or a function of (outputs, targets).
            loss: ``natural`` (cross entropy for labels, squared error for values), a name, or a function.
            augment: Random changes of a batch of training inputs.
            transform: Applied to each batch of inputs of every split (normalisation).
            maximize: Direction of a metric given as a function.
            name: For tables and reports.
            outputs: Classes (1: a single logit for two classes), or values for each sample. None reads them off the targets,
                for which a dataset that lies on disk is read once.
            vocabulary: How many tokens there are; None reads it off integer inputs that lie in memory.
            seed: Of the fixed shuffles.
            ignore_label, labels, files: As of a `Workload`.
            also: Further qualities, which are read at the end and decide nothing.
            padding, unseen, aligned: As of a `Shape`. Where labels are not aligned, targets are rows (N, L) of them that
                `outputs`, `loss` and `metric` know how to read; shorter rows are filled up with a label of no meaning.
        Raises:
            InputError: Empty splits, labels out of range or of the wrong type, a single class, inputs that are not finite or
                not ready for a model, a metric or a loss that is undefined on these targets.
        """
        given = {"train": train, "test": test, "validation": validation}
        read = together(readers(given, metric=metric, maximize=maximize, loss=loss, transform=transform, seed=seed))
        seen, held = carved(read["train"], read.get("validation")).values()
        measure, criterion, test = read["metric"], read["loss"], read["test"]
        if ignore_label is not None:
            measure = masked_metric(measure, ignore_label)
            criterion = ignoring_loss(criterion, ignore_label) if isinstance(loss, str) else criterion
        _raise(sizes(seen, held, test))
        _raise(overlapping(seen, held, test))
        _raise(contents(seen, held, measure, ignore=ignore_label))
        if read["metric"].labels is False:
            seen, held, test = (replace(split, values=True) for split in (seen, held, test))
        shape = _shape(seen, held, outputs, vocabulary, ignore_label, aligned=aligned)
        _raise(mistake for split in (seen, held) for mistake in _out_of_range(split, shape, ignore_label))
        _raise(_untaught(held, shape, measure, criterion))
        if measure.scale is None:
            measure = replace(measure, scale=scale_of(measure, *_random_answers(held, shape)))
        shape = replace(shape, padding=padding, unseen=unseen)
        names, beside = checked_labels(labels, shape.outputs), checked_files(files or {})
        further = tuple(metric_of(quality) for quality in also)
        return cls(name, shape, seen, held, test, measure, criterion, augment, ignore_label, names, beside, further)

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape of one input as the model takes it."""
        return self.shape.sample

    @property
    def outputs(self) -> int:
        """Classes, or values for each sample."""
        return self.shape.outputs

    @property
    def vocabulary(self) -> int | None:
        """How many tokens there are; None where the inputs are numbers."""
        return self.shape.vocabulary

    @cached_property
    def example(self) -> Inputs:
        """A small batch (2, ...) as the model takes it: a tensor, or the two of a pair by name."""
        return self.validation.take(2).tensors()[0]

    def workload(self, model: nn.Module) -> Workload:
        """Return what must be kept of `model`, which learned this; `task_of` leads back.

        Raises:
            InputError: As `Workload`.
        """
        return Workload(
            model=model,
            train=self.train,
            validation=self.validation,
            test=self.test,
            metric=self.metric,
            loss=self.loss,
            augment=self.augment,
            name=self.name,
            ignore_label=self.ignore_label,
            labels=self.labels,
            files=self.files,
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the data and what is done to them, the metric, the loss or the shape."""
        splits = (self.train, self.validation, self.test)
        kind = f"{self.shape} {self.shape.padding}{' unseen' if self.shape.unseen else ''}"
        words = [f"task {self.name} {kind} {self.ignore_label}", *map(identity.of_data, splits)]
        changes = (self.augment, tuple(split.transform for split in splits))
        return identity.digest(*words, identity.of_value((self.metric, self.loss)), identity.of_value(changes))


def task_of(work: Workload) -> Task:
    """Return what `work` must have learned, without its model; its outputs say how many classes there are.

    The models of a family give logits: of our own metrics and losses those of probabilities become those of logits.

    Raises:
        InputError: As `Task.of`.
    """
    _one_or_pair(work.example)
    with torch.inference_mode():
        answers = attempt("model", lambda: call(work.model, work.example), "Look at the model's forward.")
    outputs = answers.shape[1] if work.classifier and answers.ndim > 1 else None
    rows = work.validation.take(2).targets()
    loose = rows.ndim == 2 and not rows.is_floating_point() and answers.ndim == 3 and rows.shape[1] not in answers.shape[1:]
    return Task.of(
        train=work.train,
        validation=work.validation,
        test=work.test,
        metric=METRICS[work.metric.name] if OF_PROBABILITIES.get(work.metric.name) is work.metric else work.metric,
        loss=natural_loss if work.loss is natural_loss_of_probabilities else work.loss,
        augment=work.augment,
        name=work.name,
        outputs=outputs,
        ignore_label=work.ignore_label,
        aligned=not loose,
        labels=work.labels,
        files=work.files,
    )


def _raise(mistakes: Iterator[InputError]) -> None:
    """Raise one error that lists all of `mistakes`, if there are any."""
    found = list(mistakes)
    if found:
        raise InputError("\n".join(map(str, found)))


def _shape(
    train: Split,
    validation: Split,
    outputs: int | None,
    vocabulary: int | None,
    ignore: int | None = None,
    *,
    aligned: bool = True,
) -> Shape:
    """Read off the data what a model must take and give."""
    given, targets = train.take(2).tensors()
    _one_or_pair(given)
    inputs, written = leaves(given)[0], None
    tokens = all(value.dtype in (torch.int64, torch.int32) for value in leaves(given))
    if isinstance(given, Mapping):
        inputs, written = given[SOURCE], given[WRITTEN].shape[1]
        if not tokens:
            found = ", ".join(str(value.dtype) for value in leaves(given))
            raise must_be("inputs", f"int64 tokens where they are {SOURCE} and {WRITTEN}", found, "Convert them by .long().")
    if vocabulary is not None and not tokens:
        raise must_be("inputs", "int64 tokens where a vocabulary is given", inputs.dtype, "Convert tokens by .long().")
    if not tokens and not inputs.is_floating_point():
        remedy = "Pass transform=... that makes floats of them (for images: / 255, or the mean and deviation)."
        raise must_be("inputs", "floating point, or int64 tokens", inputs.dtype, remedy)
    if tokens and vocabulary is None:
        vocabulary = 1 + max(_most_token(split) for split in (train, validation))
    if targets.is_floating_point():
        values = math.prod(targets.shape[1:])
        if outputs not in (None, values):
            raise must_be("outputs", f"the {values} values of each target", outputs, "Leave outputs out.")
        return Shape(tuple(inputs.shape[1:]), values, vocabulary)
    dense = targets.ndim > 1
    if not aligned and targets.ndim != 2:
        remedy = "Give a row of labels for each sample, or leave aligned out."
        raise must_be("targets", "of shape (N, L) where labels are not aligned", tuple(targets.shape), remedy)
    if dense and aligned and targets.shape[1:] != (inputs.shape[1 if tokens else 2 :] if written is None else (written,)):
        remedy = "Give one label for each sample (N,), or one for each position; make 0/1 values of several labels floats."
        raise must_be("targets", "of shape (N,)", tuple(targets.shape), remedy)
    classes = outputs or 1 + max(_highest(split.targets(), ignore) for split in (train, validation))
    return Shape(tuple(inputs.shape[1:]), classes, vocabulary, dense, written=written, aligned=aligned)


def _one_or_pair(inputs: Inputs) -> None:
    """Raise unless inputs are what a family's models take: one tensor, or the two of a pair by name."""
    if isinstance(inputs, Mapping) and not is_pair(inputs):
        found = ", ".join(named(inputs))
        wanted = f"one tensor, or {SOURCE} and {WRITTEN}: that is what a family's models take"
        raise must_be("a task's inputs", wanted, found, "Train the model itself.")


def _highest(targets: Tensor, ignore: int | None) -> int:
    """The highest label that is judged."""
    return int((targets if ignore is None else targets[targets != ignore]).max())


def _most_token(split: Split) -> int:
    tokens = _in_memory(split)
    if not tokens:
        raise must_be("vocabulary", "given for tokens that are read item by item", None, "Pass vocabulary=... .")
    return max(int(some.max()) for some in tokens)


def _in_memory(split: Split) -> tuple[Tensor, ...]:
    """The inputs as they are handed out, where they lie in memory; else nothing."""
    return leaves(split.source.inputs) if isinstance(split.source, Arrays) and split.transform is None else ()


def _out_of_range(split: Split, shape: Shape, ignore: int | None) -> Iterator[InputError]:
    """Labels and tokens must be numbered from 0, below their count."""
    targets = judged_targets(split, ignore)
    if not targets.is_floating_point() and int(targets.max()) >= max(2, shape.outputs):
        remedy = "Number the classes from 0, or pass the right outputs=... ."
        yield must_be(f"{split.name} targets", f"below the {shape.outputs} outputs", int(targets.max()), remedy)
    if shape.vocabulary is not None:
        tokens = _in_memory(split) or leaves(split.take(PROBE).tensors()[0])
        low, high = min(int(some.min()) for some in tokens), max(int(some.max()) for some in tokens)
        if not 0 <= low <= high < shape.vocabulary:
            found = f"{low} to {high}"
            yield must_be(f"{split.name} inputs", f"tokens from 0 to {shape.vocabulary - 1}", found, "Look at the tokenizer.")


def _untaught(split: Split, shape: Shape, metric: Metric, loss: Loss) -> Iterator[InputError]:
    """Yield what keeps the metric or the loss from being read off the targets, tried on random outputs."""
    outputs, targets = _random_answers(split, shape)
    if metric.labels and targets.is_floating_point():
        yield must_be("targets", f"whole numbers for metric {metric.name}", targets.dtype, "Convert labels by .long().")
        return
    takes = f"It is called with outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}."
    try:
        score = 0.0 if metric.ask else attempt(f"metric {metric.name}", lambda: metric.score(outputs, targets), takes)
        value = attempt("loss", lambda: float(loss(outputs, targets)), takes)
    except InputError as error:
        yield error
        return
    if not math.isfinite(score):
        yield must_be(f"metric {metric.name}", "finite", score, "It must be defined on every validation sample.")
    if not math.isfinite(value):
        yield must_be("loss", "finite", value, "Pass loss=... that suits the targets.")


def _random_answers(split: Split, shape: Shape) -> tuple[Tensor, Tensor]:
    """Outputs of a model that knows nothing, and the targets of the samples they are for."""
    _, targets = split.take(PROBE).tensors()
    positions = tuple(targets.shape[1:]) if shape.dense else ()
    if not shape.aligned:  # enough for each label, and for what parts it from the next
        positions = (2 * targets.shape[1] + 1,)
    return torch.randn((len(targets), shape.outputs, *positions), generator=torch.Generator().manual_seed(0)), targets
