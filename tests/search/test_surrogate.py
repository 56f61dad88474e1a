import math

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import Knob
from equipoise.search.space import Space
from equipoise.search.surrogate import FEWEST, fit_gp, fit_loss, summary
from equipoise.search.tables import EPSILON, LossTable

SPACE = Space(tuple(Knob(f"width.layer{i // 3}.{i}", (64, 48, 32, 16)) for i in range(6)))
TABLE = LossTable(SPACE, tuple(np.array([0.0, 0.02, 0.08, 0.3]) * s for s in (0.3, 0.6, 1.0, 1.4, 2.0, 3.0)), 0.0)
WRONG = np.array([1.0, 1.0, 0.3, 1.0, 1.0, 2.5])  # two of the six columns of the table are wrong by these factors


def truth(genomes, seed=0):
    total = sum(TABLE.columns[k][genomes[:, k]] * WRONG[k] for k in range(6))
    ripple = np.random.default_rng(seed).normal(0, 0.03, len(genomes))
    return 0.7 * total**0.9 * np.exp(ripple)


def draws(n, seed):
    return np.unique(SPACE.sample(np.random.default_rng(seed), n=n), axis=0)


def errors(model, genomes):
    return np.abs(np.log((model.losses(genomes) + EPSILON) / (truth(genomes, 9) + EPSILON)))


def test_without_evaluations_the_tables_speak_with_the_prior_spread():
    model = fit_loss(TABLE, np.zeros((0, 6), dtype=np.int64), np.zeros(0))
    genomes = draws(20, 1)
    assert model.residual is None
    assert model.losses(genomes) == pytest.approx(0.7 * TABLE.sums(genomes), rel=0.05)
    assert set(model.log(genomes)[1].tolist()) == {0.3}
    few = draws(FEWEST - 1, 2)
    assert fit_loss(TABLE, few, truth(few)).residual is None


def test_evaluations_correct_wrong_table_entries():
    train, test = draws(40, 3), draws(300, 4)
    model = fit_loss(TABLE, train, truth(train))
    assert model.residual is not None
    alone = fit_loss(TABLE, train, truth(train))
    plain = np.abs(alone.calibration.log(TABLE.sums(test)) - np.log(truth(test, 9) + EPSILON))
    assert np.median(errors(model, test)) < 0.6 * np.median(plain)
    assert model.residual.median_factor == pytest.approx(math.exp(float(np.median(errors(model, test)))), rel=0.1)


def test_spread_covers_what_it_should():
    train, test = draws(40, 5), draws(300, 6)
    mean, sd = fit_loss(TABLE, train, truth(train)).log(test)
    inside = np.mean(np.abs(np.log(truth(test, 9) + EPSILON) - mean) < 1.645 * sd)
    assert 0.8 < inside <= 1.0
    too_sure = np.mean(np.abs(np.log(truth(test, 9) + EPSILON) - mean) < 1.645 * sd / 5)
    assert too_sure < 0.6  # control


def test_untouched_plans_do_not_spoil_the_fit():
    train = draws(30, 7)
    with_untouched = np.concatenate([np.zeros((3, 6), dtype=np.int64), train])
    values = np.concatenate([np.zeros(3), truth(train)])
    model = fit_loss(TABLE, with_untouched, values)
    assert np.median(errors(model, draws(200, 8))) < 0.2
    assert model.losses(np.zeros((1, 6), dtype=np.int64))[0] < 0.01


def dense_posterior(gp, x, shares):
    """Slow reference: condition the joint Gaussian, one query at a time, kernel written out entry by entry."""

    def kernel(i, j):
        (a, s), (b, t) = i, j
        r = math.sqrt(
            5 * sum(((u - v) / unit / scale) ** 2 for u, v, unit, scale in zip(a, b, gp.unit, gp.scales, strict=True))
        )
        return gp.smooth**2 * (1 + r + r * r / 3) * math.exp(-r) + gp.linear**2 * sum(p * q for p, q in zip(s, t, strict=True))

    known = list(zip(gp.x, gp.shares, strict=True))
    gram = np.array([[kernel(i, j) for j in known] for i in known]) + gp.noise**2 * np.eye(len(known))
    means, sds = [], []
    for query in zip(x, shares, strict=True):
        cross = np.array([kernel(query, k) for k in known])
        means.append(cross @ np.linalg.solve(gram, gp.inverse_target))
        sds.append(math.sqrt(kernel(query, query) + gp.noise**2 - cross @ np.linalg.solve(gram, cross)))
    return means, sds


class WithTarget:
    def __init__(self, gp, y):
        self.__dict__.update({name: getattr(gp, name) for name in gp.__dataclass_fields__}, inverse_target=y)


def test_prediction_and_left_out_error_agree_with_slow_references():
    rng = np.random.default_rng(1)
    x, shares, y = rng.random((12, 3)), rng.dirichlet(np.ones(5), 12), rng.normal(0, 0.3, 12)
    gp = fit_gp(x, shares, y)
    assert np.all(gp.scales >= 1)
    queries = rng.random((4, 3)), rng.dirichlet(np.ones(5), 4)
    mean, sd = gp.predict(*queries)
    slow_mean, slow_sd = dense_posterior(WithTarget(gp, y), *queries)
    assert mean == pytest.approx(slow_mean)
    assert sd == pytest.approx(slow_sd)
    left_out = []
    for i in range(12):
        keep = np.arange(12) != i
        part = type(gp)(**{**{n: getattr(gp, n) for n in gp.__dataclass_fields__}, "x": x[keep], "shares": shares[keep]})
        slow, _ = dense_posterior(WithTarget(part, y[keep]), x[i : i + 1], shares[i : i + 1])
        left_out.append(abs(slow[0] - y[i]))
    assert gp.median_factor == pytest.approx(math.exp(float(np.median(left_out))))


def test_pure_noise_is_not_learned():
    rng = np.random.default_rng(2)
    x, shares = rng.random((30, 3)), rng.dirichlet(np.ones(6), 30)
    gp = fit_gp(x, shares, rng.normal(0, 0.2, 30))
    mean, _ = gp.predict(rng.random((100, 3)), rng.dirichlet(np.ones(6), 100))
    assert float(np.std(mean)) < 0.1


def test_summary_is_by_stage_then_by_kind():
    genomes = np.array([[3, 3, 3, 0, 0, 0]])
    assert summary(TABLE, genomes)[0, :2].tolist() == [1.0, 0.0]
    wide = Space(tuple(Knob(f"width.layer{i}.conv", (2, 1)) for i in range(9)))
    table = LossTable(wide, tuple(np.array([0.0, 0.1]) for _ in range(9)), 0.0)
    assert summary(table, np.ones((1, 9), dtype=np.int64)).shape == (1, 2)


def test_nothing_to_fit_is_refused():
    with pytest.raises(InputError):
        fit_gp(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
