"""What a model offers on its targets: knobs, what they act on, what makes them do nothing, and a study held to its space."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.builder import Builder
from equipoise.compress.subject import Subject
from equipoise.errors import InputError
from equipoise.ops import Op
from equipoise.records import as_data
from equipoise.road.bench import Workbench
from equipoise.road.facts import TARGET, Facts, facts_from
from equipoise.road.features import Features, completed
from equipoise.road.here import Here
from equipoise.road.jobs import Job
from equipoise.road.survey import survey
from equipoise.runtimes import Target
from equipoise.search import Space
from equipoise.study.store import Store
from equipoise.techniques import TECHNIQUES
from equipoise.workloads import Workload

BOTH = (32, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Net(nn.Module):
    def __init__(self, wide: int = 16) -> None:
        super().__init__()
        self.stem, self.block, self.mid = nn.Conv2d(1, 16, 3, padding=1), Block(), nn.Conv2d(16, wide, 3)
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mid(self.block(self.stem(x)))).mean((2, 3)))


def net(wide: int = 16) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(wide).eval()


X = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def surveyed(**precisions: tuple[int, ...]) -> Facts:
    return survey(Builder(Subject.of_shapes(net(), X[:2], X[:20])), precisions)


@pytest.fixture(scope="module")
def one() -> Facts:
    return surveyed(ort=BOTH)


def test_knobs_come_with_the_layers_that_they_act_on(one: Facts) -> None:
    rows = {row.knob.name: row for row in one.offered}
    assert TARGET not in rows
    assert rows["width.block.one"].knob.menu == (24, 16, 8)
    assert rows["width.block.one"].layers == ("block.one", "block.two")
    assert rows["depth.block"].layers == ("block.one", "block.two")
    assert rows["bits.mid"].layers == ("mid",)
    assert [row.knob.kind for row in one.offered] == sorted((r.knob.kind for r in one.offered), key=list(TECHNIQUES).index)
    assert all(len(row.knob.menu) > 1 for row in one.offered)


def test_what_each_knob_makes_of_each_layer_is_an_operator(one: Facts) -> None:
    layers = {layer.name: layer for layer in one.layers}
    assert list(layers) == ["stem", "block.one", "block.two", "mid", "head"]
    acts = {act.knob: act for act in layers["block.two"].acts}
    whole = layers["block.two"].op
    assert (whole.cin, whole.cout) == (24, 16)
    assert acts["depth.block"].of("drop") == ()
    assert acts["depth.block"].of("keep") == (whole,)
    assert [op.cin for choice in (24, 16, 8) for op in acts["width.block.one"].of(choice)] == [24, 16, 8]
    assert layers["block.two"].bits == "bits.block.two"
    assert "bits.block.two" not in acts  # another precision is another time, not another operator
    assert layers["head"].params == 16 * 3 + 3
    assert isinstance(layers["head"].op, Op)


def counted(facts: Facts, space: Space, genomes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return Features(space, facts.layers, completed({}, facts.layers, BOTH), BOTH).params(genomes)[:, 1]


def test_what_several_knobs_leave_of_a_layer_together_is_known() -> None:
    """Ranks go in steps, so of a narrowed layer two halves hold a larger share of the weights, or it stays whole."""
    builder = Builder(Subject.of_shapes(net(48), X[:2], X[:20]))
    facts = survey(builder, {"ort": BOTH})
    space = facts.space
    genomes = space.sample(np.random.default_rng(0), n=60)
    held = [sum(p.numel() for p in builder.build(space.decode(row), repair=False).model.parameters()) for row in genomes]
    assert counted(facts, space, genomes) / held == pytest.approx(1, abs=0.03)
    alone = tuple(replace(x, acts=tuple(replace(act, given=(), factors=()) for act in x.acts)) for x in facts.layers)
    assert np.abs(counted(replace(facts, layers=alone), space, genomes) / held - 1).max() > 0.1  # a product is not enough

    less = space.restrict({"width.block.one": [24], "rank.block.two": [100, 25]})
    same = less.sample(np.random.default_rng(1), n=20)
    there = space.encode_all([space.untouched.but(dict(less.decode(row).choices)) for row in same])
    assert counted(facts, less, same) == pytest.approx(counted(facts, space, there))  # menus that lost choices
    assert facts_from(json.loads(json.dumps(as_data(facts)))) == facts


def test_what_is_left_whole_says_why(one: Facts) -> None:
    assert one.left_whole
    assert all(one.left_whole.values())
    assert not set(one.left_whole) & {row.knob.place for row in one.offered if row.knob.kind == "width"}


def test_knobs_inside_a_dropped_block_do_nothing(one: Facts) -> None:
    (gone,) = [names for knob, choice, names in one.moot if (knob, choice) == ("depth.block", "drop")]
    assert {"width.block.one", "bits.block.one", "bits.block.two"} <= set(gone)
    assert "bits.mid" not in gone
    space = one.space
    inside = space.untouched.but({"depth.block": "drop", "width.block.one": 8, "bits.block.two": 8})
    assert space.decode(space.encode(inside)) == space.untouched.but({"depth.block": "drop"})
    outside = space.untouched.but({"depth.block": "drop", "bits.mid": 8})
    assert space.decode(space.encode(outside)) == outside


def test_on_a_target_without_int8_precisions_do_nothing() -> None:
    found = surveyed(ort=BOTH, eager=(32,))
    assert found.offered[0].knob.menu == ("ort", "eager")
    bits = {row.knob.name for row in found.offered if row.knob.kind == "bits"}
    assert len(bits) == 5
    assert {name for target, name, _ in found.absent if target == "eager"} == bits
    assert not any(target == "ort" for target, *_ in found.absent)
    space = found.space
    quantized = space.untouched.but({TARGET: "eager", "bits.mid": 8})
    assert space.decode(space.encode(quantized)) == space.untouched.but({TARGET: "eager"})


def test_where_no_target_has_int8_it_is_not_offered() -> None:
    found = surveyed(eager=(32,))
    assert {"width", "depth"} <= {row.knob.kind for row in found.offered} <= set(TECHNIQUES) - {"bits"}
    assert all(layer.bits == "" for layer in found.layers)
    assert not found.absent


def test_a_scheme_that_one_target_lacks_is_no_choice_there() -> None:
    found = facts_from(as_data(surveyed(ort=(32, "8-weights", 8), vino=BOTH)))
    space = found.space
    mixed = space.untouched.but({"bits.head": "8-weights", "bits.block.one": 8})
    assert space.decode(space.encode(mixed)) == mixed
    there = mixed.but({TARGET: "vino"})
    assert space.decode(space.encode(there)) == there.but({"bits.head": 32})


def test_a_model_with_nothing_to_change_is_refused() -> None:
    subject = Subject.of_shapes(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), X[:2], X[:20])
    with pytest.raises(InputError, match="must offer something to change"):
        survey(Builder(subject), {"eager": (32,)})
    assert survey(Builder(subject), {"ort": BOTH}).space.size == 2


def test_a_study_is_not_resumed_in_another_space(tmp_path) -> None:
    """The weights need not tell: targets, menus and what is refused may come to differ with the version."""
    y = (X.mean((1, 2, 3)) > 0).long()

    def executor(store: Store, wide: int, *targets: str) -> Here:
        work = Workload(model=net(wide), train=(X[:80], y[:80]), test=(X[80:], y[80:]))
        bench = Workbench(work, tuple(map(Target.parse, targets)), store.blob, shapes=True)
        maker: Any = SimpleNamespace(facts=lambda: bench.facts)
        return Here(store, bench, maker, dict)

    with Store.open(tmp_path / "study") as store:
        first = executor(store, 16, "onnxruntime")
        facts = first.run(Job("prepare", "0"))["facts"]
        assert [row["knob"]["name"] for row in facts["offered"]] == list(first.bench.facts.space.positions)
        assert executor(store, 16, "onnxruntime").maker.facts() == first.maker.facts()
        with pytest.raises(InputError) as refused:
            _ = executor(store, 32, "onnxruntime").maker
        said = str(refused.value)
        assert "width.mid" in said
        assert "width.block.one" not in said
        with pytest.raises(InputError, match=TARGET):
            _ = executor(store, 16, "onnxruntime", "onnxruntime?threads=2").maker
