import itertools

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.pareto import hypervolume
from equipoise.records import Knob
from equipoise.search.evolve import nsga2
from equipoise.search.front import solve
from equipoise.search.space import Space

SPACE = Space(tuple(Knob(f"width.layer{i // 4}.{i}", (64, 48, 32, 24, 16)) for i in range(12)))
_RNG = np.random.default_rng(0)
LOSSES = [np.concatenate([[0], np.sort(_RNG.random(4)) ** 2]) for _ in SPACE.knobs]
COSTS = [np.concatenate([[0], -np.sort(_RNG.random(4))]) for _ in SPACE.knobs]


def score(genomes):
    sums = [sum(column[genomes[:, k]] for k, column in enumerate(table)) for table in (COSTS, LOSSES)]
    return np.stack(sums, axis=1), np.zeros((len(genomes), 0))


def volume(objectives):
    return hypervolume(objectives.tolist(), (0.5, 12.0))


def generator(turn=0):
    return np.random.default_rng(np.random.SeedSequence(entropy=7, spawn_key=(turn,)))


def test_search_comes_near_the_exact_front_and_far_beyond_random_draws():
    exact = solve(LOSSES, COSTS)
    best = volume(np.stack([exact.costs, exact.losses], axis=1))
    found = nsga2(SPACE, score, rng=generator(), generations=80)
    drawn = score(SPACE.sample(generator(), n=8000))[0]  # control: as many draws at random
    assert volume(found.objectives) > 0.97 * best > 0.93 * best > volume(drawn)


def test_seeds_from_the_exact_front_are_kept():
    exact = solve(LOSSES, COSTS)
    rows = exact.choices[:: max(1, len(exact.choices) // 60)]
    best = volume(score(rows)[0])
    assert volume(nsga2(SPACE, score, rng=generator(), seeds=rows, generations=5).objectives) >= best


def test_same_generator_same_search():
    first, again, other = (nsga2(SPACE, score, rng=generator(t), generations=5).genomes for t in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_genome_is_scored_twice_at_once_and_all_are_of_the_space():
    def spy(genomes):
        assert len(np.unique(genomes, axis=0)) == len(genomes)
        assert np.all((genomes >= 0) & (genomes < SPACE.sizes))
        return score(genomes)

    found = nsga2(SPACE, spy, rng=generator(), generations=20, population=40)
    assert len(np.unique(found.genomes, axis=0)) == 40


def test_bounds_are_kept_where_they_can_be():
    def bounded(genomes):
        objectives, _ = score(genomes)
        return objectives, np.maximum(objectives[:, :1] + 6.0, 0.0)  # cost <= -6

    found = nsga2(SPACE, bounded, rng=generator(), generations=60)
    assert np.all(found.objectives[found.front, 0] <= -6.0)
    exact = solve(LOSSES, COSTS)
    best = exact.losses[exact.costs <= -6.0].min()
    assert found.objectives[found.front, 1].min() == pytest.approx(best, rel=0.05)
    free = nsga2(SPACE, score, rng=generator(), generations=60)
    assert free.objectives[free.front, 0].max() > -6.0  # control: without the bound they would not be


def test_with_bounds_out_of_reach_the_nearest_come_first():
    def hopeless(genomes):
        objectives, _ = score(genomes)
        return objectives, objectives[:, :1] + 100.0

    found = nsga2(SPACE, hopeless, rng=generator(), generations=60)
    assert found.objectives[found.front, 0].min() == pytest.approx(sum(c.min() for c in COSTS))


def test_a_space_smaller_than_the_population_is_used_up_and_ends():
    space = Space((Knob("width.a", (4, 3, 2)), Knob("depth.a", ("keep", "drop"))), {("depth.a", "drop"): ("width.a",)})

    def small(genomes):
        return genomes.astype(float), np.zeros((len(genomes), 0))

    found = nsga2(space, small, rng=generator(), generations=50, population=20)
    every = np.unique(space.canonical(np.array(list(itertools.product(range(3), range(2))))), axis=0)
    assert np.array_equal(np.unique(found.genomes, axis=0), every)


@pytest.mark.parametrize("kwargs", [{"population": 3}, {"generations": -1}])
def test_bad_settings_are_refused(kwargs):
    with pytest.raises(InputError):
        nsga2(SPACE, score, rng=generator(), **kwargs)
