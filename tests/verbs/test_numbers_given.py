"""A number of the wrong kind is one clear error, whichever technique it is given to; and no technique draws random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def net() -> nn.Module:
    torch.manual_seed(0)
    flat = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), *flat)


def early(model: nn.Module, **given: Any) -> Any:
    return eq.early_exit(model, X, **{"dev": (X, LABELS), "after": "1", **given})


CALLS: dict[str, tuple[Callable[[nn.Module, Any], Any], tuple[Any, ...]]] = {
    "ratio must be": (lambda model, given: eq.prune(model, X, ratio=given), ("0.5", True, [0.5])),
    "round_to must be": (lambda model, given: eq.prune(model, X, ratio=0.5, round_to=given), ("8", 2.5)),
    "rate must be": (lambda model, given: eq.sparsify(model, X, rate=given), ("0.5", True)),
    "threshold must be": (lambda model, given: eq.sparsify(model, X, threshold=given), ("0.5",)),
    "rank must be": (lambda model, given: eq.factorize(model, X, rank=given), (0.5, "8", True, 0)),
    "energy must be": (lambda model, given: eq.factorize(model, X, energy=given), ("0.5", True)),
    r"ranks?\['2'\] must be": (lambda model, given: eq.factorize(model, X, rank={"2": given}), (2.5, "8", (8.0, 8), (8,))),
    "clusters must be": (lambda model, given: eq.share(model, X, clusters=given), (2.5, "16", True)),
    "scheme must be": (lambda model, given: eq.quantize(model, X, scheme=given), ({"2": 8}, [8], 3.0)),
    "steps must be": (lambda model, given: eq.distill(model, model, X, steps=given), ("200", 2.5)),
    "steps must be a": (lambda model, given: eq.prune(model, X, ratio=0.5, steps=given), (1.5, True)),
    "recipe.lr must be": (lambda model, given: eq.distill(model, model, X, steps=2, lr=given), ("1e-3", -1)),
    r"widths\['0'\] must be": (lambda model, given: eq.prune(model, X, widths={"0": given}), (8.5, 0, 33, "8")),
    "drop must be": (lambda model, given: early(model, drop=given), ("a", -1, True)),
    "dev must be": (lambda model, given: early(model, dev=given), (X, (X,), (X, None), None, (None, LABELS))),
    "after must be": (lambda model, given: early(model, after=given), ("6", "", "x")),
    "seconds must be": (lambda model, given: eq.distill(model, model, X, seconds=given), ("3",)),
}


@pytest.mark.parametrize(("told", "given"), [(told, given) for told, (_, rows) in CALLS.items() for given in rows])
def test_a_number_of_the_wrong_kind_is_told(told: str, given: Any) -> None:
    with pytest.raises(InputError, match=told):
        CALLS[told][0](net(), given)


LISTS: dict[str, Callable[..., Any]] = {
    "layers": lambda model, given: eq.sparsify(model, X, rate=0.5, layers=given),
    "layers ": lambda model, given: eq.factorize(model, X, ratio=0.5, layers=given),
    " layers": lambda model, given: eq.share(model, X, layers=given),
    "blocks": lambda model, given: eq.prune(model, X, blocks=given),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("given", ["2", [], 2.5])
def test_a_list_of_names_is_one(name: str, given: Any) -> None:
    with pytest.raises(InputError, match=f"{name.strip()} must be"):
        LISTS[name](net(), given)


TAKING: dict[str, Callable[..., Any]] = {
    "prune": lambda model, x: eq.prune(model, X, ratio=0.5, data=x),
    "sparsify": lambda model, x: eq.sparsify(model, X, rate=0.5, data=x),
    "factorize": lambda model, x: eq.factorize(model, X, ratio=0.5, data=x),
    "share": lambda model, x: eq.share(model, X, data=x),
    "early_exit": lambda model, x: early(model, dev=(x, LABELS)),
}


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("x", [torch.randn(20, 4, 8, 8), torch.zeros(20, 3, 8, 8, dtype=torch.long), {"x": X}, "x"])
def test_inputs_that_the_model_does_not_take_are_told(name: str, x: Any) -> None:
    with pytest.raises(InputError, match=r"(data|dev\[0\]) must be"):
        TAKING[name](net(), x)


def test_what_left_all_as_it_was_says_so() -> None:
    with pytest.warns(UserWarning, match="no layer has the k×k kernel"):
        eq.factorize(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.randn(8, 64), ratio=0.5, form="tucker")
    with pytest.warns(UserWarning, match="nothing was quantized"):
        eq.quantize(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), X, float_layers=["0"])


@pytest.mark.parametrize("rank", [8, {"2": 8}])
def test_a_whole_number_of_numpys_is_one(rank: Any) -> None:
    theirs = {name: np.int64(r) for name, r in rank.items()} if isinstance(rank, dict) else np.int64(rank)
    ours, found = (eq.factorize(net(), X, rank=each).state_dict() for each in (rank, theirs))
    assert all(torch.equal(value, found[name]) for name, value in ours.items())


@pytest.mark.parametrize("how", [{"rank": 8}, {"ratio": 0.5}, {"rank": {"2": (8, 8)}}])
def test_thin_layers_draw_nothing_from_the_global_generator(how: dict[str, Any]) -> None:
    model = net()
    before = torch.random.get_rng_state()
    eq.factorize(model, X, **how)
    assert torch.equal(torch.random.get_rng_state(), before)
