"""The user's own family: a function of dimensions or of a scale, in Python or by its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.workloads import Dimension, Family, Scale, Shape, family, load_family
from equipoise.workloads.models import mlp

SHAPE = Shape((4,), 3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_dimensions_are_read_off_the_defaults() -> None:
    def net(*, width: int = 64, depth: int = 2, slope: float = 0.5) -> nn.Module:
        assert isinstance(width, int)
        assert slope == 0.5
        return mlp(4, *[width] * depth, 3)

    own = Family.of(net)
    assert own.name == "net"
    assert own.scale() == {"width": 64, "depth": 2, "slope": 0.5}
    assert own.dimensions[0].menu == (16, 32, 64, 128, 256)
    model = own.model({"width": 10}, SHAPE, generator=generator())
    assert sum(p.numel() for p in model.parameters()) == 4 * 10 + 10 + 110 + 33
    assert own.grow(4) == {"width": 128, "depth": 2, "slope": 0.5}
    again = own.model({"width": 10}, SHAPE, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="Did you mean 'width'"):
        own.scale(with_=3)


def test_shape_and_whole_scale() -> None:
    def shaped(shape: Shape, width: int = 8) -> nn.Module:
        return mlp(shape.sample[0], width, shape.outputs)

    def whole(scale: Scale) -> nn.Module:
        return mlp(4, int(scale["units"]), 3)

    def both(s: Scale, t: Shape) -> nn.Module:
        return mlp(t.sample[0], int(s["units"]), t.outputs)

    units = (Dimension("units", 8, (4, 8, 16), multiple=4),)
    assert Family.of(shaped).model({}, SHAPE, generator=generator())[2].out_features == 3
    for builder in (whole, both, lambda s: whole(s)):
        own = Family.of(builder, dimensions=units, name="own", cost=lambda scale: scale["units"])
        assert own.model({"units": 12}, SHAPE, generator=generator())[0].out_features == 12
        assert own.grow(2) == {"units": 16}


def test_builders_that_cannot_be_used() -> None:
    def two(a: Any, b: Any, c: Any, width: int = 3) -> nn.Module:
        raise AssertionError

    bad: list[tuple[Any, str]] = [
        (3, "a function of a scale; got 3"),
        (lambda: mlp(4, 3), "one with a dimension"),
        (lambda name="x", deep=True: mlp(4, 3), "one with a dimension"),
        (two, "a function of dimensions, a scale and a shape"),
    ]
    for builder, message in bad:
        with pytest.raises(InputError, match=message):
            Family.of(builder)

    def fails(width: int = 8) -> nn.Module:
        raise KeyError("missing")

    with pytest.raises(InputError, match=r"builder fails must run; it raised KeyError: 'missing'.*'width': 8"):
        Family.of(fails).model({}, SHAPE, generator=generator())
    with pytest.raises(InputError, match=r"one that returns a torch\.nn\.Module; got 'int'"):
        Family.of(lambda width=8: width).model({}, SHAPE, generator=generator())


OWN = """
import torch
from equipoise.workloads import Family, Dimension

def net(width=16, depth=1):
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))

def make_family():
    return Family.of(net, name="made")

def make_nothing():
    return 3

ready = Family.of(net, name="ready")
"""


def test_by_name(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(OWN)
    assert load_family(f"{file}:net").scale() == {"width": 16, "depth": 1}
    assert load_family(f"{file}:make_family").name == "made"
    assert load_family(f"{file}:ready").name == "ready"
    assert load_family("gpt") is family("gpt")
    for spec, message in (
        (f"{file}:make_nothing", "one that returns a Family or a trained model; got 'int'"),
        (f"{file}:nett", "Did you mean 'net'"),
        ("nets.py", "for example nets.py:make_family"),
        ("resnett", "Did you mean 'resnet'"),
    ):
        with pytest.raises(InputError, match=message):
            load_family(spec)


def test_a_family_grows_along_its_first_dimension_whatever_its_name() -> None:
    def net(channels: int = 64, slope: float = 0.5) -> nn.Module:
        return mlp(4, channels, channels, 3)

    def stack(depth: int = 4) -> nn.Module:
        return mlp(4, *[8] * depth, 3)

    own, deep = Family.of(net), Family.of(stack)
    assert own.grow(1) == {"channels": 64, "slope": 0.5}
    assert own.grow(4) == {"channels": 128, "slope": 0.5}
    assert deep.grow(2) == {"depth": 8}
