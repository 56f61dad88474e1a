"""Whole heads are cut, found by what depends on what; a wrong map of heads is not believed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from many_inputs import Encoder, sentences
from torch import Tensor, nn

from equipoise.compress import graph
from equipoise.compress.coupling import Cut, Group, keeping
from equipoise.compress.cut import sliced
from equipoise.compress.graph import groups
from equipoise.compress.prune import prune
from equipoise.compress.subject import Subject
from equipoise.compress.width import Width

WIDTH, HEADS, EACH = 24, 4, 6


class Attention(nn.Module):
    """Heads in the order of `made`: queries, keys and values of several layers or of one, their number remembered or not."""

    def __init__(self, made: str) -> None:
        super().__init__()
        self.made, self.heads, self.each = made, HEADS, EACH
        shared = 2 if made == "grouped" else HEADS
        if made in ("fused", "interleaved"):
            self.qkv = nn.Linear(WIDTH, 3 * HEADS * EACH)
        else:
            self.query = nn.Linear(WIDTH, HEADS * EACH)
            self.key, self.value = nn.Linear(WIDTH, shared * EACH), nn.Linear(WIDTH, shared * EACH)
        self.merge, self.head = nn.Linear(HEADS * EACH, WIDTH), nn.Linear(WIDTH, 3)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, _ = x.shape
        if self.made == "fused":
            return self.qkv(x).view(n, length, 3, self.heads, self.each).permute(2, 0, 3, 1, 4).unbind(0)
        if self.made == "interleaved":  # of each head its query, key and value lie together
            return self.qkv(x).view(n, length, -1, 3 * self.each).transpose(1, 2).chunk(3, -1)
        if self.made == "remembered":
            split = [layer(x).unflatten(2, (self.heads, -1)) for layer in (self.query, self.key, self.value)]
        elif self.made == "strided":  # a head takes every fourth row: no block of rows is a head's
            split = [layer(x).view(n, length, self.each, -1).transpose(2, 3) for layer in (self.query, self.key, self.value)]
        else:
            split = [layer(x).view(n, length, -1, self.each) for layer in (self.query, self.key, self.value)]
        query, key, value = (part.transpose(1, 2) for part in split)
        times = query.shape[1] // key.shape[1]
        return query, key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)
        scores = (query @ key.transpose(2, 3) / math.sqrt(self.each)).softmax(-1)
        seen = (scores @ value).transpose(1, 2)
        if self.made == "strided":
            seen = seen.transpose(2, 3)
        return self.head(torch.tanh(x + self.merge(seen.flatten(2))).mean(1))


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Attention(kind).eval(), torch.randn(40, 7, WIDTH)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def attending(found: tuple[Group, ...]) -> list[Group]:
    return [group for group in found if "merge" in group.consumers]


@pytest.mark.parametrize(("kind", "units"), [("plain", 4), ("remembered", 4), ("fused", 4), ("interleaved", 4), ("grouped", 2)])
def test_heads_are_cut_whole_in_any_pattern(kind: str, units: int) -> None:
    model, x = made(kind)
    (group,) = attending(groups(model, x[:2]))
    assert (group.size, group.prunable) == (units, True), group.reason
    before = answer(model, x)
    for kept in ([0], [units - 1], [*range(1, units)]):
        smaller = sliced(model, keeping(model, [group], {group.name: kept}))
        silent = copy.deepcopy(model)
        each = HEADS * EACH // units
        gone = [place for unit in range(units) if unit not in kept for place in range(unit * each, (unit + 1) * each)]
        with torch.no_grad():
            silent.get_submodule("merge").weight[:, gone] = 0.0  # type: ignore[index]
        torch.testing.assert_close(answer(smaller, x), answer(silent, x), atol=1e-5, rtol=1e-4)
        assert float((answer(smaller, x) - before).abs().max()) > 1e-3
        assert smaller.get_submodule("merge").in_features == each * len(kept)


def test_a_number_of_heads_is_changed_only_where_code_remembers_it() -> None:
    numbers = {kind: {cut.axis for cut in attending(groups(*made(kind)))[0].cuts} for kind in ("plain", "remembered")}
    assert numbers == {"plain": {"in", "out"}, "remembered": {"in", "out", "heads"}}


def test_heads_in_strides_are_left_whole_and_say_why() -> None:
    model, x = made("strided")
    found = [group for group in groups(model, x[:2]) if "merge" in group.consumers or group.name == "query"]
    assert found
    assert not any(group.prunable for group in found)
    assert all(group.reason for group in found)


def rows_of(unit: int) -> tuple[int, ...]:
    return tuple(range(unit * EACH, (unit + 1) * EACH))


def wrong(change: str) -> Callable[..., list[tuple[tuple[Cut, ...], ...]]]:
    """A finder that makes a mistake."""
    right = tuple(rows_of(unit) for unit in range(HEADS))
    turned = (*right[1:], right[0])
    strided = tuple(tuple(range(unit, HEADS * EACH, HEADS)) for unit in range(HEADS))
    key = {"key of the next head": turned, "strides": strided, "nothing": right}[change]
    value = strided if change == "strides" else right
    cuts = [Cut("query", "out", right if change != "strides" else strided), Cut("key", "out", key), Cut("value", "out", value)]
    reader = Cut("merge", "in", right if change != "strides" else strided)
    return lambda *_: [((*cuts, reader),)]


@pytest.mark.parametrize(("change", "believed"), [("nothing", True), ("key of the next head", False), ("strides", False)])
def test_a_wrong_map_of_heads_is_caught(monkeypatch: pytest.MonkeyPatch, change: str, believed: bool) -> None:
    model, x = made("plain")
    monkeypatch.setattr(graph, "attention", wrong(change))
    (group,) = attending(groups(model, x[:2]))
    assert group.prunable is believed, group.reason
    if not believed:
        assert "places" in group.reason


def test_a_number_that_is_no_count_of_heads_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extent of a head is as many as there are heads here; changing it in place of them changes the function."""
    model, x = made("remembered")
    right = tuple(rows_of(unit) for unit in range(HEADS))
    cuts = [*(Cut(name, "out", right) for name in ("query", "key", "value")), Cut("merge", "in", right)]
    planted = Cut("", "each", ((0, 1), (2, 3), (4, 5), ()))
    monkeypatch.setattr(graph, "attention", lambda *_: [(tuple(cuts), (*cuts, planted))])
    (group,) = attending(groups(model, x[:2]))
    assert not group.prunable


def test_offers_of_heads_are_whole_heads_of_any_number() -> None:
    inputs, _ = sentences(96, seed=1)
    subject = Subject.prepare(_Logits(), {name: value[:2] for name, value in inputs.items()}, inputs)
    menus = {offer.place: offer.menu for offer in Width().offers(subject) if not offer.refused}
    assert menus["net.layers.0.query"] == (4, 3, 2, 1)
    assert menus["net.layers.0.widen"] == (64, 48, 32, 24, 16)
    assert sorted(subject.orders["net.layers.0.query"]) == [0, 1, 2, 3]


class _Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Encoder(width=32, heads=4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.net(input_ids, attention_mask).logits


def test_the_head_that_matters_stays_and_repair_mends() -> None:
    model, x = made("plain")
    with torch.no_grad():
        for unit in (0, 1, 3):
            model.get_submodule("merge").weight[:, list(rows_of(unit))] *= 0.05  # type: ignore[index]
    wanted = answer(model, x)

    def off(net: nn.Module) -> float:
        return float(F.mse_loss(answer(net, x), wanted))

    asked = {"widths": {"query": 1}, "round_to": 1}
    best = prune(model, x[:2], data=x, criterion="obs", repair=False, **asked)  # type: ignore[arg-type]
    torch.testing.assert_close(best.get_submodule("query").weight, model.get_submodule("query").weight[list(rows_of(2))])
    group = attending(groups(model, x[:2]))
    others = [off(sliced(model, keeping(model, group, {"query": [unit]}))) for unit in (0, 1, 3)]
    assert off(best) < min(others)
    assert off(prune(model, x[:2], data=x, criterion="obs", **asked)) < off(best)  # type: ignore[arg-type]
