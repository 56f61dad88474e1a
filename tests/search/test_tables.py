import itertools
import math

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import Knob, Plan
from equipoise.search.space import Space
from equipoise.search.tables import EPSILON, PRIOR_INTERCEPT, TOGETHER, calibrate, isotonic, loss_table, to_measure

SPACE = Space(
    (
        Knob("width.a", (64, 48, 32, 16)),
        Knob("bits.a", (32, 8)),
        Knob("depth.b", ("keep", "drop")),
    ),
    moot={("depth.b", "drop"): ("bits.a",)},
)
MEASURED = {
    ("width.a", 48): 0.03,
    ("width.a", 32): 0.02,  # less than 48 by noise: the menu is nested, so they are pooled
    ("width.a", 16): 0.4,
    ("bits.a", 8): 0.001,
    ("depth.b", "drop"): 0.2,
}


def test_columns_are_floored_and_rising():
    table = loss_table(SPACE, MEASURED, errors=0.002)
    assert table.columns[0].tolist() == pytest.approx([0, 0.025, 0.025, 0.4])
    assert table.columns[1].tolist() == pytest.approx([0, 0.004])
    assert table.columns[2].tolist() == pytest.approx([0, 0.2])
    assert table.floor == 0.004
    per_entry = loss_table(SPACE, MEASURED, errors={("bits.a", 8): 0.01})
    assert per_entry.columns[1][1] == pytest.approx(0.02)


def test_sums_agree_with_adding_by_hand_over_the_whole_space():
    table = loss_table(SPACE, MEASURED, errors=0.002)
    for choices in itertools.product(*[k.menu for k in SPACE.knobs]):
        plan = Plan(dict(zip((k.name for k in SPACE.knobs), choices, strict=True)))
        parts = {
            "width.a": {64: 0, 48: 0.025, 32: 0.025, 16: 0.4},
            "bits.a": {32: 0, 8: 0.004},
            "depth.b": {"keep": 0, "drop": 0.2},
        }
        by_hand = sum(parts[k][c] for k, c in plan.choices.items())
        if plan["depth.b"] == "drop":
            by_hand -= parts["bits.a"][plan["bits.a"]]  # int8 inside a dropped block costs nothing
        assert table.predict(plan) == pytest.approx(by_hand)


def test_losses_that_push_the_same_way_add_to_more_and_those_against_each_other_to_less():
    same, across, against = np.array([2.0, 0.0]), np.array([0.0, 0.5]), np.array([-1.0, 0.0])
    plan, a, b = SPACE.untouched.but({"width.a": 16, "depth.b": "drop"}), 0.4, 0.2
    plain = loss_table(SPACE, MEASURED).predict(plan)
    assert plain == pytest.approx(a + b)
    for other, cosine in ((same, 1.0), (across, 0.0), (against, -1.0), (np.zeros(2), 0.0)):
        table = loss_table(SPACE, MEASURED, toward={("width.a", 16): same, ("depth.b", "drop"): other})
        assert table.predict(plan) == pytest.approx(a + b + TOGETHER * 2 * cosine * math.sqrt(a * b))
        assert table.predict(SPACE.untouched.but({"width.a": 16})) == pytest.approx(a)
        first, _, last = table.around(SPACE.encode(plan))
        assert first[3] == pytest.approx(table.predict(plan) - b)
        assert last[1] == pytest.approx(table.predict(plan) - a)
        assert first[0] == last[0] == 0


def test_an_angle_that_was_not_read_is_that_of_the_nearest_width_and_of_no_other_knob():
    toward = {("width.a", 16): np.array([1.0, 0.0]), ("bits.a", 8): np.array([1.0, 0.0])}
    table = loss_table(SPACE, MEASURED, toward=toward)
    both = table.predict(SPACE.untouched.but({"width.a": 48, "bits.a": 8}))
    assert both == pytest.approx(0.026 + TOGETHER * 2 * math.sqrt(0.025 * 0.001))
    assert table.predict(SPACE.untouched.but({"width.a": 48, "depth.b": "drop"})) == pytest.approx(0.225)


def test_shares_sum_to_one_and_name_the_choice():
    table = loss_table(SPACE, MEASURED)
    genomes = SPACE.encode_all([SPACE.untouched, SPACE.untouched.but({"width.a": 16, "depth.b": "drop"})])
    shares = table.shares(genomes)
    assert shares.shape == (2, 4 + 2 + 2)
    assert shares[0].sum() == 0
    assert shares[1, [3, 7]].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_choices_not_measured_are_interpolated_as_a_power():
    law = {("width.a", c): 0.8 * ((64 - c) / 64) ** 2 for c in (48, 32, 16)}
    others = {k: v for k, v in MEASURED.items() if k[0] != "width.a"}
    whole = loss_table(SPACE, {**law, **others}).columns[0]
    for kept in ([16], [48], [48, 16], [32]):
        part = {("width.a", c): law["width.a", c] for c in kept}
        assert loss_table(SPACE, {**part, **others}).columns[0].tolist() == pytest.approx(whole.tolist())
    cubic = {("width.a", c): ((64 - c) / 64) ** 3 for c in (48, 16)}
    assert loss_table(SPACE, {**cubic, **others}).columns[0][2] == pytest.approx(0.5**3)


def test_what_cannot_be_filled_or_is_not_a_number_is_refused():
    without_drop = {k: v for k, v in MEASURED.items() if k[0] != "depth.b"}
    with pytest.raises(InputError, match=r"depth\.b"):
        loss_table(SPACE, without_drop)
    without_width = {k: v for k, v in MEASURED.items() if k[0] != "width.a"}
    with pytest.raises(InputError, match=r"width\.a"):
        loss_table(SPACE, without_width)
    with pytest.raises(InputError, match="finite"):
        loss_table(SPACE, {**MEASURED, ("bits.a", 8): math.nan})
    with pytest.raises(InputError, match="one of"):
        loss_table(SPACE, {**MEASURED, ("width.a", 40): 0.1})


def test_what_to_measure_shrinks_to_what_can_be_afforded_and_always_fills_the_table():
    everything = to_measure(SPACE)
    assert everything == [(k.name, c) for k in SPACE.knobs for c in k.menu[1:]]
    assert to_measure(SPACE, most=5) == everything
    fewer = to_measure(SPACE, most=4)
    assert fewer == [("width.a", 32), ("width.a", 16), ("bits.a", 8), ("depth.b", "drop")]
    for most in range(6):
        pairs = to_measure(SPACE, most=most)
        assert len(pairs) <= max(most, 3)
        assert len(loss_table(SPACE, {pair: MEASURED[pair] for pair in pairs}).columns) == 3


def best_rising(values, grid):
    """Slow reference: the best rising sequence on a grid."""
    options = itertools.combinations_with_replacement(grid, len(values))
    return min(sum((v - o) ** 2 for v, o in zip(values, option, strict=True)) for option in options)


@pytest.mark.parametrize("values", [[3, 1, 2], [1, 2, 3], [3, 2, 1], [2, 2, 0, 5], [0, 4, 1, 3]])
def test_isotonic_is_the_nearest_rising_sequence(values):
    fitted = isotonic(np.array(values, dtype=float))
    assert np.all(np.diff(fitted) >= 0)
    error = float(np.sum((fitted - values) ** 2))
    reference = best_rising(values, np.arange(0, 5.001, 0.125))
    assert error <= reference + 1e-12
    running_maximum = np.maximum.accumulate(np.array(values, dtype=float))
    if np.any(np.diff(values) < 0):  # control: the cheap alternative is told apart
        assert float(np.sum((running_maximum - values) ** 2)) > error


def made_up(n, *, seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    sums = np.exp(rng.uniform(math.log(0.02), math.log(2), n))
    return sums, np.exp(-0.4 + 0.87 * np.log(sums + EPSILON) + rng.normal(0, noise, n)) - EPSILON


def test_calibration_recovers_a_planted_line():
    line = calibrate(*made_up(60))
    assert (line.a, line.b) == (pytest.approx(-0.4, abs=0.05), pytest.approx(0.87, abs=0.03))
    assert line.sd == pytest.approx(0.05, rel=0.4)
    sums, losses = made_up(60, seed=1)
    assert np.median(np.abs(np.log(line(sums) / losses))) < 0.06


def test_calibration_survives_outliers_that_break_least_squares():
    sums, losses = made_up(30)
    losses[np.argsort(sums)[-4:]] *= 8
    robust = calibrate(sums, losses)
    plain = np.polyfit(np.log(sums + EPSILON), np.log(losses + EPSILON), 1)
    assert abs(robust.b - 0.87) < 0.1 < abs(plain[0] - 0.87)


def test_calibration_with_few_plans_stays_near_its_prior():
    prior = calibrate([], [])
    assert (prior.a, prior.b, prior.n) == (PRIOR_INTERCEPT, 1.0, 0)
    one = calibrate([0.1], [0.3])  # one plan cannot turn the line
    assert 0.8 < one.b < 1.1
    assert one.sd == prior.sd
    assert prior(np.array([0.0, 0.1, 1.0])).tolist() == sorted(prior(np.array([0.0, 0.1, 1.0])))
    assert prior(np.array([0.0]))[0] == 0.0  # a plan that changes nothing loses nothing


@pytest.mark.parametrize(("sums", "losses"), [([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [math.inf]), ([-1.0], [1.0])])
def test_calibration_refuses_bad_numbers(sums, losses):
    with pytest.raises(InputError):
        calibrate(sums, losses)
