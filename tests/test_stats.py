"""Intervals against closed forms, against simulation, and against planted wrong answers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from equipoise import stats
from equipoise.errors import InputError
from equipoise.stats import Interval

SCORES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], q: float) -> None:
    assert stats.quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 0, 5), (8, 0, 7), (9, 1, 7), (12, 2, 9), (25, 7, 17)])
def test_the_interval_of_a_median_takes_the_order_statistics_of_the_sign_test(n: int, low: int, high: int) -> None:
    """Tabulated ranks (Hahn & Meeker); scipy's binomial agrees that one rank further in would cover too little."""
    found = stats.quantile_interval(list(range(n)), 0.5)
    assert (found.low, found.high) == (low, high)
    covered = oracle.binom.cdf(high, n, 0.5) - oracle.binom.cdf(low, n, 0.5)
    inside = oracle.binom.cdf(high - 1, n, 0.5) - oracle.binom.cdf(low + 1, n, 0.5)
    assert inside < 0.95 <= covered


def test_a_ratio_is_carried_along_its_elasticity_and_gains_the_doubt_of_it() -> None:
    ratio = Interval(2.0, 1.9, 2.1, 8)
    same = stats.carried(ratio, slower=1.0, elasticity=(0.5, 0.3))
    assert (same.value, same.low, same.high) == pytest.approx((2.0, 1.9, 2.1))
    sure = stats.carried(ratio, slower=1.21, elasticity=(0.5, 0.0))
    assert (sure.value, sure.low, sure.high) == pytest.approx((2.2, 2.09, 2.31))
    unsure = stats.carried(ratio, slower=1.21, elasticity=(0.5, 0.3))
    assert math.log(unsure.high / unsure.value) == pytest.approx(
        math.hypot(math.log(1.05), 1.96 * 0.3 * math.log(1.21)), rel=1e-4
    )
    assert unsure.value / unsure.low > unsure.high / unsure.value > 1.05
    unbounded = stats.carried(Interval(2.0, 0.0, math.inf, 1), slower=1.2, elasticity=(0.5, 0.1))
    assert (unbounded.low, unbounded.high) == (0.0, math.inf)


def test_the_interval_of_p95_needs_72_samples() -> None:
    assert not stats.quantile_interval(list(range(71)), 0.95).bounded
    assert stats.quantile_interval(list(range(72)), 0.95).bounded


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_interval_of_a_quantile_covers_what_it_says(q: float) -> None:
    rng, truth = random.Random(1), oracle.expon.ppf(q)
    found = [stats.quantile_interval([rng.expovariate(1.0) for _ in range(40)], q) for _ in range(600)]
    assert sum(i.low <= truth <= i.high for i in found) / 600 >= 0.94


def by_round(a: list[list[float]], b: list[list[float]]) -> Interval:
    """The interval of a / b from one ratio a round, as loads and processes are compared."""
    return stats.repeat_interval([stats.median(x) / stats.median(y) for x, y in zip(a, b, strict=True)])


def _rounds(rng: random.Random, scale: float, common: list[float], spread: float) -> list[list[float]]:
    """Blocks of 9 calls: noise of the round (shared), of the block, and of each call, as on a busy machine."""
    return [
        [scale * c * block * rng.lognormvariate(0, 0.1) for _ in range(9)]
        for c in common
        for block in [rng.lognormvariate(0, spread)]
    ]


def _verdicts(
    speedup: float, *, estimate: Callable[..., Interval] = by_round, times: int = 400, spread: float = 0.05
) -> list[str]:
    rng = random.Random(7)
    said = []
    for _ in range(times):
        common = [rng.lognormvariate(0, 0.3) for _ in range(12)]
        said.append(stats.verdict(estimate(_rounds(rng, speedup, common, spread), _rounds(rng, 1.0, common, spread))))
    return said


def test_a_model_against_itself_is_seldom_faster() -> None:
    for spread in (0.05, 0.15):
        said = _verdicts(1.0, spread=spread)
        assert said.count("faster") <= 0.05 * len(said)
        assert said.count("slower") <= 0.05 * len(said)


def test_a_naive_interval_would_cry_faster() -> None:
    """Negative control: all calls taken for independent samples."""

    def naive(a: list[list[float]], b: list[list[float]]) -> Interval:
        logs = [math.log(x) - math.log(y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)]
        error = 1.96 * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
        center = float(np.mean(logs))
        return Interval(math.exp(center), math.exp(center - error), math.exp(center + error), len(logs))

    said = _verdicts(1.0, estimate=naive, spread=0.15)
    assert said.count("faster") > 0.05 * len(said)


@pytest.mark.parametrize(("speedup", "expected"), [(1.25, "faster"), (0.8, "slower")])
def test_a_real_difference_is_told(speedup: float, expected: str) -> None:
    said = _verdicts(speedup, times=100)
    assert said.count(expected) >= 95


@given(SCORES)
def test_the_drop_is_the_published_formula(pairs: list[tuple[bool, bool]]) -> None:
    base, new = zip(*pairs, strict=True)
    lost = sum(b and not c for b, c in pairs)
    gained = sum(c and not b for b, c in pairs)
    n = len(pairs)
    found = stats.paired_drop(base, new)
    error = math.sqrt((lost + gained + 1) - (lost - gained) ** 2 / n) / n  # +1: half a pair in each discordant cell
    assert found.value == pytest.approx(100 * (lost - gained) / n)
    assert found.half_width == pytest.approx(100 * 1.959964 * error, rel=1e-5)


def test_the_drop_of_many_cases_is_that_of_the_plan() -> None:
    """n = 10,000 with 3 % discordant: a standard error of 0.17 points."""
    base = [1] * 200 + [0] * 100 + [1] * 9700
    new = [0] * 200 + [1] * 100 + [1] * 9700
    found = stats.paired_drop(base, new)
    assert found.value == pytest.approx(1.0)
    assert found.half_width / 1.96 == pytest.approx(0.173, abs=0.002)


def test_no_change_on_few_cases_is_no_certainty() -> None:
    assert stats.paired_drop([1] * 20, [1] * 20).high > 5
    assert stats.paired_drop([1] * 10_000, [1] * 10_000).high < 0.03


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_the_drop_covers_the_truth(kind: str) -> None:
    rng, hits = random.Random(3), 0
    for _ in range(500):
        base = [1.0 if rng.random() < 0.9 else 0.0 for _ in range(400)]
        if kind == "binary":  # 4 % of the right ones turn wrong, 10 % of the wrong ones right: 2.6 points
            new = [float(rng.random() < (0.96 if b else 0.10)) for b in base]
        else:
            new = [b - rng.gauss(0.026, 0.3) for b in base]
        found = stats.paired_drop(base, new)
        hits += found.low <= 2.6 <= found.high
    assert hits >= 0.93 * 500


def test_an_unpaired_interval_would_be_far_wider() -> None:
    """Negative control of pairing: shuffling one side must cost precision."""
    rng = random.Random(5)
    base = [float(rng.random() < 0.6) for _ in range(1000)]
    new = [b if rng.random() < 0.98 else 0.0 for b in base]
    mixed = rng.sample(new, len(new))
    assert stats.paired_drop(base, mixed).half_width > 4 * stats.paired_drop(base, new).half_width


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stats.quantile([], 0.5), "at least one number"),
        (lambda: stats.quantile([1.0], 95), "between 0 and 1"),
        (lambda: stats.paired_drop([1], [1, 0]), "same cases"),
        (lambda: stats.paired_drop([1, 1], [1, math.nan]), "finite"),
        (lambda: stats.quantile_interval([1.0], 0.5, confidence=95), "0.95"),
    ],
)
def test_unusable_samples_get_one_clear_error(call: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.005, 1.012, "faster"), (0.95, 0.98, "slower"), (0.988, 1.001, "cannot tell")]
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, said: str) -> None:
    assert stats.verdict(Interval((low + high) / 2, low, high, 12)) == said


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 33, 100, 5000])
@pytest.mark.parametrize("q", [0.6, 0.95, 0.975, 0.995, 0.025])
def test_students_t_is_scipys(freedom: int, q: float) -> None:
    assert stats.student_t(q, freedom) == pytest.approx(float(oracle.t.ppf(q, freedom)), rel=1e-3)


def _caught(draw: Callable[[random.Random], float], *, n: int = 8, between: float = 0.0, shared: float = 0.0) -> float:
    """Share of pairs of sittings in which the value of the second lies in the interval of the first."""
    rng, hits, times = random.Random(7), 0, 1500
    for _ in range(times):
        first, second = (
            stats.repeat_interval([math.exp(base + draw(rng)) for _ in range(n)], between=between)
            for base in (rng.gauss(0.0, shared), rng.gauss(0.0, shared))
        )
        hits += first.low <= second.value <= first.high
    return hits / times


def test_a_repeated_measurement_falls_in_the_interval() -> None:
    assert 0.93 <= _caught(lambda rng: rng.gauss(0.0, 0.05)) <= 0.97
    assert 0.92 <= _caught(lambda rng: rng.gauss(rng.choice((0.0, 0.3)), 0.01)) <= 0.99, "two humps"
    assert _caught(lambda rng: -0.3 if rng.random() < 0.05 else rng.gauss(0.0, 0.01)) >= 0.90, "now and then one is disturbed"


def test_what_a_sitting_shares_is_covered_only_when_it_is_counted() -> None:
    def noise(rng: random.Random) -> float:
        return rng.gauss(0.0, 0.005)

    assert _caught(noise, shared=0.01, between=0.01) >= 0.93
    assert _caught(noise, shared=0.01) < 0.6, "negative control: processes of one sitting do not show it"


def test_one_repetition_has_no_interval_and_bad_ones_are_refused() -> None:
    assert not stats.repeat_interval([1.5]).bounded
    assert stats.repeat_interval([2.0, 2.0, 2.0]).half_width == 0.0
    for values in ([], [0.0, 1.0], [math.nan], [-1.0], [math.inf]):
        with pytest.raises(InputError, match="repeat_interval"):
            stats.repeat_interval(values)
