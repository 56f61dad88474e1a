"""A model's answer in training mode, found by what it answers in evaluation mode.

Many models return more while they train: auxiliary heads, a second token, a map for each depth, a dict with a loss. Some cannot
be called without targets then. What is to be trained is what will ship: the answer of evaluation mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped
from equipoise.errors import must_be
from equipoise.training.randomness import private

Mode = Literal["train", "layers", "eval"]
Path = tuple[Any, ...]

SAME = 1e-3
"""Two answers are one where they differ by less than this share of the largest number."""

NOTES: dict[Mode, str] = {
    "layers": "the model is run as in evaluation, with its layers in training mode (dropout on, BatchNorm learning)",
    "eval": "the model is trained in evaluation mode (dropout off, BatchNorm fixed)",
}


@dataclass(frozen=True)
class Answer:
    """Where a model's answer is found while it trains.

    Attributes:
        mode: ``train``: in training mode. ``layers``: only the layers are, what holds them runs as in evaluation. ``eval``.
        paths: Keys and numbers that lead to the answer in what is returned; of several the mean is the answer.
        note: What the user should know; empty for a model that returns one tensor in both modes.
    """

    mode: Mode = "train"
    paths: tuple[Path, ...] = ((),)
    note: str = ""

    @property
    def plain(self) -> bool:
        """Whether the model is simply called."""
        return self.mode == "train" and self.paths == ((),)

    def of(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Run `model`, which is in training mode, and return its answer."""
        if self.plain:
            found: Tensor = call(model, inputs)
            return found
        with switched(model, self.mode):
            returned = call(model, inputs)
        parts = [at(returned, path) for path in self.paths]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def answer_of(model: nn.Module, inputs: Inputs) -> Answer:
    """Return where the answer of `model` is found in training mode; it is tried on copies with a few `inputs` (N, ...).

    Raises:
        InputError: No tensor is returned in evaluation mode.
    """
    trial = copy.deepcopy(model)
    device = next((p.device for p in trial.parameters()), torch.device("cpu"))
    inputs = mapped(inputs, lambda value: value.to(device))
    with private(device), torch.no_grad():
        returned = call(trial.eval(), inputs)
        tensors = list(leaves(returned))
        if not tensors:
            raise must_be("model output", "a tensor, or tensors in a tuple, list or dict", type(returned).__name__, "Wrap it.")
        first, wanted = tensors[0]
        try:
            found = _in_training(trial, inputs, wanted)
            why = "in training mode it returns nothing like its answer in evaluation mode"
        except Exception as error:  # noqa: BLE001 - the user's forward, which may want targets; told in the note
            found, why = (
                None,
                f"in training mode it raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )
        if found is not None:
            return found
        mode: Mode = "layers"
        try:
            with switched(trial.train(), mode):
                call(trial, inputs)
        except Exception:  # noqa: BLE001 - as above
            mode = "eval"
    return Answer(mode, (first,), f"{NOTES[mode]}: {why}")


def _in_training(trial: nn.Module, inputs: Inputs, wanted: Tensor) -> Answer | None:
    """Find the answer in what training mode returns; the layers stay in evaluation mode, so that the same numbers come out."""
    trial.train()
    _layers(trial, training=False)
    runs = [list(leaves(call(trial, inputs))) for _ in range(2)]
    _layers(trial, training=True)
    call(trial, inputs)  # as it will be called
    likely = [(path, tensor) for path, tensor in runs[0] if tensor.shape == wanted.shape]
    if not likely:
        return None
    apart = [_apart(tensor, wanted) for _, tensor in likely]
    closest = likely[apart.index(min(apart))][0]
    if min(apart) > SAME:
        if len(likely) > 1 and _apart(torch.stack([tensor for _, tensor in likely]).mean(0), wanted) <= SAME:
            paths = tuple(path for path, _ in likely)
            return Answer(
                "train", paths, f"in training mode the model returns {len(runs[0])} tensors; its answer is their mean"
            )
        if _repeats(runs[0], runs[1]):  # not noise: training mode computes something else
            return None
    if closest == () and len(runs[0]) == 1:
        return Answer()
    where = "".join(f"[{step!r}]" for step in closest)
    return Answer("train", (closest,), f"in training mode the model returns {len(runs[0])} tensors; {where} is trained")


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) if a.numel() else 0.0


def _repeats(a: list[tuple[Path, Tensor]], b: list[tuple[Path, Tensor]]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True))


def _layers(model: nn.Module, *, training: bool) -> None:
    """Put the modules that hold no others into one mode."""
    for module in model.modules():
        if next(module.children(), None) is None:
            module.training = training


@contextmanager
def switched(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Run in `mode`; every module's own mode is put back on leaving."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            if mode == "eval" or (mode == "layers" and next(module.children(), None) is not None):
                module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def leaves(returned: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield every tensor in what a model returned, with the keys and numbers that lead to it."""
    if isinstance(returned, Tensor):
        yield path, returned
    elif isinstance(returned, Mapping):
        for key, value in returned.items():
            yield from leaves(value, (*path, key))
    elif isinstance(returned, (tuple, list)):
        for i, value in enumerate(returned):
            yield from leaves(value, (*path, i))
    elif hasattr(returned, "__dataclass_fields__"):
        for key in returned.__dataclass_fields__:
            yield from leaves(getattr(returned, key), (*path, key))


def at(returned: Any, path: Path) -> Tensor:
    """Return the tensor at `path`."""
    for step in path:
        named = hasattr(returned, "__dataclass_fields__") and not isinstance(returned, Mapping)
        returned = getattr(returned, step) if named else returned[step]
    found: Tensor = returned
    return found


def first_of(returned: Any) -> Any:
    """Return the first tensor in what a model returned; what holds none unchanged."""
    return next((tensor for _, tensor in leaves(returned)), returned)
