"""What must be kept: a model, its data and how its quality is read."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
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
        mistakes: list[str] = []

        def tried(make: Callable[[], Any]) -> Any:
            try:
                return make()
            except InputError as error:
                mistakes.append(str(error))
                return None

        def split(data: Any, role: str) -> Any:
            return tried(lambda: Split.of(data, name=role, transform=transform, keep=role != "train", seed=seed))

        module = tried(lambda: _model_of(model))
        given = {role: split(data, role) for role, data in (("train", train), ("test", test))}
        optional = (("validation", validation), ("calibration", calibration))
        given |= {role: None if data is None else split(data, role) for role, data in optional}
        measure = tried(lambda: metric_of(metric, maximize=maximize))
        criterion = tried(lambda: loss_of(loss))
        if mistakes:
            raise InputError("\n".join(mistakes))
        values = {
            "name": name or type(module).__name__,
            "model": module,
            **_shared_out(given),
            "metric": measure,
            "loss": criterion,
            "augment": augment,
            "claimed_quality": claimed_quality,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

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
            _add(found, key, value)
        for role in ("train", "validation", "calibration"):
            part: Split = getattr(self, role)
            inputs, targets = part.take(32).tensors()
            _add(found, f"{role} {len(part)}", inputs)
            _add(found, role, targets)
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


def _shared_out(given: dict[str, Any]) -> dict[str, Split]:
    """Fill in the validation and calibration splits from the training data."""
    train: Split = given["train"]
    validation: Split | None = given["validation"]
    if validation is None:
        held = min(len(train) // VALIDATION_SHARE, VALIDATION_MOST)
        validation, train = train.part(0, held, name="validation"), train.part(held, name="train")
    calibration = given["calibration"] or train.part(0, CALIBRATION_MOST, name="calibration")
    return {"train": train, "validation": validation, "calibration": calibration, "test": given["test"]}


def _add(found: hashlib._Hash, key: str, value: Tensor) -> None:
    found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
    if not value.is_meta:
        found.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
