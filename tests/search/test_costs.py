import itertools

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.search.costs import fit_cost
from equipoise.search.robust import nonnegative_least_squares


def subsets_least_squares(a, b):
    """Slow reference: least squares on every subset of columns whose solution is nonnegative."""
    best = (float(np.sum(b**2)), np.zeros(a.shape[1]))
    for r in range(1, a.shape[1] + 1):
        for subset in itertools.combinations(range(a.shape[1]), r):
            x = np.zeros(a.shape[1])
            x[list(subset)] = np.linalg.lstsq(a[:, subset], b, rcond=None)[0]
            if np.all(x >= 0):
                best = min(best, (float(np.sum((a @ x - b) ** 2)), x), key=lambda pair: pair[0])
    return best[1]


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_least_squares_agrees_with_all_subsets(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=9)
    found, reference = nonnegative_least_squares(a, b), subsets_least_squares(a, b)
    assert np.all(found >= 0)
    assert found == pytest.approx(reference, abs=1e-8)
    gradient = a.T @ (b - a @ found)  # Karush-Kuhn-Tucker: no free direction left, none wanted on the bound
    assert np.all(gradient[found > 0] == pytest.approx(0, abs=1e-8))
    assert np.all(gradient[found == 0] <= 1e-8)


def test_the_subset_oracle_rejects_clipped_least_squares():
    a, b = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([0.0, 1.0])
    clipped = np.maximum(np.linalg.lstsq(a, b, rcond=None)[0], 0)
    assert clipped != pytest.approx(subsets_least_squares(a, b))
    assert nonnegative_least_squares(a, b) == pytest.approx(subsets_least_squares(a, b))


def test_degenerate_systems_end():
    assert nonnegative_least_squares(np.zeros((3, 2)), np.ones(3)).tolist() == [0, 0]
    assert nonnegative_least_squares(np.ones((4, 3)), np.ones(4)).sum() == pytest.approx(1)
    assert nonnegative_least_squares(-np.eye(2), np.ones(2)).tolist() == [0, 0]


TRUE = np.array([2e-5, 1.1, 0.9, 3e-6])


def nets(n, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    x = np.stack([np.ones(n), rng.uniform(2e-4, 1e-3, n), rng.uniform(0, 5e-4, n), rng.integers(0, 8, n)], axis=1)
    return x, (x @ TRUE) * np.exp(rng.normal(0, noise, n))


def test_fit_recovers_planted_weights_and_reports_its_own_error():
    fit = fit_cost(*nets(25), prior=np.array([0, 1, 1, 0]))
    assert fit.weights[1:3] == pytest.approx(TRUE[1:3], rel=0.05)
    x, y = nets(200, seed=1, noise=0)
    error = float(np.median(np.abs(x @ fit.weights / y - 1)))
    assert error < 0.01
    assert fit.median_error == pytest.approx(0.01, abs=0.01)
    assert fit.n == 25


def test_one_wild_measurement_does_not_move_the_fit():
    x, y = nets(20)
    wild = y.copy()
    wild[3] /= 4
    calm, hit = fit_cost(x, y), fit_cost(x, wild)
    assert x @ hit.weights == pytest.approx(x @ calm.weights, rel=0.03)
    plain = nonnegative_least_squares(x / wild[:, None], np.ones(20))
    assert np.max(np.abs(x @ plain / (x @ calm.weights) - 1)) > 0.1  # control: without robustness it does


def test_the_self_report_sees_features_that_do_not_explain_the_cost():
    x, y = nets(25)
    rng = np.random.default_rng(5)
    blind = fit_cost(np.stack([np.ones(25), rng.uniform(0, 1, 25)], axis=1), y)
    assert blind.median_error > 0.08 > fit_cost(x, y).median_error


def test_with_one_measurement_the_prior_carries_what_it_cannot_tell():
    x, y = nets(1)
    fit = fit_cost(x, y, prior=np.array([0, 1, 1, 3e-6]))
    assert fit.median_error is None
    assert float((x @ fit.weights)[0]) == pytest.approx(float(y[0]), rel=0.05)
    assert 0.8 < fit.weights[1] < 1.3
    assert 0.8 < fit.weights[2] < 1.3


def test_what_no_measured_model_has_stays_as_it_is_believed() -> None:
    rows, prior = np.array([[1.0, 4.0, 0.0], [1.0, 8.0, 0.0]]), np.array([0.0, 1.0, 0.7])
    fit = fit_cost(rows, np.array([2.0, 4.0]), prior=prior)
    assert fit.weights[1] < 0.7  # it was measured, and is not as believed
    assert fit.weights[2] == pytest.approx(0.7)  # was 0: a layer in a precision that nothing was measured in cost nothing


@pytest.mark.parametrize(
    ("features", "costs"),
    [
        (np.ones((2, 1)), np.ones(3)),
        (np.ones((0, 2)), np.ones(0)),
        (np.ones((2, 1)), np.array([1.0, 0.0])),
        (np.ones((2, 1)), np.array([1.0, np.nan])),
    ],
)
def test_bad_measurements_are_refused(features, costs):
    with pytest.raises(InputError):
        fit_cost(features, costs)


def test_what_is_known_badly_moves_the_fit_little() -> None:
    x = np.stack([np.ones(12), np.arange(1.0, 13.0)], axis=1)
    truth = x @ np.array([1.0, 2.0])
    costs = truth.copy()
    costs[[2, 5, 8, 10]] *= 1.5
    noise = np.full(12, 0.01)
    noise[[2, 5, 8, 10]] = 0.5
    told = fit_cost(x, costs, noise=noise).weights
    blind = fit_cost(x, costs).weights
    assert np.allclose(told, [1.0, 2.0], rtol=0.02)
    assert np.abs(told - [1.0, 2.0]).max() < np.abs(blind - [1.0, 2.0]).max()
    assert np.array_equal(fit_cost(x, costs, noise=np.zeros(12)).weights, blind)


def test_what_all_models_have_alike_is_left_to_the_constant() -> None:
    """Uniform plans have as many operators each: a weight on these would foretell any amount for a plan with more of them."""
    seconds = np.array([3.1, 0.8, 1.7, 1.6])
    operators = np.full(4, 36.0)
    x = np.stack([np.ones(4), seconds, operators], axis=1)
    fit = fit_cost(x, 2.1 + 1.05 * seconds, prior=np.array([0.0, 1.0, 0.0]))
    assert fit.weights[2] < 1e-3
    assert np.array([1.0, 3.3, 72.0]) @ fit.weights == pytest.approx(2.1 + 1.05 * 3.3, rel=0.02)
    two = np.concatenate([x, [[1.0, 3.3, 72.0]]])
    seen = fit_cost(two, np.append(2.1 + 1.05 * seconds, 2.1 + 1.05 * 3.3 + 36 * 0.02), prior=np.array([0.0, 1.0, 0.0]))
    assert np.array([1.0, 3.0, 108.0]) @ seen.weights > 2.1 + 1.05 * 3.0 + 0.8  # once one has more, it is told
