"""A policy that learned to drive by trial and error, and the states that it meets: what smaller models learn from.

The learning is Stable-Baselines3's deep Q-learning. The value network becomes a network of logits, its drives a table of states
and actions, and both lie in a folder which `driving` reads.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.errors import missing_extra, must_be
from equipoise.records import as_data
from equipoise.units import check_seed, is_whole
from equipoise.workloads.episodes import ENVIRONMENT, EPISODES, Drives, Policy, Return, constant, drive, greedy, made
from equipoise.workloads.running import one_thread
from equipoise.workloads.weights import packed

STATES, ABOUT, WEIGHTS = "states.safetensors", "driving.json", "model.safetensors"
"""What a folder holds: observations and the teacher's actions; what they are of, and how the teacher drives; its weights."""
FORMAT = 1
"""Version of the folder."""

HIDDEN = (256, 256)
"""Widths of the teacher's layers, as in highway-env's own example."""
LEARNING: Mapping[str, Any] = {
    "learning_rate": 5e-4,
    "learning_starts": 500,
    "batch_size": 64,
    "gamma": 0.9,
    "train_freq": 1,
    "gradient_steps": 2,
    "target_update_interval": 200,
    "exploration_fraction": 0.5,
}
"""Settings of the learning: a decision takes the simulator ten times as long as an update, so two updates follow each."""
EXPLORED = 0.1
"""Share of random actions on the drives that are recorded: a student goes astray too, and must know the way back."""
RECORDED_FROM = {"train": 3_000_000, "validation": 4_000_000, "test": 5_000_000}
"""Seed of the first drive recorded for each split; those that quality is read on are others (`episodes.FIRST_SEEDS`)."""
AT_ONCE = 10
"""Drives that are recorded side by side."""

Listener = Callable[[int, int], None]
"""Is told after each decision of the training how many were made, and of how many."""


@dataclass(frozen=True)
class Taught:
    """A teacher, and how it drives.

    Attributes:
        folder: Where it was written; ``driving:FOLDER`` names it.
        model: Answers observations (N, D) by logits of the actions (N, A).
        drives: Its own, on the episodes of the validation split.
        constants: Name of an action -> drives of the policy that always takes it, on the same episodes.
    """

    folder: Path
    model: nn.Module
    drives: Drives
    constants: Mapping[str, Drives]


def train_teacher(
    folder: str | Path,
    *,
    environment: str = ENVIRONMENT,
    steps: int = 20_000,
    seed: int = 0,
    hidden: Sequence[int] = HIDDEN,
    states: int = 6000,
    held: int = 600,
    episodes: int = EPISODES,
    learning: Mapping[str, Any] | None = None,
    on_step: Listener | None = None,
) -> Taught:
    """Train a policy by deep Q-learning, record states that it meets and its actions there, and write all to `folder`.

    Args:
        folder: Made if need be; it is written at the end, over what an earlier call left.
        environment: As of `episodes.Return`; learned and judged as it is, by its own rewards.
        steps: Decisions to learn from.
        seed: Of the weights, the exploration and the first episode; recorded.
        hidden: Widths of the teacher's layers.
        states, held: To record for training, and for each of validation and test.
        episodes: To judge the teacher and the constant policies on.
        learning: Changes to `LEARNING`, by the names of Stable-Baselines3's ``DQN``.
        on_step: Listens.
    Raises:
        InputError: An environment that is unknown or of another kind, or a number that cannot be used.
        MissingExtraError: A package of ``equipoise[driving]`` is not installed.

    References:
        Mnih et al. 2015, "Human-level control through deep reinforcement learning". Leurent 2018, highway-env.
    """
    place = Path(folder)
    check_seed(seed)
    for what, value, least in (("steps", steps, 1), ("states", states, 3), ("held", held, 3), ("episodes", episodes, 2)):
        if not is_whole(value) or value < least:
            raise must_be(what, f"a whole number of at least {least}", value, f"Write for example {what}={1000 * least}.")
    if not hidden or not all(is_whole(width) and width > 0 for width in hidden):
        raise must_be("hidden", "the width of one layer or more", list(hidden), f"Write for example {list(HIDDEN)}.")
    settings = {**LEARNING, "buffer_size": steps, **(learning or {})}
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise must_be("folder", "one that can be made", str(place), f"{error.strerror}: name another.") from error
    with one_thread():
        values = _learned(environment, steps, seed, hidden, settings, on_step)
        generator, counts = torch.Generator().manual_seed(seed), {"train": states, "validation": held, "test": held}
        met = {
            role: record(greedy(values), first, counts[role], environment=environment, generator=generator)
            for role, first in RECORDED_FROM.items()
        }
        model = as_logits(values, met["train"])
        drives = Return(environment, episodes, met["train"].shape[1]).drives(model)
    always = {
        name: drive(constant(number), drives.seeds.tolist(), environment=environment)
        for number, name in enumerate(drives.names)
    }
    about = {
        "format": FORMAT,
        "environment": environment,
        "actions": list(drives.names),
        "hidden": list(hidden),
        "steps": steps,
        "seed": seed,
        "learning": settings,
        "explored": EXPLORED,
        "recorded_from": RECORDED_FROM,
        "teacher": figures(drives),
        "constant": {name: figures(found) for name, found in always.items()},
        "versions": {package: version(package) for package in ("gymnasium", "stable-baselines3", "torch")},
    }
    with torch.inference_mode():
        tensors = {f"{role}.actions": model(rows).argmax(1) for role, rows in met.items()}
    (place / STATES).write_bytes(save({**tensors, **{f"{role}.states": rows for role, rows in met.items()}}))
    (place / WEIGHTS).write_bytes(packed(model))
    (place / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Taught(place, model, drives, always)


def record(policy: Policy, first: int, states: int, *, environment: str = ENVIRONMENT, generator: torch.Generator) -> Tensor:
    """Return observations (states, D) that `policy` meets where one action in ten is random.

    Args:
        policy: As of `drive`.
        first: Seed of the first episode; the next ones have the next numbers.
        states: How many; drives are made until there are so many.
        environment: As of `drive`.
        generator: Draws the random actions.
    Raises:
        InputError, MissingExtraError: As `drive`.
    """
    met: list[Tensor] = []
    actions = int(made(environment).action_space.n)

    def explore(rows: Tensor) -> Tensor:
        met.append(rows)
        drawn = torch.randint(actions, (len(rows),), generator=generator)
        return torch.where(torch.rand(len(rows), generator=generator) < EXPLORED, drawn, policy(rows))

    while sum(map(len, met)) < states:
        drive(explore, range(first, first + AT_ONCE), environment=environment)
        first += AT_ONCE
    return torch.cat(met)[:states]


def as_logits(values: nn.Sequential, states: Tensor) -> nn.Sequential:
    """Return a network of the actions' values as one of logits; the largest stays the largest.

    Values are nearly the same for all actions, and mostly tell how well things stand: a smaller model that learned them would
    spend itself on that. So their mean over the actions is taken off, and they are told in units of the median lead of the
    best action over the second. Both go into the last layer. What a divergence then weighs is which action is taken.

    Args:
        values: Ends in a linear layer; answers states by (N, A).
        states: (N, D), to read the leads on.
    Raises:
        InputError: The last layer is another.
    """
    made = copy.deepcopy(values)
    last = made[-1]
    if not isinstance(last, nn.Linear):
        raise must_be("values", "a network that ends in a linear layer", type(last).__name__, "Take off what follows it.")
    with torch.no_grad():
        best = values(states).topk(2, dim=1).values
        lead = (best[:, 0] - best[:, 1]).median().clamp_min(1e-6)
        last.weight.copy_((last.weight - last.weight.mean(0)) / lead)
        last.bias.copy_((last.bias - last.bias.mean()) / lead)
    return made.eval()


def figures(drives: Drives) -> dict[str, Any]:
    """Return what drives tell, as plain JSON data."""
    readings = {name: as_data(reading) for name, reading in drives.readings().items()}
    return {**readings, "actions": drives.shares, "sentence": drives.sentence()}


def _learned(
    environment: str, steps: int, seed: int, hidden: Sequence[int], settings: Mapping[str, Any], listen: Listener | None
) -> nn.Sequential:
    """Return a network of the actions' values for flat observations, learned by deep Q-learning."""
    world = made(environment)
    if importlib.util.find_spec("stable_baselines3") is None:
        raise missing_extra("stable-baselines3", "driving")
    from stable_baselines3 import DQN

    def told(local: Mapping[str, Any], _: Mapping[str, Any]) -> bool:
        if listen is not None:
            listen(local["self"].num_timesteps, steps)
        return True

    with _private():
        try:
            learner = DQN("MlpPolicy", world, policy_kwargs={"net_arch": list(hidden)}, seed=seed, device="cpu", **settings)
        except (TypeError, ValueError, AssertionError) as error:
            remedy = "See its settings in the documentation of Stable-Baselines3."
            raise must_be("learning", "settings of Stable-Baselines3's DQN", f"{dict(settings)} ({error})", remedy) from error
        learner.learn(steps, callback=told)
    world.close()
    found = learner.q_net.q_net
    found.requires_grad_(False)
    return found.eval()


@contextmanager
def _private() -> Iterator[None]:
    """Leave the global generators as they were found: Stable-Baselines3 seeds all of them."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
