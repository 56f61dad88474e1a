"""Planted illnesses and healthy controls: each curve gets its verdict, its evidence in numbers and a fitting remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import as_data
from equipoise.scaling import Curves, Diagnosis, diagnose

STEP = np.arange(1, 61, dtype=float) * 50
CHANCE = math.log(10)


def noisy(values: np.ndarray, seed: int, sd: float = 0.01) -> list[float]:
    return (values * np.exp(sd * np.random.default_rng(seed).standard_normal(len(values)))).tolist()


def fall(floor: float, k: float = 0.5, start: float = 2.3) -> np.ndarray:
    """A power from `start` down towards `floor`."""
    return floor + (start - floor) * (STEP / STEP[0]) ** -k


def settle(floor: float, rate: float = 8.0, start: float = 2.3) -> np.ndarray:
    """An exponential that is flat at its end."""
    return floor + (start - floor) * np.exp(-rate * STEP / STEP[-1])


def over_fit(seed: int) -> Curves:
    rise = 0.25 * (np.maximum(STEP - 1000, 0.0) / 2000) ** 1.2
    return Curves(step=STEP, train=noisy(fall(0.0, 1.0), seed), validation=noisy(settle(0.7, 12) + rise, seed + 99))


def data_limited(seed: int) -> Curves:
    return Curves(step=STEP, train=noisy(fall(0.02, 0.9), seed), validation=noisy(settle(0.8, 12), seed + 99))


def too_small(seed: int) -> Curves:
    return Curves(step=STEP, train=noisy(settle(1.0, 14), seed), validation=noisy(settle(1.04, 14), seed + 99))


def too_short(seed: int) -> Curves:
    return Curves(step=STEP, train=noisy(fall(0.1, 0.35), seed), validation=noisy(fall(0.13, 0.34), seed + 99))


def healthy(seed: int) -> Curves:
    return Curves(step=STEP, train=noisy(settle(0.12, 14), seed, 0.02), validation=noisy(settle(0.14, 14), seed + 99, 0.02))


def not_learning(seed: int) -> Curves:
    return Curves(step=STEP, train=noisy(np.full(60, 2.30), seed), validation=noisy(np.full(60, 2.31), seed + 99))


def blows_up(seed: int) -> Curves:
    up = np.where(STEP > 2000, (STEP - 2000) / 1000, 0.0)
    return Curves(step=STEP, train=noisy(fall(0.3) + up, seed), validation=noisy(fall(0.35) + up, seed + 99))


def diverges(seed: int) -> Curves:
    bad = np.where(STEP > 2500, np.nan, 1.0)
    return Curves(step=STEP, train=noisy(fall(0.3) * bad, seed), validation=noisy(fall(0.35) * bad, seed + 99))


def spiky(seed: int) -> Curves:
    at = np.random.default_rng(seed).choice(np.arange(5, 58, 3), 8, replace=False)
    train = fall(0.3)
    train[at] *= 1.8
    return Curves(step=STEP, train=noisy(train, seed, 0.005), validation=noisy(fall(0.35), seed + 99))


KINDS: dict[Callable[[int], Curves], str] = {
    over_fit: "over-fit",
    data_limited: "data-limited",
    too_small: "under-fit",
    too_short: "under-fit",
    healthy: "fine",
    not_learning: "optimization trouble",
    blows_up: "optimization trouble",
    diverges: "optimization trouble",
    spiky: "optimization trouble",
}


def read(make: Callable[[int], Curves], seed: int) -> Diagnosis:
    return diagnose(make(seed), chance=CHANCE, floor=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_each_kind_gets_its_verdict_and_no_other(make: Callable[[int], Curves]) -> None:
    verdicts = [read(make, seed).verdict for seed in range(10)]
    assert verdicts.count(KINDS[make]) >= 9, verdicts  # type: ignore[arg-type]


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_evidence_is_in_numbers_and_the_whole_is_plain_data(make: Callable[[int], Curves]) -> None:
    found = read(make, 0)
    assert found.evidence
    assert all(any(ch.isdigit() for ch in e.text) for e in found.evidence)
    json.dumps(as_data(found), allow_nan=False)
    if found.verdict != "optimization trouble":
        gains = [r.gain.value for r in found.remedies if r.gain is not None]
        assert gains == sorted(gains, reverse=True)


def test_remedies_fit_the_verdict() -> None:
    def names(make: Callable[[int], Curves]) -> list[str]:
        return [r.name for r in read(make, 0).remedies]

    assert "keep the weights of the best step (early stopping)" in names(over_fit)
    assert "stronger augmentation" in names(over_fit)
    assert names(data_limited)[0] == "more data"
    assert names(too_small)[0] == "a larger model"
    assert "more data" not in names(too_small)
    assert "longer training" in names(too_short)
    assert "learning rate 3–10× lower" in names(blows_up)[0]
    assert "labels" in names(not_learning)[0]
    assert any("fp16" in name for name in names(diverges))
    assert not [n for n in names(healthy) if "rule" in n]


def test_stopping_early_gives_back_what_was_lost() -> None:
    best = next(r for r in read(over_fit, 0).remedies if "early stopping" in r.name)
    assert best.basis == "measured"
    assert best.gain is not None
    assert best.gain.value == pytest.approx(0.25, abs=0.07)


def test_overconfidence_is_told_from_forgetting() -> None:
    curves = over_fit(0)
    for lost, needle in ((0.0, "overconfident"), (8.0, "shows there too")):
        drop = np.where(STEP > 1000, lost * (STEP - 1000) / 2000, 0.0)
        metric = 70 + 5 * np.log(np.minimum(STEP, 1000.0) / 50) - drop + 0.1 * np.random.default_rng(0).standard_normal(60)
        found = diagnose(
            Curves(step=curves.step, train=curves.train, validation=curves.validation, metric=metric.tolist()), chance=CHANCE
        )
        assert any(needle in e.text for e in found.evidence)


def test_runs_of_several_sizes_and_amounts_replace_the_rules() -> None:
    data = {n: 0.5 + 20 * n**-0.4 for n in (1e3, 2e3, 4e3, 8e3)}
    sizes = {n: 0.9 + 3 * n**-0.3 for n in (1e4, 4e4, 1.6e5)}
    found = diagnose(data_limited(0), chance=CHANCE, floor=0.1, data=data, sizes=sizes)
    known = {r.name: r for r in found.remedies if r.basis == "extrapolated"}
    assert set(known) >= {"more data", "a larger model"}
    gain = known["more data"].gain
    assert gain is not None
    truth = data[8e3] - (0.5 + 20 * 16e3**-0.4)
    assert gain.low <= truth <= gain.high
    assert gain.value == pytest.approx(truth, rel=0.4)


def test_without_a_floor_flat_curves_cannot_be_told() -> None:
    found = diagnose(too_small(0), chance=CHANCE)
    assert found.verdict == "cannot tell"
    with_sizes = diagnose(too_small(0), chance=CHANCE, sizes={n: 0.1 + 20 * n**-0.25 for n in (1e3, 4e3, 1.6e4, 6.4e4)})
    assert with_sizes.verdict == "under-fit"
    flat = diagnose(too_small(0), chance=CHANCE, sizes={1e3: 1.04, 4e3: 1.041, 1.6e4: 1.04, 6.4e4: 1.0395})
    assert flat.verdict == "cannot tell"


def test_a_decayed_rate_is_not_continued() -> None:
    curves = too_short(0)
    rate = (1 - STEP / STEP[-1]).tolist()
    found = diagnose(
        Curves(step=curves.step, train=curves.train, validation=curves.validation, rate=rate), chance=CHANCE, floor=0.1
    )
    longer = next(r for r in found.remedies if r.name == "longer training")
    assert (longer.gain, longer.basis) == (None, "unknown")
    told = diagnose(curves, chance=CHANCE, floor=0.1, lengths={3000: 0.7, 6000: 0.55, 12000: 0.45})
    assert next(r for r in told.remedies if r.name == "longer training").basis == "extrapolated"


def test_gradients_that_burst_or_vanish() -> None:
    base = too_short(0)
    steady = np.exp(0.2 * np.random.default_rng(0).standard_normal(60))
    burst = steady.copy()
    burst[[20, 40, 50]] = 5000.0

    def verdict(curves: Curves, gradient: np.ndarray) -> str:
        with_norms = Curves(step=curves.step, train=curves.train, validation=curves.validation, gradient=gradient.tolist())
        return diagnose(with_norms, chance=CHANCE, floor=0.1).verdict

    assert verdict(base, steady) == "under-fit"
    assert verdict(base, burst) == "optimization trouble"
    assert verdict(not_learning(0), steady * np.geomspace(1, 1e-6, 60)) == "optimization trouble"


def test_too_few_points_and_bad_lists() -> None:
    assert diagnose(Curves(step=[1, 2], train=[1, 1], validation=[1, 1])).verdict == "cannot tell"
    nan = [math.nan] * 10
    assert diagnose(Curves(step=list(range(1, 11)), train=nan, validation=nan)).verdict == "optimization trouble"
    with pytest.raises(InputError, match="equal length"):
        diagnose(Curves(step=[1, 2], train=[1], validation=[1, 1]))
    with pytest.raises(InputError, match="ascending"):
        diagnose(Curves(step=[2, 1], train=[1, 1], validation=[1, 1]))
    with pytest.raises(InputError, match="not empty"):
        diagnose(Curves(step=[], train=[], validation=[]))
