"""Norms of other people's making are known by their answers; with them the stream of a transformer has a width to choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.compress import graph
from equipoise.compress.coupling import Cut, keeping
from equipoise.compress.cut import sliced
from equipoise.compress.graph import groups
from equipoise.compress.norms import norm_form

WIDTH = 16


class Layer(nn.LayerNorm):
    """As timm's: a class of its own, and the same numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Root(nn.Module):
    """As Llama's and T5's; `twist` makes it something else, seen or unseen on usual inputs."""

    def __init__(self, width: int, twist: str = "") -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.twist = nn.Parameter(1 + 0.3 * torch.randn(width)), 1e-6, twist

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().mean(-1, keepdim=True)
        if self.twist == "half of them":
            size = x[..., ::2].square().mean(-1, keepdim=True)
        if self.twist == "held":
            size = size.clamp_min(1e-3)
        if self.twist == "turned":
            x = x.flip(-1)
        return self.weight * (x * torch.rsqrt(size + self.variance_epsilon))


class Stream(nn.Module):
    """A place for each token, a class token, two blocks and their norms; the code remembers the width."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.width, self.read = WIDTH, nn.Linear(6, WIDTH)
        self.place, self.first = nn.Parameter(torch.randn(1, 5, WIDTH)), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norms = nn.ModuleList([norm(WIDTH) for _ in range(3)])
        self.wide = nn.ModuleList([nn.Linear(WIDTH, 24) for _ in range(2)])
        self.back = nn.ModuleList([nn.Linear(24, WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x).reshape(x.shape[0], -1, self.width)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.place
        for norm, wide, back in zip(self.norms, self.wide, self.back, strict=False):
            x = x + back(torch.relu(wide(norm(x))))
        return self.head(self.norms[2](x).mean(1))  # type: ignore[no-any-return]


def made(norm: Any = nn.LayerNorm) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream(norm).eval(), torch.randn(8, 4, 6)


@pytest.mark.parametrize(("norm", "form"), [(Layer, nn.LayerNorm), (Root, nn.RMSNorm)])
def test_what_answers_as_a_norm_becomes_one(norm: Any, form: type[nn.Module]) -> None:
    model, x = made(norm)
    with torch.no_grad():
        wanted = model(x)
        found: Any = norm_form(model, x)
        torch.testing.assert_close(found(x), wanted)
    assert all(type(part) is form for part in found.norms)


@pytest.mark.parametrize("twist", ["half of them", "held", "turned"])
def test_what_answers_otherwise_stays(twist: str) -> None:
    model, x = made(lambda width: Root(width, twist))
    assert all(type(part) is Root for part in norm_form(model, x).norms)  # type: ignore[union-attr]


@pytest.mark.parametrize("norm", [nn.LayerNorm, Layer, Root])
def test_the_stream_is_cut_with_its_places_its_norms_and_what_the_code_remembers(norm: Any) -> None:
    model, x = made(norm)
    model = norm_form(model, x)
    (group,) = [group for group in groups(model, x) if group.name == "read"]
    assert (group.size, group.prunable) == (WIDTH, True), group.reason
    own = {(cut.layer, cut.axis) for cut in group.cuts}
    assert own > {("", "place:2"), ("", "first:2"), ("", "width"), ("norms.2", "out"), ("head", "in"), ("back.1", "out")}
    kept = [0, 2, 3, 7, 8, 11, 15]
    small: Any = sliced(model, keeping(model, [group], {"read": kept}))
    assert (small.width, tuple(small.place.shape), small.norms[1].normalized_shape) == (7, (1, 5, 7), (7,))
    other: Any = Stream(nn.RMSNorm if norm is Root else nn.LayerNorm).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            for axis in [axis for axis, extent in enumerate(value.shape) if extent == WIDTH]:
                value = value.index_select(axis, torch.tensor(kept))
            holder, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(holder), leaf, nn.Parameter(value))
        other.width = 7
        for part in other.norms:
            part.normalized_shape = (7,)
            part.eps = model.norms[0].eps  # type: ignore[union-attr, index]
        torch.testing.assert_close(small(x), other(x))


@pytest.mark.parametrize("change", ["nothing", "place turned", "place left out", "width left out"])
def test_a_wrong_map_of_the_stream_is_caught(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model, x = made()
    (group,) = [group for group in groups(model, x) if group.name == "read"]
    cuts = []
    for cut in group.cuts:
        if cut.axis == "place:2" and change == "place turned":
            cut = Cut(cut.layer, cut.axis, (*cut.positions[1:], cut.positions[0]))
        if (cut.axis, change) not in (("place:2", "place left out"), ("width", "width left out")):
            cuts.append(cut)
    monkeypatch.setattr(graph, "candidates", lambda *_: [(tuple(cuts), "")])
    monkeypatch.setattr(graph, "_telling", lambda *_: [])
    (found,) = [group for group in groups(model, x) if group.name == "read"]
    assert found.prunable == (change == "nothing"), found.reason


class Tied(nn.Module):
    """As T5's encoder: words under two names, of which one is never called; or both are."""

    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.shared, self.words, self.both = nn.Embedding(20, WIDTH), nn.Embedding(20, WIDTH), both
        self.words.weight = self.shared.weight
        self.mix, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.words(x) + (self.shared(x.flip(1)) if self.both else 0.0)
        return self.head(self.norm(found + self.mix(torch.tanh(found))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("both", [False, True])
def test_a_weight_that_two_layers_hold_goes_from_both_and_stays_one(both: bool) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 20, (4, 6))
    model = Tied(both=both).eval()
    (group,) = [group for group in groups(model, x) if {"words", "shared"} & set(group.producers)]
    assert group.prunable, group.reason
    small: Any = sliced(model, keeping(model, [group], {group.name: range(0, WIDTH, 2)}))
    assert small.words.weight is small.shared.weight
    assert tuple(small.words.weight.shape) == (20, WIDTH // 2)
    small(x)


class Gained(Root):
    """With a parameter that does nothing yet."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.alpha)


class Masked(Root):
    """Takes a mask by name."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found = super().forward(x)
        return found if mask is None else found * mask


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Masked(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, mask=None)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [nn.Sequential(Gained(WIDTH)), Asks()])
def test_a_norm_that_holds_or_takes_more_stays_what_it_is(model: nn.Module) -> None:
    kinds = [type(part) for part in model.modules()]
    found = norm_form(model.eval(), torch.randn(4, WIDTH))
    assert [type(part) for part in found.modules()] == kinds
    assert found(torch.randn(4, WIDTH)).shape == (4, WIDTH)
