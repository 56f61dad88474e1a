"""What has a place for each head goes with the heads: tables, gains, and where layers share them the heads of all of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equipoise.compress import graph
from equipoise.compress.coupling import Cut, Group, keeping
from equipoise.compress.cut import axis_size, sliced
from equipoise.compress.graph import groups
from equipoise.compress.subject import Subject
from equipoise.compress.width import Width

WIDTH, HEADS, EACH, LENGTH = 24, 4, 6, 7
OWN = ("table", "transposed", "gain", "made", "grouped")


class Attention(nn.Module):
    """Scores to which a bias is added or a gain applied, of its own or handed on."""

    def __init__(self, kind: str, *, first: bool) -> None:
        super().__init__()
        self.kind, self.first = kind, first
        shared = 2 if kind == "grouped" else HEADS
        self.query = nn.Linear(WIDTH, HEADS * EACH)
        self.key, self.value = nn.Linear(WIDTH, shared * EACH), nn.Linear(WIDTH, shared * EACH)
        self.merge = nn.Linear(HEADS * EACH, WIDTH)
        if kind in ("table", "grouped"):
            self.table = nn.Parameter(torch.randn(2 * LENGTH - 1, HEADS))
        if kind == "transposed":
            self.table = nn.Parameter(torch.randn(HEADS, 2 * LENGTH - 1))
        if kind == "gain":
            self.gain = nn.Parameter(1 + torch.rand(HEADS, 1, 1))
        if kind == "made":
            self.maker = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, HEADS))
        if kind == "handed on" and first:
            self.embedding = nn.Embedding(2 * LENGTH - 1, HEADS)
        if kind == "zeros":
            self.heads = HEADS

    def bias(self, length: int) -> Tensor | float:
        places = torch.arange(length)
        index = places[None] - places[:, None] + LENGTH - 1
        if self.kind in ("table", "grouped"):
            return self.table[index].permute(2, 0, 1)
        if self.kind == "transposed":
            return self.table[:, index]
        if self.kind == "made":
            return self.maker(torch.arange(2.0 * LENGTH - 1)[:, None] / LENGTH)[index].permute(2, 0, 1)  # type: ignore[no-any-return]
        if self.kind == "handed on":
            return self.embedding(index).permute(2, 0, 1)[None]  # type: ignore[no-any-return]
        return torch.zeros(1, self.heads, length, length) if self.kind == "zeros" else 0.0

    def forward(self, x: Tensor, bias: Tensor | float | None) -> tuple[Tensor, Tensor | float]:
        split = (layer(x).view(*x.shape[:2], -1, EACH).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = split
        times = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(times, 1).transpose(2, 3) / math.sqrt(EACH)
        bias = self.bias(x.shape[1]) if bias is None else bias
        scores = scores * self.gain if self.kind == "gain" else scores + bias
        seen = scores.softmax(-1) @ value.repeat_interleave(times, 1)
        return x + self.merge(seen.transpose(1, 2).flatten(2)), bias


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.shared = kind in ("handed on", "zeros")
        self.layers = nn.ModuleList([Attention(kind, first=place == 0) for place in range(2)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = None
        for layer in self.layers:
            x, given = layer(x, bias)
            bias = given if self.shared else None
        return self.head(torch.tanh(x).mean(1))  # type: ignore[no-any-return]


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Net(kind).eval(), torch.randn(40, LENGTH, WIDTH)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def attending(model: nn.Module, x: Tensor) -> list[Group]:
    return [
        group for group in groups(model, x[:2]) if "layers.0.merge" in group.consumers or "layers.1.merge" in group.consumers
    ]


@pytest.mark.parametrize("kind", [*OWN, "handed on", "zeros"])
def test_what_has_a_place_for_each_head_goes_with_it(kind: str) -> None:
    model, x = made(kind)
    found = attending(model, x)
    assert [group.size for group in found] == ([2, 2] if kind == "grouped" else [4, 4] if kind in OWN else [4])
    assert all(group.prunable for group in found), [group.reason for group in found]
    assert all(group.places == EACH for group in found), "a bias has one place for a head, the head has more"
    before = answer(model, x)
    for turn in range(2):
        kept = {group.name: [[0], [0, *range(2, group.size)]][(turn + place) % 2] for place, group in enumerate(found)}
        keep = keeping(model, found, kept)
        smaller, silent = sliced(model, keep), copy.deepcopy(model)
        for (name, axis), places in keep.items():
            if axis == "in":
                gone = [place for place in range(HEADS * EACH) if place not in places]
                with torch.no_grad():
                    silent.get_submodule(name).weight[:, gone] = 0.0  # type: ignore[index]
            assert axis_size(smaller.get_submodule(name), axis) == len(places)
        torch.testing.assert_close(answer(smaller, x), answer(silent, x), atol=1e-5, rtol=1e-4)
        assert float((answer(smaller, x) - before).abs().max()) > 1e-3
        assert all(
            parameter.shape != whole.shape
            for (name, parameter), whole in zip(smaller.named_parameters(), model.parameters(), strict=True)
            if name.rpartition(".")[2] in ("table", "gain")
        )


def test_whole_heads_are_offered_however_narrow_their_bias() -> None:
    model, x = made("handed on")
    subject = Subject.prepare(model, x[:2], x)
    menus = {offer.place: (offer.menu, offer.layers) for offer in Width().offers(subject) if not offer.refused}
    menu, layers = menus["layers.0.query"]
    assert menu == (4, 3, 2, 1)
    assert {"layers.0.embedding", "layers.1.value", "layers.1.merge"} <= set(layers)


def heads_of(layer: int, *, beside: Cut | None) -> tuple[Cut, ...]:
    right = tuple(tuple(range(unit * EACH, (unit + 1) * EACH)) for unit in range(HEADS))
    own = [Cut(f"layers.{layer}.{name}", "out", right) for name in ("query", "key", "value")]
    return (*own, Cut(f"layers.{layer}.merge", "in", right), *([] if beside is None else [beside]))


def planted(change: str, kind: str) -> Callable[..., list[tuple[tuple[Cut, ...], ...]]]:
    """A finder that knows the heads, and makes a mistake with what lies beside them."""
    turned = [(1,), (2,), (3,), (0,)]
    places = tuple(turned if change == "columns of other heads" else [(head,) for head in range(HEADS)])
    if kind == "table":
        left = change == "left out"
        each = [None if left else Cut(f"layers.{layer}", "table:1", places) for layer in range(2)]
        return lambda *_: [(heads_of(layer, beside=each[layer]),) for layer in range(2)]
    table = None if change == "left out" else Cut("layers.0.embedding", "out", places, beside=True)
    first, second = heads_of(0, beside=table), heads_of(1, beside=None)
    return lambda *_: [(first,), (second,)] if change == "apart" else [((*first, *second),)]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("table", "nothing"),
        ("table", "columns of other heads"),
        ("table", "left out"),
        ("handed on", "nothing"),
        ("handed on", "columns of other heads"),
        ("handed on", "left out"),
        ("handed on", "apart"),
    ],
)
def test_a_wrong_map_of_biases_is_caught(monkeypatch: pytest.MonkeyPatch, kind: str, change: str) -> None:
    model, x = made(kind)
    monkeypatch.setattr(graph, "attention", planted(change, kind))
    found = attending(model, x)
    assert [group.prunable for group in found] == [change == "nothing"] * len(found), [group.reason for group in found]


def test_layers_whose_next_head_is_another_in_each_are_not_cut_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's heads in another order: right for each layer alone, wrong for the bias that they share."""
    model, x = made("handed on")
    first = heads_of(0, beside=Cut("layers.0.embedding", "out", ((0,), (1,), (2,), (3,)), beside=True))
    second = [Cut(cut.layer, cut.axis, (*cut.positions[1:], cut.positions[0])) for cut in heads_of(1, beside=None)]
    monkeypatch.setattr(graph, "attention", lambda *_: [((*first, *second),)])
    (group,) = attending(model, x)
    assert not group.prunable
    assert "places" in group.reason


def test_slopes_that_follow_from_the_number_of_heads_keep_it() -> None:
    """ALiBi: which slope a head has depends on how many there are, and no tensor holds it."""

    class Sloped(Attention):
        def bias(self, length: int) -> Tensor | float:
            slopes = 2.0 ** -torch.arange(1.0, self.heads + 1)
            return slopes[:, None, None] * torch.arange(float(length))

    model, x = made("zeros")
    for place in range(2):
        model.layers[place].__class__ = Sloped  # type: ignore[index, union-attr]
    found = attending(model, x)
    assert found
    assert not any(group.prunable for group in found)


def test_slopes_that_a_buffer_holds_go_with_their_heads() -> None:
    class Held(Attention):
        def bias(self, length: int) -> Tensor | float:
            return self.slopes * torch.arange(float(length)) + self.far[:length]

    model, x = made("table")
    for layer in model.layers:  # type: ignore[union-attr]
        layer.__class__ = Held
        layer.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1)[:, None, None])
        layer.register_buffer("far", torch.randn(HEADS * EACH))  # as long as the heads are wide, and nothing of theirs
    found = attending(model, x)
    assert [group.prunable for group in found] == [False, False], "both are taken for the heads', or none of them"
    for layer in model.layers:  # type: ignore[union-attr]
        layer.far = torch.randn(LENGTH)
    found = attending(model, x)
    assert [group.prunable for group in found] == [True, True], [group.reason for group in found]
    cut = sliced(model, keeping(model, found[:1], {found[0].name: [1, 3]}))
    torch.testing.assert_close(cut.layers[0].slopes.flatten(), torch.tensor([0.25, 0.0625]))  # type: ignore[index, union-attr]
