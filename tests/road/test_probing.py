"""What the search is offered when tables are incomplete, on tables made by hand."""

from __future__ import annotations

import pytest
from equipoise.road.sensitivity import Layer, choices, completed, entry, variants, work_of
from equipoise.road.tables import _probe, offered

from equipoise.road import sensitivity
from equipoise.road.probing import Loss
from equipoise.runtimes.ops import OpSpec
from equipoise.search import Knob, Space, loss_table

SPACE = Space(
    (
        Knob("runtime", ("onnxruntime", "openvino")),
        Knob("width.a", (64, 48, 32, 24, 16)),
        Knob("width.b", (16, 8)),
        Knob("depth.block", ("keep", "drop")),
        Knob("bits.a", (32, 8)),
        Knob("bits.b", (32, 8)),
    ),
    {("depth.block", "drop"): ("width.b", "bits.b")},
)


def test_the_most_telling_entries_come_first() -> None:
    order = choices(SPACE, {"a": 10.0, "b": 500.0, "block.c": 90.0}, {"a": ("a",), "b": ("b", "a")})
    names = [(k.name, c) for k, c in order]
    assert names == [
        ("bits.b", 8), ("depth.block", "drop"), ("width.b", 8),  # the heaviest of each kind
        ("width.a", 32), ("bits.a", 8),  # the other middles, by what they weigh
        ("width.a", 16),  # ends
        ("width.a", 48), ("width.a", 24),  # between
    ]  # fmt: skip
    assert len(set(names)) == sum(len(k.menu) - 1 for k in SPACE.knobs if k.kind != "runtime")


def test_a_failed_choice_leaves_its_menu_and_the_rest_stays() -> None:
    read = {("width.a", 32): 0.1, ("width.b", 8): 0.2, ("depth.block", "drop"): 0.3, ("bits.b", 8): 0.05}
    space, known = offered(SPACE, read, {("width.a", 16): "it crashed", ("bits.a", 8): "it crashed"})
    menus = {k.name: k.menu for k in space.knobs}
    assert menus["width.a"] == (64, 48, 32, 24)
    assert menus["bits.a"] == (32,)
    assert menus["bits.b"] == (32, 8)
    assert menus["runtime"] == ("onnxruntime", "openvino")
    table = loss_table(space, known)
    assert table.predict(space.untouched) == 0.0
    assert table.predict(space.untouched.but({"width.a": 32})) == pytest.approx(0.1)


def test_what_found_no_time_is_predicted_from_its_kind() -> None:
    space, known = offered(SPACE, {("width.a", 32): 0.1, ("bits.a", 8): 0.05}, {})
    assert known["bits.b", 8] == pytest.approx(0.05)
    assert known["width.b", 8] == pytest.approx(0.1)  # half taken away, as of a
    assert {k.name: k.menu for k in space.knobs}["depth.block"] == ("keep",)  # nothing is known of any block
    loss_table(space, known)


def test_with_nothing_read_there_is_one_plan_of_each_runtime() -> None:
    space, known = offered(SPACE, {}, {})
    assert space.size == 2
    loss_table(space, known)


TRUTH = {"width.a": 0.4, "width.b": 0.1, "depth.block": 0.2, "bits.a": 0.01, "bits.b": 0.01}


class Recording:
    """Stands for a road whose steps take a second each, and for its prober: every estimate is three times too low."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.bench = None
        self.rows: dict[tuple[str, str], dict] = {}
        self.most = 256

    def expected(self, _fidelity: str) -> float:
        return 1.0

    def tell(self, *_words: str) -> None: ...

    def step(self, kind, key, compute, **_rest) -> dict:
        self.rows[kind, key] = {**compute(), "seconds": 1.0}
        self.spent_s += 1.0
        return self.rows[kind, key]

    def loss(self, change, samples) -> Loss:
        knob, choice = change
        return Loss(TRUTH[knob.name] * (1 - int(choice) / 64 if knob.nested else 1), 0.02, samples)

    def estimate(self, changes) -> dict:
        return {key: Loss(self.loss(change, 0).mean / 3, 0.0, 0) for key, change in changes.items()}


@pytest.fixture
def recording(monkeypatch) -> Recording:
    road = Recording()
    monkeypatch.setattr(sensitivity, "prober", lambda _bench: road)
    monkeypatch.setattr(sensitivity, "change_of", lambda _bench, _prober, knob, choice: (knob, choice))
    return road


TODO = [(knob, choice) for knob in SPACE.knobs[1:] for choice in knob.menu[1:]]


def test_where_time_is_ample_only_what_cannot_be_told_apart_is_read_again(recording) -> None:
    losses, failed, seconds = _probe(recording, TODO, 1000.0)
    assert losses.keys() == {(knob.name, choice) for knob, choice in TODO}
    assert not failed
    assert seconds == len(TODO)
    again = {key.partition("@")[0] for kind, key in recording.rows if kind == "table" and "@" in key}
    assert again
    assert "bits.a=8" in again  # as bad as bits.b
    assert "width.a=16" not in again  # far from every other
    assert not any(kind == "guess" for kind, _ in recording.rows)


def test_what_found_no_time_is_estimated_on_the_scale_of_what_was_read(recording) -> None:
    losses, _, seconds = _probe(recording, TODO, 7.0)
    read = [key for kind, key in recording.rows if kind == "table"]
    assert 0 < len(read) < len(TODO)
    guesses = {(name, choice): loss for name, choice, loss, _ in recording.rows["guess", str(len(read))]["estimated"]}
    assert guesses
    for (name, choice), loss in guesses.items():
        assert f"{name}={choice}" not in read
        knob = next(k for k in SPACE.knobs if k.name == name)
        assert loss == pytest.approx(recording.loss((knob, choice), 0).mean, rel=0.2)
        assert losses[name, choice] == loss
    assert recording.spent_s <= 8.0
    assert seconds == len(TODO)


A, B = OpSpec("conv", 3, 16, height=8, width=8), OpSpec("conv", 16, 4, height=8, width=8)
LAYERS = (
    Layer(A, "a", 48, -1, 0, 2, (), (1.0,), (1.0, 0.5)),
    Layer(B, "b", 64, 0, -1, 3, (), (1.0, 0.5), (1.0,)),
)


def test_operators_that_were_not_timed_are_predicted_from_their_work() -> None:
    timed = {entry(A, 32): 48.0}
    found = completed(timed, LAYERS, (32, 8))
    assert set(found) == {entry(spec, bits) for spec in variants(LAYERS) for bits in (32, 8)}
    assert found[entry(A, 32)] == 48.0
    assert found[entry(OpSpec("conv", 3, 8, height=8, width=8), 32)] == pytest.approx(24.0)
    assert found[entry(B, 32)] == pytest.approx(48.0 * work_of(B) / work_of(A))
    assert all(seconds > 0 for seconds in completed({}, LAYERS, (32, 8)).values())


def test_a_depthwise_layer_is_narrowed_on_both_sides_and_a_grouped_one_by_whole_groups() -> None:
    deep = Layer(OpSpec("conv", 16, 16, groups=16), "d", 1, 0, -1, -1, (), (1.0, 0.5), (1.0,))
    assert [(s.cin, s.cout, s.groups) for s in deep.narrower_in] == [(8, 8, 8)]
    grouped = Layer(OpSpec("conv", 24, 16, groups=4), "g", 1, 0, -1, -1, (), (1.0, 0.4), (1.0,))
    assert [(s.cin, s.cout, s.groups) for s in grouped.narrower_in] == [(8, 16, 4)]
