"""Compression in steps: a little is taken, the model is trained, more is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from equipoise.compress.trace import copied
from equipoise.errors import must_be
from equipoise.units import is_whole

Train = Callable[[nn.Module], nn.Module | None]
"""Trains the model that it is given, in place or as a copy that it returns."""


def eased(done: float) -> float:
    """Return the share of the whole cut after the fraction `done` of the steps: much at first, when much is free.

    References:
        Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    return 1 - (1 - done) ** 3


def check_steps(steps: Any, train: Train | None) -> None:
    """Refuse a number of steps that means nothing.

    Raises:
        InputError: fewer than one, or several with nothing in between.
    """
    if not (is_whole(steps) and steps >= 1):
        raise must_be("steps", "a whole number of at least 1", steps, "Pass 1 to cut once.")
    if steps > 1 and train is None:
        raise must_be("train", "given where there are several steps", None, "Pass a function that trains, or steps=1.")


def trained(train: Train, model: nn.Module) -> nn.Module:
    """Return what `train` made of a copy of the model: the same layers with other weights.

    Raises:
        InputError: it gave something else.
    """
    shapes = {name: value.shape for name, value in model.named_parameters()}
    given = copied(model)
    found = train(given)
    made = given if found is None else found
    if not isinstance(made, nn.Module) or {n: v.shape for n, v in made.named_parameters()} != shapes:
        got = type(made).__name__
        raise must_be("train", "a function that returns the model it is given, trained, or None", got, "Keep its layers.")
    return copied(made).eval()
