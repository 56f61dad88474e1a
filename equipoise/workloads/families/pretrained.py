"""A model that was trained before as a family: its last layer gives way to one with as many outputs as the task has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.errors import must_be
from equipoise.workloads.families.base import KINDS, Family
from equipoise.workloads.image_files import Normalize
from equipoise.workloads.outputs import reduced
from equipoise.workloads.sources import attempt
from equipoise.workloads.task import Shape

LOGITS = "Let it return the logits: what its last linear layer gives, without a softmax."


def pretrained(model: nn.Module, *, name: str = "") -> Family:
    """Return the family of `model` with a last layer for each task; it has no dimensions.

    Args:
        model: Left as it is. Where it has a ``pretrained_cfg``, as those of timm have, its images are normalised and sized as
            that says.
        name: For tables; empty takes its class.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1000))
        >>> pretrained(net).model({}, Shape((8,), 3), generator=torch.Generator())[-1]
        Linear(in_features=5, out_features=3, bias=True)
    """
    return Family(
        name or type(model).__name__,
        (),
        build=lambda _, shape: _with_outputs(model, shape),
        kinds=KINDS,
        cost=lambda _: 1.0,
        growth={},
        dense=None,
        pretrained=True,
        frozen_first=True,
        **seen(getattr(model, "pretrained_cfg", None) or {}),
    )


def seen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Family` that say how its images were normalised and sized, from a configuration of timm's form.

    Example:
        >>> seen({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 224, 200)})["side"]
        224
    """
    if not config.get("mean") or not config.get("std"):
        return {}
    normal = Normalize(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))
    size = config.get("input_size") or ()
    return {"normalize": normal, "side": max(map(int, size[1:]), default=None)}


def head_of(model: nn.Module, inputs: Inputs) -> str:
    """Return the name of the linear layer whose output is the answer of `model`.

    Args:
        inputs: A small batch (N, ...).
    Raises:
        InputError: None is.
    """
    given: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        given[name] = output

    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    handles = [part.register_forward_hook(partial(keep, name)) for name, part in layers.items()]
    trained = model.training
    try:
        with torch.no_grad():
            answer = call(model.eval(), inputs)
    finally:
        model.train(trained)
        for handle in handles:
            handle.remove()
    same = [name for name, output in given.items() if isinstance(answer, Tensor) and torch.equal(output, answer)]
    if not same:
        raise must_be("model", "one that answers by a linear layer", type(model).__name__, LOGITS)
    return same[-1]


def _with_outputs(model: nn.Module, shape: Shape) -> nn.Module:
    """Return a copy of `model` with as many outputs as `shape` says."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, *shape.sample, generator=generator)
    if shape.vocabulary is not None:
        example = torch.randint(shape.vocabulary, (2, *shape.sample), generator=generator)
    made = copy.deepcopy(model).eval()
    remedy = f"It was given inputs {tuple(example.shape)}; ?size= sets that of images."
    with torch.no_grad():
        made = reduced(made, attempt("model", lambda: made(example), remedy))
    name = head_of(made, example)
    head: Any = made.get_submodule(name)
    if head.out_features != shape.outputs:
        made.set_submodule(name, nn.Linear(head.in_features, shape.outputs, bias=head.bias is not None))
    return made.train(model.training)
