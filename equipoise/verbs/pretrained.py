"""A pruned model of Hugging Face's library in its own layout: built anew from a configuration that says the new widths.

Which numbers of a configuration set which widths is not known here, only tried: a configuration counts when the architecture
builds the very shapes from it, and with the weights gives the very answers. What no configuration can say (other widths in
every layer, half of BERT's heads) is told.
"""

from __future__ import annotations

import contextlib
import copy
import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped
from equipoise.compress.trace import tensors

NEAR = 1e-4
"""Largest difference of two answers that are the same, as a share of the largest answer."""
TRIES = 200
"""Most configurations that are tried; one is built, without weights, in some 10 ms."""

Shapes = Mapping[str, tuple[int, ...]]


def is_pretrained(model: Any) -> bool:
    """Return whether a model writes itself with its configuration, as those of ``transformers`` do."""
    return callable(getattr(model, "save_pretrained", None)) and callable(
        getattr(getattr(model, "config", None), "to_dict", None)
    )


def rebuilt(small: nn.Module, model: nn.Module, example: Inputs) -> nn.Module | None:
    """Return `small` as the architecture of `model` builds it, for `save_pretrained`; None where no configuration says it.

    Args:
        small: `model` after it was cut; the configuration that it holds still is the model's.
        model: As it was.
        example: A batch (N, ...) on which the answers are compared.
    """
    wanted, before = _shapes(small), _shapes(model)
    if wanted == before:
        return small
    config: Any = copy.deepcopy(model.config)
    if any(key.endswith(".bias") and bool(small.get_parameter(key).any()) for key in wanted.keys() - before.keys()):
        for flag in [name for name, value in config.to_dict().items() if "bias" in name and value is False]:
            setattr(config, flag, True)
    choices = _choices(config, before, wanted)
    for found in _agreeing(type(model), config, choices, wanted):
        for trial in (found, *_steps(found, choices)):  # a number may leave the shapes as they are, and change the answers
            same = trial is found or _missing(type(model), trial, wanted) == 0
            if same and (done := _filled(type(model), trial, small, example)) is not None:
                return done.train(small.training)
    return None


def _agreeing(kind: Any, config: Any, choices: Mapping[str, list[int]], wanted: Shapes) -> Iterator[Any]:
    """Yield configurations that give the shapes wanted, the nearest first: each step on the way makes fewer shapes wrong."""
    order = itertools.count()
    known = {str(config.to_dict())}
    waiting = [(found, next(order), config)] if (found := _missing(kind, config, wanted)) is not None else []
    while waiting and len(known) < TRIES:
        missing, _, at = heapq.heappop(waiting)
        if not missing:
            yield at
            continue
        for trial in _steps(at, choices):
            fewer = None if str(trial.to_dict()) in known else _missing(kind, trial, wanted)
            known.add(str(trial.to_dict()))
            if fewer is not None and fewer < missing:
                heapq.heappush(waiting, (fewer, next(order), trial))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _choices(config: Any, before: Shapes, wanted: Shapes) -> dict[str, list[int]]:
    """Return, by name, what each number of a configuration may have become: it shrank as some extent of the weights did."""
    pairs = {
        pair
        for name in before.keys() & wanted.keys()
        for turned in (wanted[name], wanted[name][::-1])
        if len(turned) == len(before[name])
        for pair in zip(before[name], turned, strict=True)
        if pair[1] < pair[0]
    }
    found = {}
    for name, value in config.to_dict().items():
        if value is None:  # where the architecture has a rule of its own for it
            found[name] = sorted({after for _, after in pairs})
        elif type(value) is int and value > 1:
            new = {value * after // old for old, after in pairs if old % value == 0 and value * after % old == 0}
            if new:
                found[name] = sorted(new)
    return found


def _steps(config: Any, choices: Mapping[str, list[int]]) -> Iterator[Any]:
    """Yield the configurations that differ in one number."""
    for name, values in choices.items():
        for value in values:
            if getattr(config, name, None) != value:
                trial = copy.deepcopy(config)
                with contextlib.suppress(Exception):  # a configuration may check itself
                    setattr(trial, name, value)
                    yield trial


def _missing(kind: Any, config: Any, wanted: Shapes) -> int | None:
    """Return how many tensors a configuration gives another shape; None where nothing can be built from it."""
    try:
        with torch.device("meta"):
            built = _shapes(kind(copy.deepcopy(config)))
    except Exception:  # noqa: BLE001 - somebody else's constructor refuses in its own ways
        return None
    same = (name in built and wanted[name] in (built[name], built[name][::-1]) for name in wanted if not name.endswith(".bias"))
    return sum(not each for each in same) + sum(not name.endswith(".bias") and name not in wanted for name in built)


def _filled(kind: Any, config: Any, small: nn.Module, example: Inputs) -> nn.Module | None:
    """Return the model of a configuration with the weights of `small`; None where it does not answer as that does."""
    with torch.random.fork_rng(devices=[]), contextlib.suppress(Exception):  # as above
        built: nn.Module = kind(copy.deepcopy(config)).eval()
        source, state = small.state_dict(), {}
        for name, value in built.state_dict().items():
            weight = source.get(name)
            weight = torch.zeros_like(value) if weight is None else weight
            state[name] = weight if weight.shape == value.shape else weight.T
        built.load_state_dict({name: value.clone() for name, value in state.items()})
        built = built.to(next(small.parameters()).dtype)
        with torch.no_grad():
            ours, theirs = (
                [*_floating(call(net, mapped(example, torch.clone)))] for net in (copy.deepcopy(small).eval(), built)
            )
        if len(ours) == len(theirs) and all(map(_near, ours, theirs)):
            return built
    return None


def _floating(answer: Any) -> Iterator[Tensor]:
    return (part for part in tensors(answer) if part.is_floating_point())


def _near(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= NEAR * ours.abs().max())
