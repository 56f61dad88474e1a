"""Driving as a task: a teacher learned, its states recorded, a smaller model learns them and is judged by what it earns."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import equipoise as eq
from equipoise.built_in import workload_of
from equipoise.errors import InputError
from equipoise.workloads import cautions, check, load, load_task
from equipoise.workloads.driving import Taught, driving_task, train_teacher
from equipoise.workloads.models import mlp
from equipoise.workloads.teacher import ABOUT, STATES, WEIGHTS, as_logits

ROAD = "equipoise.generated.two_lanes:TwoLanes-v0"
QUICK = {
    "learning_starts": 100,
    "exploration_fraction": 0.6,
    "gradient_steps": 1,
    "learning_rate": 2e-3,
    "target_update_interval": 50,
}


def taught(folder: Path, *, steps: int = 1000, states: int = 600, seed: int = 0) -> Taught:
    return train_teacher(
        folder, environment=ROAD, steps=steps, states=states, held=100, episodes=20, hidden=(32, 32), learning=QUICK, seed=seed
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return taught(tmp_path_factory.mktemp("road") / "teacher")


def test_the_teacher_drives_rather_than_brakes(teacher: Taught) -> None:
    earned = {name: found.readings()["return"].get() for name, found in teacher.constants.items()}
    assert teacher.drives.readings()["return"].get() > 1.5 * max(earned.values())
    assert max(earned, key=earned.__getitem__) == "action 2"  # braking: without a crash, and yet told apart
    assert teacher.drives.shares["action 2"] < 0.5


def test_its_states_are_a_task_and_it_is_the_workload(teacher: Taught) -> None:
    task, work = load_task(f"driving:{teacher.folder}?episodes=20"), load(f"driving:{teacher.folder}?episodes=20")
    assert (task.sample, task.outputs, task.labels) == ((3,), 3, ("action 0", "action 1", "action 2"))
    assert (len(task.train), len(task.validation), len(task.test)) == (600, 100, 100)
    check(work)
    assert work.divergence.kind == "softmax"
    inputs, targets = work.train.tensors()
    assert isinstance(inputs, torch.Tensor)
    with torch.inference_mode():
        assert torch.equal(work.model(inputs).argmax(1), targets)
    assert work.quality() == pytest.approx(teacher.drives.readings()["return"].get())
    assert work.quality(lambda rows: -work.model(rows)) < 6  # a policy of the worst action
    assert json.loads(work.files[ABOUT])["environment"] == ROAD


def test_a_report_is_told_what_constant_policies_earn(teacher: Taught) -> None:
    told = "\n".join(cautions(load(f"driving:{teacher.folder}")))
    assert "two_lanes:TwoLanes-v0, 20 episodes of the validation seeds: the teacher: return" in told
    assert re.search(r"Policies that always do the same: action 0 [\d.]+ \(100 % crash\), .*action 2 4\.80 \(0 % crash\)", told)


def test_a_smaller_model_learns_it(teacher: Taught, tmp_path: Path) -> None:
    spec = f"driving:{teacher.folder}?episodes=20"
    done = eq.train("mlp", spec, {"width": 16}, store=tmp_path / "run", epochs=30, test=True)
    assert done.reached["quality"].unit == "return"
    assert done.reached["quality"].get() > 7  # braking earns 4.8, the other constant policies less
    assert done.classification is not None
    assert done.classification.accuracy > 0.85
    again = workload_of("mlp", spec, done.header["scale"], tmp_path / "run")
    assert load(again).quality() == done.reached["quality"].get()


def test_values_become_logits_of_the_same_actions() -> None:
    generator = torch.Generator().manual_seed(0)
    values, states = mlp(3, 8, 4), torch.randn(301, 3, generator=generator)
    with torch.inference_mode():
        before, after = values(states), as_logits(values, states)(states)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert after.mean(1).abs().max() < 1e-5
    best = after.topk(2, dim=1).values
    assert (best[:, 0] - best[:, 1]).median() == pytest.approx(1, abs=1e-4)
    gaps, scaled = (one - one.mean(1, keepdim=True) for one in (before, after))
    assert torch.allclose(scaled, gaps * (scaled.norm() / gaps.norm()), atol=1e-4)  # one factor for all


def test_a_seed_gives_the_same_folder_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    kept = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index, union-attr]
    once, again, other = (
        taught(tmp_path / name, steps=130, states=30, seed=seed) for name, seed in zip("abc", (3, 3, 4), strict=True)
    )
    for file in (STATES, WEIGHTS, ABOUT):
        assert (once.folder / file).read_bytes() == (again.folder / file).read_bytes()
    assert (once.folder / WEIGHTS).read_bytes() != (other.folder / WEIGHTS).read_bytes()
    assert torch.equal(torch.get_rng_state(), kept[0])
    assert np.array_equal(np.random.get_state()[1], kept[1])  # type: ignore[index]
    assert random.getstate() == kept[2]


def test_listeners_hear_of_every_decision(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    train_teacher(
        tmp_path / "a",
        environment=ROAD,
        steps=9,
        states=3,
        held=3,
        episodes=2,
        hidden=(4,),
        on_step=lambda *at: heard.append(at),
    )
    assert heard == [(number, 9) for number in range(1, 10)]


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / STATES)
    change(tensors)
    save_file(tensors, folder / STATES)


def told(folder: Path, **changes: object) -> None:
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / STATES).unlink(), "weights must be an existing file"),
        (lambda folder: (folder / ABOUT).unlink(), "driving must be a folder with states.safetensors and driving.json"),
        (lambda folder: (folder / ABOUT).write_text("{}"), "as train_teacher writes it; got \"KeyError: 'format'"),
        (lambda folder: (folder / ABOUT).write_text("no"), "as train_teacher writes it; got 'JSONDecodeError"),
        (lambda folder: told(folder, format=99), "format must be 1; got 99"),
        (lambda folder: told(folder, actions=["one", "two"]), "numbers of the 2 actions; got 0 to 2"),
        (lambda folder: damaged(folder, lambda held: held.pop("test.states")), r"states \(N, D\) and actions \(N,\) for test"),
        (lambda folder: damaged(folder, lambda held: held.update({"train.actions": torch.zeros(7)})), "actions .N,. for train"),
        (lambda folder: damaged(folder, lambda held: held["train.states"].fill_(torch.nan)), "train inputs must be finite"),
    ],
)
def test_folders_that_cannot_be_read(teacher: Taught, tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    folder = Path(shutil.copytree(teacher.folder, tmp_path / "harmed"))
    harm(folder)
    with pytest.raises(InputError, match=message):
        driving_task(folder)


def test_other_arguments_that_cannot_be_used(teacher: Taught, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="episodes must be at least 2; got 1"):
        load_task(f"driving:{teacher.folder}?episodes=1")
    with pytest.raises(InputError, match="model and weights must be given together"):
        load(f"driving:{teacher.folder}?model=mlp")
    told(folder := Path(shutil.copytree(teacher.folder, tmp_path / "wide")), hidden=[64])
    with pytest.raises(InputError, match="name only tensors of the model"):
        load(f"driving:{folder}")
    for what, value in (("steps", 0), ("states", 2), ("held", 2.5), ("episodes", True)):
        with pytest.raises(InputError, match=f"{what} must be a whole number of at least"):
            train_teacher(tmp_path / "a", environment=ROAD, **{what: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hidden must be the width of one layer or more"):
        train_teacher(tmp_path / "a", environment=ROAD, hidden=())
    with pytest.raises(InputError, match=r"learning must be settings of Stable-Baselines3's DQN; got .*speed"):
        train_teacher(tmp_path / "a", environment=ROAD, steps=5, learning={"speed": 3})


def test_a_folder_of_other_observations_is_told_when_it_drives(teacher: Taught, tmp_path: Path) -> None:
    told(folder := Path(shutil.copytree(teacher.folder, tmp_path / "other")), environment="CartPole-v1")
    with pytest.raises(InputError, match="observations of 3 numbers; got 'CartPole-v1: 4 numbers'"):
        load(f"driving:{folder}").quality()


@pytest.mark.slow
def test_the_whole_road_is_walked(teacher: Taught, tmp_path: Path) -> None:
    spec = f"driving:{teacher.folder}?episodes=20"
    study = eq.optimize(spec, budget="drop<=1", time="15s", store=tmp_path / "study")
    best = study.best
    assert best.quality.n == 20
    assert best.drop.note.startswith("paired")
    found = eq.verify(study.export("best", out=tmp_path / "artifact"), workload=load(spec))
    assert {check.name: check for check in found.checks}["quality on validation"].state == "kept"
    assert found.ok
    assert isinstance(load(spec).model, nn.Sequential)
