"""What must be kept: a model, its data and how its quality is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, arguments, call
from equipoise.errors import InputError, must_be
from equipoise.workloads import identity, labels
from equipoise.workloads.augment import Augment
from equipoise.workloads.beside import checked_files, checked_labels
from equipoise.workloads.data import Split, Transform, asked
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.meaning import divergence_of, settled
from equipoise.workloads.metrics import Loss, Metric, Quality, Score, ignoring_loss, loss_of, metric_of, printable, yes_or_no
from equipoise.workloads.outputs import Chosen, Key, described, part, usual
from equipoise.workloads.sources import attempt
from equipoise.workloads.wrapped import bare, copied, single

Origin = Literal["given", "train", "test"]

VALIDATION_SHARE, VALIDATION_MOST = 5, 5000
"""Without a validation split, one in five training samples becomes one, at most this many."""

CALIBRATION_MOST = 1024
"""Without a calibration split, this many training inputs serve as one; it is used without labels."""


@dataclass(frozen=True, eq=False, init=False)
class Workload:
    """A trained model, its data and its quality metric; the caller's objects are never changed.

    Attributes:
        name: For tables and reports.
        model: A copy of the user's model, on the CPU and in evaluation mode.
        train, validation, calibration, test: Disjoint splits, except that calibration is made of training inputs when it was
            not given. The test split is read once, by the final verification.
        metric: Quality and its direction; `Metric.point` says what a drop of one point is.
        loss: (outputs, targets) -> scalar tensor.
        augment: (inputs, generator) -> inputs, random changes for training; or None.
        claimed_quality: What the user says that the model reaches, in points; `check` looks at it. Or None.
        classifier: Whether the outputs are logits of exclusive classes rather than numbers.
        ignore_label: A target that is not judged (void pixels, padding), or None.
        validation_from: Whether the validation split was given, or carved from the training or from the test data.
        notes: What was done to the model and the data so that they can be used.
        labels: Names of the classes in the order of their numbers; empty where they have none.
        files: Name -> content of what belongs to the data and ships in an artifact: a tokenizer.
        original: The model in its own precision, where it is not float32; or None.

    Example:
        >>> net, x, y = nn.Linear(4, 3), torch.randn(90, 4), torch.arange(90) % 3
        >>> work = Workload(model=net, train=(x[:60], y[:60]), test=(x[60:], y[60:]), metric="accuracy")
        >>> len(work.train), len(work.validation), tuple(work.example.shape)
        (48, 12, (2, 4))
    """

    name: str
    model: nn.Module
    train: Split
    validation: Split
    calibration: Split
    test: Split
    metric: Metric
    loss: Loss
    augment: Augment | None
    claimed_quality: float | None
    classifier: bool
    ignore_label: int | None
    validation_from: Origin
    notes: tuple[str, ...]
    labels: tuple[str, ...]
    files: Mapping[str, bytes]
    original: nn.Module | None
    _code: Mapping[str, str]

    def __init__(
        self,
        *,
        model: nn.Module | Callable[[], nn.Module],
        train: Any,
        test: Any,
        metric: str | Metric | Quality | Score = "accuracy",
        validation: Any = None,
        calibration: Any = None,
        loss: str | Loss = "natural",
        augment: Augment | None = None,
        transform: Transform | None = None,
        maximize: bool = True,
        claimed_quality: float | None = None,
        name: str | None = None,
        seed: int = 0,
        output: Key | None = None,
        ignore_label: int | None = None,
        labels: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Take what the user has; every mistake in it is reported together.

        Args:
            model: The trained model, or a function of nothing that builds it. Wrappers (data parallel, compiled) are taken off;
                a model in another precision is converted to float32.
            train, test: Anything that `Split.of` takes: ``(inputs, targets)``, a dataset, a DataLoader, an iterable of batches.
                Inputs are one tensor, a mapping by the keywords of the model's forward, or a tuple by position.
            metric: ``accuracy``, ``f1``, ``mse``, ``mae``, a `Metric`, a `Quality`, or a function of (outputs, targets). Where
                a function gives fractions, one point is 0.01 (docs/metrics.md).
            validation, calibration: As `train`; None takes them from it by a fixed shuffle. That is right for validation only
                if the model never saw those samples: else give data of its own, or a share of the test split (``0.3`` or
                ``"test:0.3"``), which then serves for validation while the rest verifies.
            loss: ``natural`` (cross entropy for labels, squared error for values), a name, or a function.
            augment: Random changes of a batch of training inputs.
            transform: Applied to each batch of inputs of every split (normalisation).
            maximize: Direction of a metric given as a function.
            claimed_quality: Quality that the model is said to have, in points, or as the user's own metric says it (0.97).
            name: None takes the class name of the model.
            seed: Of the fixed shuffles.
            output: Which output is judged of a model that gives several: a position, a key or the name of an attribute. None
                takes the only tensor, or the one called ``logits`` or ``out``.
            ignore_label: Positions with this target (255, -100) count neither in the built-in metrics nor in the named losses;
                functions of the user's own are given them.
            labels: Names of the classes, one for each output.
            files: What belongs to the data and is to ship with the model, by name: ``{"tokenizer.json": content}``.
        Raises:
            InputError: Anything above in a form that cannot be used.
        """
        share = test_share(validation)
        given = {"train": train, "test": test, "validation": None if share else validation, "calibration": calibration}
        rest = readers(given, metric=metric, maximize=maximize, loss=loss, transform=transform, seed=seed)
        read = together({"model": lambda: _model_of(model), "name": lambda: printable("name", name or None), **rest})
        kept, original, notes = read["model"]
        code = {"model weights": identity.of_weights(kept), "model code": identity.of_code(kept)}
        splits, unasked = _taken(kept, _splits(read, share))
        kept, answers, more = _one_output(kept, splits["validation"], output)
        measure, criterion = settled(read["metric"], read["loss"], kept, splits["validation"])
        judged = judge(measure, loss, criterion, splits, answers, ignore_label)
        values = {
            "name": name or type(kept.model if isinstance(kept, Chosen) else kept).__name__,
            "model": kept,
            **judged.splits,
            "metric": judged.metric,
            "loss": judged.loss,
            "augment": augment,
            "claimed_quality": claimed_quality,
            "classifier": judged.classifier,
            "ignore_label": ignore_label,
            "validation_from": "test" if share else "train" if read.get("validation") is None else "given",
            "labels": checked_labels(labels, answers.shape[1] if answers is not None and answers.ndim > 1 else None),
            "files": checked_files(files or {}),
            "notes": (*notes, *unasked, *more, *judged.notes, *(note for s in splits.values() for note in s.notes)),
            "original": original,
            "_code": {
                **code,
                "output": identity.of_value(output),
                "metric": identity.of_value((read["metric"], ignore_label)),
                "loss": identity.of_value(loss),
                "augment": identity.of_value(augment),
                "transform": identity.of_value(tuple(s.transform for s in splits.values())),
            },
        }
        values["notes"] = tuple(dict.fromkeys(values["notes"]))
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(part)} {part.name}" for part in (self.train, self.validation, self.test))
        params = sum(value.numel() for value in self.model.parameters() if not nn.parameter.is_lazy(value))
        return f"Workload({self.name}: {type(self.model).__name__} of {params:,} params; {sizes} samples; {self.metric.name})"

    @cached_property
    def example(self) -> Inputs:
        """A small batch (2, ...) as the model takes it, for tracing and export: a tensor, or several by name."""
        inputs, _ = self.validation.take(2).tensors()
        return inputs

    @cached_property
    def divergence(self) -> Divergence:
        """What the outputs mean, and so how far others are from them: told by the loss and the metric."""
        return divergence_of(self)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digest of each part that the workload is made of: a study belongs to these, and can say which of them changed.

        Data in memory enter whole, data on disk by their size, their files and a sample; the test split, where it is not in
        memory, is not read. Functions and modules of the user's own enter by their source.
        """
        roles = ("train", "validation", "calibration", "test")
        return {"name": self.name, **self._code, **{role: identity.of_data(getattr(self, role)) for role in roles}}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any part of `identity`."""
        return identity.digest(*(f"{part} {found}" for part, found in sorted(self.identity.items())))

    def quality(self, run: Callable[..., Any] | None = None, *, split: Split | None = None, batch: int = 256) -> float:
        """Return the metric of `run` (None: the model) on `split` (None: validation), in points."""
        return self.metric.score(*asked(self.metric, run or self.model, split or self.validation, batch=batch))


def _model_of(model: Any) -> tuple[nn.Module, nn.Module | None, tuple[str, ...]]:
    """Return a private float32 copy on the CPU in evaluation mode, the same in its own precision if another, and notes."""
    if not isinstance(model, nn.Module):
        if isinstance(model, Mapping):
            count = f"{type(model).__name__} of {len(model)} entries"
            remedy = "Build the model, load the weights into it (load_state_dict), and pass the model."
            raise must_be("model", "a torch.nn.Module, not its weights alone", count, remedy)
        if isinstance(model, type) or not callable(model):
            raise must_be("model", "a torch.nn.Module or a function that builds one", model, "Pass the trained model itself.")
        built = attempt("the model builder", model, "Call it alone to see more.")
        if not isinstance(built, nn.Module):
            raise must_be("the model builder's result", "a torch.nn.Module", type(built).__name__, "Return the trained model.")
        model = built
    plain = bare(model)
    own = attempt("copying the model", lambda: copied(plain), "Pass a model without open files, locks or streams.")
    if not any(value.is_meta for value in own.state_dict().values()):  # meta tensors cannot move; `check` tells
        own = own.to("cpu")
    own = own.eval()
    found, words = single(own)
    notes = (f"model: {words}; what ships computes in float32 or int8",) if words else ()
    return found.eval(), own if words else None, notes


def test_share(validation: Any) -> float | None:
    """Return which share of the test split serves for validation, where ``validation`` says so: 0.3 or "test:0.3".

    Raises:
        InputError: Another text, or a number that is no share.
    """
    if not isinstance(validation, (str, int, float)):
        return None
    remedy = "Pass data, or for a share of the test split 0.3 or 'test:0.3'."
    text = validation.removeprefix("test:") if isinstance(validation, str) else validation
    try:
        share = float(text) if not isinstance(validation, str) or validation.startswith("test:") else -1.0
    except ValueError:
        share = -1.0
    if isinstance(validation, bool) or not 0 < share < 1:
        raise must_be("validation", "data, or a share of the test split between 0 and 1", validation, remedy)
    return share


def _splits(read: Mapping[str, Any], share: float | None) -> dict[str, Split]:
    """Return the four splits; `share` of the test split serves for validation, if given."""
    test, validation = read["test"], read.get("validation")
    if share:
        held = min(max(3, round(share * len(test))), len(test) - 1)
        validation, test = test.part(0, held, name="validation"), test.part(held, name="test")
    shared = carved(read["train"], validation)
    calibration = read.get("calibration") or shared["train"].part(0, CALIBRATION_MOST, name="calibration")
    return {**shared, "calibration": calibration, "test": test}


def _taken(model: nn.Module, splits: dict[str, Split]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Leave out of several inputs by name what the model's forward has no argument for (an index, a text's length)."""
    try:
        inputs = splits["validation"].take(1).tensors()[0]
        takes = inspect.signature(model.forward).parameters
    except (
        InputError,
        ValueError,
        TypeError,
    ):  # unreadable data are told where they are used
        return splits, ()
    if not isinstance(inputs, Mapping) or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return splits, ()
    by_place, _ = arguments(inputs)
    unused = () if by_place else tuple(name for name in inputs if name not in takes)
    if not unused or len(unused) == len(inputs):
        return splits, ()
    notes = tuple(f"inputs: the model has no argument {name!r}; it is left out" for name in unused)
    return {role: replace(split, unused=unused) for role, split in splits.items()}, notes


def _one_output(model: nn.Module, data: Split, output: Key | None) -> tuple[nn.Module, Tensor | None, tuple[str, ...]]:
    """Run the model on two samples and reduce it to one output.

    What keeps it from running is told by `check`, with everything else; None then stands for the answer.
    """
    try:
        with torch.inference_mode():
            answer = call(model, data.take(2).tensors()[0])
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's model and data may raise anything; `check` runs both again and tells it
        return (model, None, ()) if output is None else (Chosen(model, output).eval(), None, ())
    if isinstance(answer, Tensor):
        if output is not None:
            raise must_be("output", "left out for a model that gives one tensor", output, "Leave it out.")
        return model, answer, ()
    wanted = usual(answer) if output is None else output
    if wanted is None:
        return model, None, ()
    chosen = part(answer, wanted)
    notes = () if output is not None else (f"model: it gives {described(answer)}; {wanted!r} is judged (output=... chooses)",)
    return Chosen(model, wanted).eval(), chosen if isinstance(chosen, Tensor) else None, notes


@dataclass(frozen=True)
class Judged:
    """How outputs are compared with targets: splits, metric and loss that fit one another."""

    splits: dict[str, Split]
    metric: Metric
    loss: Loss
    classifier: bool
    notes: tuple[str, ...]


def judge(
    metric: Metric,
    asked: str | Loss,
    loss: Loss,
    splits: dict[str, Split],
    answers: Tensor | None,
    ignore_label: int | None,
) -> Judged:
    """Decide whether targets are classes or values, and leave out what is not to be judged.

    Args:
        metric, loss: As read; `asked` is the loss as the user gave it.
        splits: All of them.
        answers: Outputs for two validation samples; None where the model could not be run.
        ignore_label: A target that is not judged, or None.
    """
    notes: tuple[str, ...] = ()
    by_metric, by_loss = metric.labels, labels.asked_by_loss(asked)
    decided = by_metric if by_metric is not None else by_loss
    targets = labels.some(splits["validation"], answers, few=decided is not None)
    judged = targets if ignore_label is None else targets[targets != ignore_label]
    whole = decided if decided is not None else labels.looks_like_labels(answers, targets, judged)
    if targets.is_floating_point() and by_metric and isinstance(asked, str) and by_loss is not False:
        if labels.whole_numbers(answers, judged):
            splits = {role: replace(split, values=False) for role, split in splits.items()}
            notes = ("targets: whole numbers given as floats are taken as classes",)
    elif not targets.is_floating_point() and (by_loss is False or (not whole and not yes_or_no(judged))):
        splits = {role: replace(split, values=True) for role, split in splits.items()}
    if ignore_label is not None:
        metric = labels.masked_metric(metric, ignore_label)
        loss = ignoring_loss(loss, ignore_label) if isinstance(asked, str) else loss
    return Judged(splits, metric, loss, whole and labels.exclusive(answers, targets), notes)


def together(makers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return what each maker gives, by name; the input errors of all of them are raised as one."""
    made: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, make in makers.items():
        try:
            made[name] = make()
        except InputError as error:
            mistakes.append(str(error))
    if mistakes:
        raise InputError("\n".join(mistakes))
    return made


def readers(
    given: Mapping[str, Any],
    *,
    metric: str | Metric | Quality | Score,
    maximize: bool,
    loss: str | Loss,
    transform: Transform | None,
    seed: int,
) -> dict[str, Callable[[], Any]]:
    """Return makers of the splits in `given` (role -> data; an optional one may be None), of ``metric`` and of ``loss``."""

    def split(role: str, data: Any) -> Callable[[], Split]:
        return lambda: Split.of(data, name=role, transform=transform, keep=role != "train", seed=seed)

    splits = {role: split(role, data) for role, data in given.items() if role in ("train", "test") or data is not None}
    return {**splits, "metric": lambda: metric_of(metric, maximize=maximize), "loss": lambda: loss_of(loss)}


def carved(train: Split, validation: Split | None) -> dict[str, Split]:
    """Return ``train`` and ``validation``; where the second is None it is the head of the training data's fixed shuffle."""
    if validation is None:
        held = min(len(train) // VALIDATION_SHARE, VALIDATION_MOST)
        validation, train = train.part(0, held, name="validation"), train.part(held, name="train")
    return {"train": train, "validation": validation}
