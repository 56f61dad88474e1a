"""Policies that drive: paired episodes, what is told beside the return, environments of another kind."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from equipoise.errors import InputError, MissingExtraError
from equipoise.generated.two_lanes import BRAKE, CHANGE, LENGTH, STAY, TwoLanes
from equipoise.workloads import Split, asked, metric_of
from equipoise.workloads.episodes import Return, constant, drive, greedy

ROAD = "equipoise.generated.two_lanes:TwoLanes-v0"
SEEDS = range(50, 90)


class Steered(TwoLanes):
    """Actions that are no choice."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))


class Worded(TwoLanes):
    """Observations that are no array of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Discrete(7)


for _kind in (Steered, Worded):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=_kind)


def careful(states: Tensor) -> Tensor:
    """Logits of who changes the lane where a wall is next, and brakes where one is in both."""
    lane, near = states[:, 0].round().long(), states[:, 1:] < 0.5
    here, there = (near.gather(1, place[:, None])[:, 0].float() for place in (lane, 1 - lane))
    return torch.stack((1 - here, 0.5 * (1 - there), torch.full_like(here, 0.25)), 1)


def one_by_one(policy: Any, seeds: range) -> list[tuple[float, int, bool]]:
    """The slow reference: each episode alone, by gymnasium's own loop."""
    rows = []
    for seed in seeds:
        world, earned, steps, ended, told = gymnasium.make(ROAD), 0.0, 0, False, {}
        state, _ = world.reset(seed=seed)
        while not ended:
            action = int(policy(torch.tensor(state).reshape(1, -1))[0])
            state, reward, over, cut, told = world.step(action)
            earned, steps, ended = earned + float(reward), steps + 1, over or cut
        rows.append((earned, steps, told["crashed"]))
    return rows


@pytest.mark.parametrize("policy", [greedy(careful), constant(STAY)], ids=["careful", "stay"])
def test_side_by_side_they_end_as_one_by_one(policy: Any) -> None:
    found, wanted = drive(policy, SEEDS, environment=ROAD), one_by_one(policy, SEEDS)
    assert found.returns.tolist() == [row[0] for row in wanted]
    assert found.steps.tolist() == [row[1] for row in wanted]
    assert found.crashed is not None
    assert found.crashed.tolist() == [row[2] for row in wanted]
    assert found.seeds.tolist() == list(SEEDS)


def test_who_only_brakes_is_seen_as_such() -> None:
    safe, good, rash = (
        drive(policy, SEEDS, environment=ROAD) for policy in (constant(BRAKE), greedy(careful), constant(CHANGE))
    )
    assert safe.returns.tolist() == pytest.approx([0.4 * LENGTH] * len(SEEDS))
    assert safe.shares == {"action 0": 0.0, "action 1": 0.0, "action 2": 1.0}
    told, better, worse = safe.readings(), good.readings(), rash.readings()
    assert told["crash_rate"].get() == better["crash_rate"].get() == 0  # neither crashes: that alone tells them not apart
    assert worse["crash_rate"].get() == 1
    assert (told["speed"].get(), worse["speed"].get()) == (0, 20)
    assert better["speed"].get() > 10
    assert better["return"].get() > 2 * told["return"].get()
    assert "0 % of the episodes end in a crash, 0.0 m/s, action 2 100 %" in safe.sentence()


def test_intervals_are_those_of_a_share_and_of_a_mean() -> None:
    found = drive(greedy(careful), SEEDS, environment=ROAD)
    read, n = found.readings(), len(SEEDS)
    assert read["crash_rate"].high == pytest.approx(1.96**2 / (n + 1.96**2), rel=1e-3)  # of none in n, by Wilson
    error = float(found.returns.std()) / n**0.5
    assert read["return"].high is not None
    assert read["return"].high - read["return"].get() == pytest.approx(2.02 * error, rel=0.02)  # Student's t at 39
    assert read["return"].get() == pytest.approx(float(found.returns.mean()))


def test_seeds_reproduce_and_others_differ() -> None:
    once, again, other = (drive(constant(STAY), seeds, environment=ROAD).returns for seeds in (SEEDS, SEEDS, range(40)))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_what_the_environment_does_not_tell_is_unknown() -> None:
    gymnasium.register("Silent-v0", entry_point="equipoise.generated.two_lanes:TwoLanes", kwargs={"told": False})
    found = drive(constant(STAY), range(3), environment="Silent-v0")
    read = found.readings()
    assert not read["crash_rate"].known
    assert not read["speed"].known
    assert "crash" not in found.sentence()


def test_each_split_has_episodes_of_its_own_and_its_samples_do_not_matter() -> None:
    metric = metric_of(Return(ROAD, episodes=12, size=3))
    splits = {name: Split.of((torch.zeros(n, 3), torch.arange(n)), name=name) for name, n in (("validation", 9), ("test", 5))}
    (returns, seeds), (others, more) = (asked(metric, careful, split) for split in splits.values())
    assert len(returns) == 12
    assert set(seeds.tolist()).isdisjoint(more.tolist())
    assert torch.equal(asked(metric, careful, splits["validation"].take(2))[0], returns)
    assert metric.score(returns, seeds) == pytest.approx(float(returns.mean()))
    assert metric.read(others, more).each is not None
    assert metric.unit == "return"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("Nowhere-v7", "environment must be known to gymnasium; got 'Nowhere-v7'"),
        ("no_such_module:Road-v0", "no_such_module"),
        ("highway-slow-v0", "known to gymnasium; got 'highway-slow-v0'"),
        ("Steered-v0", "actions are a choice, numbered from 0; got 'Steered-v0: Box"),
        ("Worded-v0", "observations are an array of numbers; got 'Worded-v0: Discrete"),
    ],
)
def test_environments_that_cannot_be_driven(environment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        drive(constant(0), range(2), environment=environment)


def test_other_observations_and_no_episodes_are_told() -> None:
    with pytest.raises(InputError, match=f"observations of 25 numbers; got '{re.escape(ROAD)}: 3 numbers'"):
        Return(ROAD, episodes=2, size=25).drives(careful)
    with pytest.raises(InputError, match="seeds must be those of at least one episode"):
        drive(constant(0), [], environment=ROAD)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "highway_env" else find(name))
    with pytest.raises(MissingExtraError, match=r"highway-env is not installed.*equipoise\[driving\]"):
        drive(constant(0), range(2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="gymnasium is not installed"):
        drive(constant(0), range(2), environment=ROAD)


@pytest.mark.slow
def test_braking_on_the_real_road() -> None:
    found = drive(constant(4), range(2))
    assert found.names == ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")
    assert found.steps.tolist() == [30, 30]
    assert found.readings()["crash_rate"].get() == 0
    assert 20 <= found.readings()["speed"].get() < 21  # from 25 m/s down to 20, and no slower
    assert all(20 <= value < 23 for value in found.returns.tolist())  # 2/3 a step, a little more on the right and while fast
    assert torch.equal(drive(constant(4), [1]).returns, found.returns[1:])
