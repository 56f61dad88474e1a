"""Episodes of a gymnasium environment driven by a policy, and the return as a quality that puts its own questions to the model.

A policy is judged by what happens to it: every answer changes what it is asked next, so one call for each sample tells little.
Episodes start from fixed seeds, the same for every model: returns are paired, and a drop is one of the same episodes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.errors import missing_extra, must_be
from equipoise.records import Reading, measured, unavailable
from equipoise.workloads.metrics import Scores
from equipoise.workloads.scoring import of_mean

if TYPE_CHECKING:
    from equipoise.workloads.data import Split

ENVIRONMENT = "highway-fast-v0"
HIGHWAY = "highway"
"""How the names of highway-env's environments begin, which are known only once it is imported."""

EPISODES = 30
FIRST_SEEDS = {"validation": 1_000_000, "test": 2_000_000}
"""Of the first episode of each split; the next ones have the next numbers. No training reaches them."""

Policy = Callable[[Tensor], Tensor]
"""Observations (n, D) float32 -> actions (n,) int64, for n episodes side by side."""


@dataclass(frozen=True, eq=False)
class Drives:
    """What a policy did, a row for each episode.

    Attributes:
        seeds: (E,) int64, of the episodes' starts.
        returns: (E,) float64, sums of the rewards as the environment gives them.
        steps: (E,) int64, decisions made.
        crashed: (E,) bool; None where the environment does not tell.
        speed: (E,) float64, mean over the decisions, in m/s; None where the environment does not tell.
        actions: (E, A) int64, how often each action was taken.
        names: Of the actions.
    """

    seeds: Tensor
    returns: Tensor
    steps: Tensor
    crashed: Tensor | None
    speed: Tensor | None
    actions: Tensor
    names: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of all decisions that each action has, by its name."""
        counts = self.actions.sum(0).double()
        return dict(zip(self.names, (counts / counts.sum()).tolist(), strict=True))

    def readings(self) -> dict[str, Reading]:
        """Return the return, the crash rate and the speed, each with its 95 % interval over the episodes.

        Speeds are means of the episodes' means.
        """
        told = "the environment does not tell it"
        return {
            "return": _mean(self.returns, "return"),
            "crash_rate": unavailable("1", told) if self.crashed is None else _mean(self.crashed, "1"),
            "speed": unavailable("m/s", told) if self.speed is None else _mean(self.speed, "m/s"),
            "steps": _mean(self.steps, "1"),
        }

    def sentence(self) -> str:
        """Return the figures on one line: what a policy earned, and by what behaviour."""
        found, shares = self.readings(), sorted(self.shares.items(), key=lambda pair: -pair[1])
        crashes, speed = found["crash_rate"], found["speed"]
        parts = [f"return {found['return'].get():.2f}"]
        parts += [f"{100 * crashes.get():.0f} % of the episodes end in a crash"] if crashes.known else []
        parts += [f"{speed.get():.1f} m/s"] if speed.known else []
        return ", ".join((*parts, " ".join(f"{name} {100 * share:.0f} %" for name, share in shares if share >= 0.005)))


@dataclass(frozen=True)
class Return:
    """The mean return of a policy over episodes with fixed seeds: a `Quality` that asks for itself (see `metrics.Ask`).

    The action with the largest output is taken. What is asked depends on the split's name alone: its samples, states from a
    teacher's drives, are what a student learns from.

    Attributes:
        environment: Its name at gymnasium, ``module:name`` where a module must be imported first.
        episodes: Of each split.
        size: Numbers in an observation, as the model takes them.
    """

    environment: str = ENVIRONMENT
    episodes: int = EPISODES
    size: int = 25
    name: str = "return"
    maximize: bool = True
    unit: str = "return"

    def ask(self, run: Callable[[Any], Tensor], split: Split) -> tuple[Tensor, Tensor]:
        """Return the return of each episode and its seed, (E,) each."""
        found = self.drives(run, "test" if split.name == "test" else "validation")
        return found.returns, found.seeds

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the mean return, and that of each episode."""
        return Scores(float(outputs.double().mean()), outputs)

    def drives(self, run: Callable[[Any], Tensor], role: str = "validation") -> Drives:
        """Return all that is told of the episodes by which `run` (outputs of a batch of observations) is judged."""
        first = FIRST_SEEDS[role]
        return drive(greedy(run), range(first, first + self.episodes), environment=self.environment, size=self.size)


def greedy(run: Callable[[Any], Tensor]) -> Policy:
    """Return the policy that takes the action with the largest of a model's outputs (n, A)."""
    return lambda states: torch.as_tensor(run(states)).argmax(1)


def constant(action: int) -> Policy:
    """Return the policy that takes one action whatever it sees: what a learned one must be better than."""
    return lambda states: torch.full((len(states),), action, dtype=torch.int64)


def drive(policy: Policy, seeds: Sequence[int], *, environment: str = ENVIRONMENT, size: int | None = None) -> Drives:
    """Run an episode from each seed to its end, all of them side by side, and return what happened.

    Args:
        policy: Is asked for the episodes that still run, in the order of their seeds.
        seeds: One for each episode.
        environment: As of `Return`.
        size: Numbers that an observation must have; None takes what comes.
    Raises:
        InputError: No seeds, or an environment that is unknown or of another kind; see `made`.
        MissingExtraError: gymnasium or highway-env is not installed.
    """
    if not len(seeds):
        raise must_be("seeds", "those of at least one episode", list(seeds), "Write for example range(100).")
    episodes = [_Episode(made(environment, size=size), int(seed)) for seed in seeds]
    running = episodes
    while running:
        chosen = policy(torch.stack([episode.state for episode in running])).tolist()
        for episode, action in zip(running, chosen, strict=True):
            episode.step(action)
        running = [episode for episode in running if not episode.ended]
    told = set.intersection(*(set(episode.told) for episode in episodes))
    return Drives(
        torch.tensor(list(seeds), dtype=torch.int64),
        torch.tensor([episode.earned for episode in episodes], dtype=torch.float64),
        torch.tensor([len(episode.taken) for episode in episodes]),
        torch.tensor([bool(episode.told["crashed"]) for episode in episodes]) if "crashed" in told else None,
        torch.tensor([fmean(episode.speeds) for episode in episodes], dtype=torch.float64) if "speed" in told else None,
        torch.stack([torch.tensor(episode.taken).bincount(minlength=len(episode.names)) for episode in episodes]),
        episodes[0].names,
    )


class _Episode:
    """One episode on its way: its environment, and what happened so far."""

    def __init__(self, environment: Any, seed: int) -> None:
        self.environment, self.names = environment, action_names(environment)
        self.state = flat(environment.reset(seed=seed)[0])
        self.earned, self.ended = 0.0, False
        self.taken: list[int] = []
        self.speeds: list[float] = []
        self.told: Mapping[str, Any] = {}

    def step(self, action: int) -> None:
        """Take one action."""
        seen, reward, over, cut, self.told = self.environment.step(action)
        self.state, self.earned = flat(seen), self.earned + float(reward)
        self.taken.append(action)
        self.speeds += [float(self.told["speed"])] if "speed" in self.told else []
        self.ended = bool(over or cut)
        if self.ended:
            self.environment.close()


def made(environment: str, *, size: int | None = None) -> Any:
    """Return a new copy of an environment.

    Raises:
        InputError: There is none of that name, its actions are no finite choice, its observations are no array of numbers, or
            they have not `size` numbers.
        MissingExtraError: gymnasium or highway-env is not installed.
    """
    if importlib.util.find_spec("gymnasium") is None:
        raise missing_extra("gymnasium", "driving")
    import gymnasium

    if environment.startswith(HIGHWAY):
        if importlib.util.find_spec("highway_env") is None:
            raise missing_extra("highway-env", "driving")
        import highway_env  # noqa: F401 - registers its environments
    try:
        found = gymnasium.make(environment, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        said = str(error).splitlines()[0]
        raise must_be(
            "environment", "known to gymnasium", environment, f"{said} Write {ENVIRONMENT}, or module:name."
        ) from error
    if not isinstance(found.action_space, gymnasium.spaces.Discrete) or found.action_space.start != 0:
        wanted = "one whose actions are a choice, numbered from 0"
        raise must_be("environment", wanted, f"{environment}: {found.action_space}", "A model has an output for each action.")
    if not isinstance(found.observation_space, gymnasium.spaces.Box):
        wanted = "one whose observations are an array of numbers"
        raise must_be("environment", wanted, f"{environment}: {found.observation_space}", "Flatten them by a wrapper.")
    numbers = math.prod(found.observation_space.shape)
    if size is not None and numbers != size:
        what, remedy = f"one with observations of {size} numbers", "Record states of this environment anew."
        raise must_be("environment", what, f"{environment}: {numbers} numbers", remedy)
    return found


def action_names(environment: Any) -> tuple[str, ...]:
    """Return the names of an environment's actions, their numbers where it has none."""
    count = int(environment.action_space.n)
    known = getattr(getattr(environment.unwrapped, "action_type", None), "actions", None)
    if isinstance(known, Mapping) and sorted(known) == list(range(count)):
        return tuple(str(known[number]) for number in range(count))
    return tuple(f"action {number}" for number in range(count))


def flat(observation: Any) -> Tensor:
    """Return an observation as one row (D,) of float32."""
    return torch.as_tensor(observation, dtype=torch.float32).reshape(-1)


def _mean(values: Tensor, unit: str) -> Reading:
    """Mean over the episodes (E,), with its interval."""
    each = [float(value) for value in values]
    low, high = of_mean(each, 100 * (value := fmean(each)))  # in hundredths, as points are
    bounds = {} if low is None or high is None else {"low": low / 100, "high": high / 100}
    return measured(value, unit, **bounds, n=len(each), note=f"{len(each)} episodes")
