"""What must be kept: a model, its data and how its quality is read."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.errors import InputError, must_be
from equipoise.workloads.augment import Augment
from equipoise.workloads.data import Split, Transform, predict
from equipoise.workloads.metrics import Loss, Metric, Score, loss_of, metric_of

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
        metric: Quality and its direction.
        loss: (outputs, targets) -> scalar tensor.
        augment: (inputs, generator) -> inputs, random changes for training; or None.
        claimed_quality: What the user says that the model reaches, in points; `check` looks at it. Or None.

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

    def __init__(
        self,
        *,
        model: nn.Module | Callable[[], nn.Module],
        train: Any,
        test: Any,
        metric: str | Metric | Score = "accuracy",
        validation: Any = None,
        calibration: Any = None,
        loss: str | Loss = "natural",
        augment: Augment | None = None,
        transform: Transform | None = None,
        maximize: bool = True,
        claimed_quality: float | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        """Take what the user has; every mistake in it is reported together.

        Args:
            model: The trained model, or a function of nothing that builds it.
            train, test: Anything that `Split.of` takes: ``(inputs, targets)``, a dataset, a DataLoader, an iterable of batches.
            metric: ``accuracy``, ``f1``, ``mse``, ``mae``, a `Metric`, or a function of (outputs, targets).
            validation, calibration: As `train`; None takes them from it by a fixed shuffle.
            loss: ``natural`` (cross entropy for labels, squared error for values), a name, or a function.
            augment: Random changes of a batch of training inputs.
            transform: Applied to each batch of inputs of every split (normalisation).
            maximize: Direction of a metric given as a function.
            claimed_quality: Quality that the model is said to have, in points.
            name: None takes the class name of the model.
            seed: Of the fixed shuffles.
        Raises:
            InputError: Anything above in a form that cannot be used.
        """
        given = {"train": train, "test": test, "validation": validation, "calibration": calibration}
        rest = readers(given, metric=metric, maximize=maximize, loss=loss, transform=transform, seed=seed)
        read = together({"model": lambda: _model_of(model), **rest})
        shared = carved(read["train"], read.get("validation"))
        calibrating = read.get("calibration") or shared["train"].part(0, CALIBRATION_MOST, name="calibration")
        values = {
            "name": name or type(read["model"]).__name__,
            "model": read["model"],
            **shared,
            "calibration": calibrating,
            "test": read["test"],
            "metric": read["metric"],
            "loss": read["loss"],
            "augment": augment,
            "claimed_quality": claimed_quality,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(part)} {part.name}" for part in (self.train, self.validation, self.test))
        params = sum(value.numel() for value in self.model.parameters() if not nn.parameter.is_lazy(value))
        return f"Workload({self.name}: {type(self.model).__name__} of {params:,} params; {sizes} samples; {self.metric.name})"

    @cached_property
    def example(self) -> Tensor:
        """A small batch (2, ...) as the model takes it, for tracing and export."""
        inputs, _ = self.validation.take(2).tensors()
        return inputs

    @cached_property
    def classifier(self) -> bool:
        """Whether the targets are labels (the outputs are logits) rather than numbers."""
        _, targets = self.validation.take(2).tensors()
        return not targets.is_floating_point()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the weights, the structure of the model, the data or the metric.

        The data enter by their sizes and by 32 samples of each split but the test split, which enters by its size alone.
        """
        found = hashlib.sha256(f"{self.name} {self.metric.name} {self.metric.maximize}".encode())
        found.update(re.sub(r"0x[0-9a-f]+", "", repr(self.model)).encode())  # addresses differ from run to run
        for key, value in sorted(self.model.state_dict().items()):
            add_tensor(found, key, value)
        for role in ("train", "validation", "calibration"):
            add_split(found, role, getattr(self, role))
        found.update(f"test {len(self.test)}".encode())
        return found.hexdigest()[:16]

    def quality(self, run: Callable[[Tensor], Any] | None = None, *, split: Split | None = None, batch: int = 256) -> float:
        """Return the metric of `run` (None: the model) on `split` (None: validation), in points."""
        return self.metric.score(*predict(run or self.model, split or self.validation, batch=batch))


def _model_of(model: Any) -> nn.Module:
    """Return a private copy on the CPU in evaluation mode."""
    if not isinstance(model, nn.Module):
        if isinstance(model, type) or not callable(model):
            raise must_be("model", "a torch.nn.Module or a function that builds one", model, "Pass the trained model itself.")
        built = model()
        if not isinstance(built, nn.Module):
            raise must_be("the model builder's result", "a torch.nn.Module", type(built).__name__, "Return the trained model.")
        model = built
    copied: nn.Module = copy.deepcopy(model)
    if not any(value.is_meta for value in copied.state_dict().values()):  # meta tensors cannot move; `check` tells
        copied = copied.to("cpu")
    return copied.eval()


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
    metric: str | Metric | Score,
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


def add_split(found: hashlib._Hash, role: str, part: Split) -> None:
    """Add a split's size and its first 32 samples to a hash."""
    inputs, targets = part.take(32).tensors()
    add_tensor(found, f"{role} {len(part)}", inputs)
    add_tensor(found, role, targets)


def add_tensor(found: hashlib._Hash, key: str, value: Tensor) -> None:
    """Add a tensor's name, type, shape and bytes to a hash."""
    found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    if not value.is_meta:
        found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
