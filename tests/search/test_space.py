import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import Knob, Plan
from equipoise.search.space import Space, distinct


@pytest.fixture
def space():
    return Space(
        (
            Knob("width.layer1.0.conv1", (16, 8)),
            Knob("width.layer2.0.conv1", (32, 24, 16)),
            Knob("depth.layer1.0", ("keep", "drop")),
            Knob("runtime", ("onnxruntime", "openvino")),
        ),
        moot={("depth.layer1.0", "drop"): ("width.layer1.0.conv1",)},
    )


def test_every_genome_survives_a_round_trip(space):
    genomes = np.array(np.meshgrid(*[range(n) for n in space.sizes])).reshape(len(space.sizes), -1).T
    assert len(genomes) == space.size == 24
    plans = [space.decode(g) for g in genomes]
    assert len(set(plans)) == 18  # the 6 with a narrow conv in a dropped block are copies
    for genome, plan in zip(genomes, plans, strict=True):
        assert np.array_equal(space.encode(plan), space.canonical(genome[None])[0])


def test_untouched_is_index_zero_and_json_order_does_not_matter(space):
    assert np.array_equal(space.encode(space.untouched), np.zeros(4))
    plan = Plan(dict(reversed(space.untouched.choices.items())))
    assert space.encode(plan).tolist() == [0, 0, 0, 0]


def test_moot_knobs_are_held_untouched(space):
    plan = space.untouched.but({"depth.layer1.0": "drop", "width.layer1.0.conv1": 8})
    assert space.decode(space.encode(plan))["width.layer1.0.conv1"] == 16
    kept = space.untouched.but({"width.layer1.0.conv1": 8})
    assert space.decode(space.encode(kept)) == kept  # control: not moot while the block is there


def test_a_choice_that_a_target_lacks_is_the_untouched_one_there():
    ways = Knob("bits.a", (32, "8-dynamic", 8))
    lacks = {("runtime", "openvino"): {"bits.a": ("8-dynamic",)}}
    both = Space((Knob("runtime", ("onnxruntime", "openvino")), ways), absent=lacks)
    rows = np.array([[0, 1], [1, 1], [1, 2]])
    assert both.canonical(rows).tolist() == [[0, 1], [1, 0], [1, 2]]
    assert len({both.decode(row) for row in np.array([[t, b] for t in (0, 1) for b in (0, 1, 2)])}) == 5
    assert both.restrict({"bits.a": (32, 8)}).canonical(np.array([[1, 1]])).tolist() == [[1, 1]]
    with pytest.raises(InputError, match="4-weights"):
        Space(both.knobs, absent={("runtime", "openvino"): {"bits.a": ("4-weights",)}})


def test_distinct_rows_are_those_of_numpy():
    rows = np.random.default_rng(0).integers(0, 3, size=(200, 4))
    found = distinct(rows)
    assert {tuple(row) for row in found} == {tuple(row) for row in np.unique(rows, axis=0)}
    assert len(found) == len(np.unique(rows, axis=0)) < 200
    assert np.array_equal(found, distinct(rows[::-1]))


def test_all_mistakes_of_a_plan_are_told_together(space):
    with pytest.raises(InputError) as caught:
        space.check(Plan({"width.layer1.0.conv": 8, "width.layer2.0.conv1": 7, "depth.layer1.0": "keep"}))
    text = str(caught.value)
    assert "Did you mean 'width.layer1.0.conv1'" in text
    assert "[32, 24, 16]" in text
    assert "plan runtime must be chosen" in text
    space.check(space.untouched)


def test_samples_are_reproducible_in_range_and_canonical(space):
    first = space.sample(np.random.default_rng(3), n=200)
    assert np.array_equal(first, space.sample(np.random.default_rng(3), n=200))
    assert np.array_equal(first, space.canonical(first))
    assert len(np.unique(first, axis=0)) == 18
    for genome in first:
        space.check(space.decode(genome))


def test_neighbors_change_one_knob(space):
    near = list(space.neighbors(space.untouched))
    assert len(near) == sum(space.sizes - 1)
    for plan in near:
        assert sum(plan[k] != space.untouched[k] for k in plan.choices) == 1
    dropped = space.untouched.but({"depth.layer1.0": "drop"})
    assert len(list(space.neighbors(dropped))) == 2 + 1 + 1  # no width inside the dropped block


def test_restrict_keeps_order_and_moves_the_untouched(space):
    less = space.restrict({"width.layer2.0.conv1": [16, 32], "runtime": ["openvino"], "depth.layer1.0": ["keep"]})
    assert less.size == 2 * 2 * 1 * 1
    assert less.untouched["runtime"] == "openvino"
    assert less.knobs[1].menu == (32, 16)
    assert not less.moot
    with pytest.raises(InputError, match="one of"):
        space.restrict({"runtime": ["torch"]})
    with pytest.raises(InputError, match="knob"):
        space.restrict({"bits.fc": []})
    with pytest.raises(InputError, match="at least one"):
        space.restrict({"runtime": []})


@pytest.mark.parametrize(
    ("menu", "nested"), [((64, 48, 32), True), ((32, 8), True), ((32, 64), False), (("keep", "drop"), False), ((8, "x"), False)]
)
def test_nested_menus_are_integers_in_falling_order(menu, nested):
    assert Knob("width.a", menu).nested is nested


def test_kind_and_place():
    knob = Knob("width.layer1.0.conv1", (8,))
    assert (knob.kind, knob.place) == ("width", "layer1.0.conv1")
    assert (Knob("runtime", ("a",)).kind, Knob("runtime", ("a",)).place) == ("runtime", "")


def test_bad_spaces_are_refused():
    good = Knob("a", (1, 0))
    for build in (
        lambda: Knob("a", ()),
        lambda: Knob("a", (1, 1)),
        lambda: Space(()),
        lambda: Space((good, Knob("a", (2,)))),
        lambda: Space((good,), {("a", 0): ("b",)}),
        lambda: Space((good,), {("a", 5): ()}),
    ):
        with pytest.raises(InputError):
            build()


@pytest.mark.parametrize("genome", [[0, 0, 0], [0, 3, 0, 0], [0, 0, 0, -1]])
def test_bad_genomes_are_refused(space, genome):
    with pytest.raises(InputError, match="genome"):
        space.decode(np.array(genome))
