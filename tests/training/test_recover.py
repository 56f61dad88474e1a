"""Distillation: it recovers, resumes to the same curve, and leaves its arguments alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import EquipoiseError, InputError, StoreError
from equipoise.training import Progress, Recipe, Trained, fit, recover
from equipoise.training import checkpoint as saved
from equipoise.training.blend import blended
from equipoise.training.outputs import Answer
from equipoise.workloads.divergence import Divergence


@dataclass(frozen=True)
class Toy:
    """256 points of a 3-class problem, read like a split."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self)) if shuffle_with is None else torch.randperm(len(self), generator=shuffle_with)
        for start in range(0, len(self) - size + 1, size):
            chosen = order[start : start + size]
            yield self.inputs[chosen], self.targets[chosen]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = Divergence("softmax")
distill = partial(recover.distill, divergence=LABELS)


def net(seed: int, *, dropout: float = 0.0, outputs: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, outputs))


@pytest.fixture
def data() -> Toy:
    inputs = torch.randn(256, 4, generator=generator(1))
    return Toy(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def noise(inputs: Tensor, source: torch.Generator) -> Tensor:
    return inputs + 0.05 * torch.randn(inputs.shape, generator=source)


def disagreement(student: nn.Module, teacher: nn.Module, data: Toy) -> float:
    with torch.no_grad():
        return LABELS.between(teacher(data.inputs), student(data.inputs))


RECIPES = [
    Recipe(batch=32, lr=1e-2),
    Recipe(batch=32, lr=5e-2, optimizer="sgd", schedule="cosine", temperature=4, weight_decay=5e-4, clip=None),
    Recipe(batch=32, lr=1e-2, schedule="constant", frozen_norm=True, hard_weight=0.1, channels_last=True),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=["adamw", "sgd", "frozen"])
def test_student_comes_closer_to_its_teacher(data: Toy, recipe: Recipe) -> None:
    student, teacher = net(3).eval(), net(4).eval()
    done = distill(student, teacher, data, steps=120, recipe=recipe, augment=noise, generator=generator())
    assert disagreement(done.model, teacher, data) < 0.2 * disagreement(student, teacher, data)
    assert done.steps == len(done.log) == 120
    assert not done.model.training


def test_arguments_are_left_alone(data: Toy) -> None:
    student, teacher = net(3, dropout=0.5).train(), net(4, dropout=0.5).train()
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    state = torch.get_rng_state()
    distill(student, teacher, data, steps=3, recipe=Recipe(batch=32), generator=generator())
    for model, kept in zip((student, teacher), before, strict=True):
        assert model.training
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Killed(Exception):
    """Stands for a kill between two steps."""


def kill_at(step: int):
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("recipe", RECIPES, ids=["adamw", "sgd", "frozen"])
@pytest.mark.parametrize("at", [1, 8, 11, 20])  # 8 steps are one epoch
def test_resumed_run_gives_the_same_curve(data: Toy, recipe: Recipe, at: int, tmp_path: Path) -> None:
    def leg(checkpoint: Path | None, on_step=None):
        return distill(
            net(3, dropout=0.2),
            net(4),
            data,
            steps=24,
            recipe=recipe,
            augment=noise,
            generator=generator(7),
            checkpoint=checkpoint,
            every_s=0.0,
            on_step=on_step,
        )

    whole, path = leg(None), tmp_path / "leg.safetensors"
    with pytest.raises(Killed):
        leg(path, kill_at(at))
    resumed = leg(path)
    assert resumed.log == pytest.approx(whole.log, abs=1e-6)
    for key, value in whole.model.state_dict().items():
        assert torch.allclose(resumed.model.state_dict()[key], value, atol=1e-6), key
    again = leg(path)  # the finished file answers at once
    assert again.log == resumed.log
    assert again.seconds == resumed.seconds


def test_control_another_seed_gives_another_curve(data: Toy) -> None:
    runs = [distill(net(3), net(4), data, steps=5, recipe=Recipe(batch=32), generator=generator(seed)) for seed in (0, 1)]
    assert runs[0].log != pytest.approx(runs[1].log, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"recipe": Recipe(batch=32, lr=0.5)}, {"steps": 30}, {"student": net(9)}, {"generator": generator(8)}],
    ids=lambda change: next(iter(change)),
)
def test_checkpoint_of_another_run_is_refused(data: Toy, change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "leg"
    first: dict[str, object] = {
        "student": net(3),
        "teacher": net(4),
        "data": data,
        "steps": 4,
        "recipe": Recipe(batch=32),
        "generator": generator(),
        "checkpoint": path,
    }
    distill(**first)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one of this same run"):
        distill(**{**first, "generator": generator(), **change})  # type: ignore[arg-type]


def test_damaged_checkpoint_is_told(data: Toy, tmp_path: Path) -> None:
    path = tmp_path / "leg"
    distill(net(3), net(4), data, steps=2, recipe=Recipe(batch=32), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="Delete it"):
        distill(net(3), net(4), data, steps=2, recipe=Recipe(batch=32), checkpoint=path)


def test_unwritable_checkpoint_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="writable"):
        saved.write(tmp_path / "missing" / "leg", {"a": torch.zeros(2)}, {})
    folder = tmp_path / "leg"
    folder.mkdir()
    with pytest.raises(StoreError, match="writable"):
        saved.write(folder, {"a": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == [folder]


def test_seconds_end_the_run(data: Toy) -> None:
    done = distill(net(3), net(4), data, seconds=0.2, recipe=Recipe(batch=32))
    assert done.steps >= 1
    assert done.seconds >= 0.2


def test_features_are_compared(data: Toy) -> None:
    """With no weight on the outputs only the feature term can move the first layer toward the teacher's."""
    student, teacher = net(3).eval(), net(4).eval()
    recipe = Recipe(batch=32, lr=1e-2, soft_weight=0.0, weight_decay=0.0, frozen_norm=True)

    def gap(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model[0](data.inputs), teacher[0](data.inputs)))

    as_module = distill(student, teacher, data, steps=60, recipe=recipe, features=["0"])
    assert gap(as_module.model) < 0.5 * gap(student)

    def call(inputs: Tensor):
        return teacher(inputs).numpy(), [teacher[0](inputs).numpy()]

    as_call = distill(student, call, data, steps=60, recipe=recipe, features=["0"])
    assert as_call.log == pytest.approx(as_module.log, abs=1e-6)
    with pytest.raises(InputError, match="teacher features must be 1"):
        distill(student, lambda x: teacher(x), data, steps=1, features=["0"], recipe=recipe)
    with pytest.raises(InputError, match="student feature must be one of"):
        distill(student, teacher, data, steps=1, features=["zero"])
    with pytest.raises(InputError, match="of the teacher's shape"):
        distill(student, teacher, data, steps=1, features=[("0", "4")], recipe=recipe)


def test_regression_learns_values(data: Toy) -> None:
    teacher = net(4, outputs=1).eval()
    values = Toy(data.inputs, data.targets.float())
    recipe = Recipe(batch=32, lr=1e-2)
    done = distill(net(3, outputs=1), teacher, values, steps=150, recipe=recipe, divergence=Divergence("values"))
    with torch.no_grad():
        assert F.mse_loss(done.model(data.inputs), teacher(data.inputs)) < 0.2 * teacher(data.inputs).var()


def test_hook_sees_the_run_go_by(data: Toy) -> None:
    seen: list[float] = []
    distill(net(3), net(4), data, steps=4, recipe=Recipe(batch=32), before_step=lambda model, done: seen.append(done))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_diverged_loss_names_the_step(data: Toy) -> None:
    with pytest.raises(EquipoiseError, match="at step 1") as caught:
        fit(net(3), data, loss=lambda outputs, targets: outputs.sum() * math.nan, steps=3, recipe=Recipe(batch=32))
    assert caught.value.exit_code == 1


def test_fit_learns_labels(data: Toy) -> None:
    model = net(3)
    done = fit(model, data, loss=F.cross_entropy, epochs=15, recipe=Recipe(batch=32, lr=1e-2))
    assert (done.model(data.inputs).argmax(1) == data.targets).float().mean() > 0.9
    assert done.steps == 120
    assert done.log[-1] < done.log[0]


def test_length_and_data_must_be_given(data: Toy) -> None:
    with pytest.raises(InputError, match="steps=200"):
        fit(net(3), data, loss=F.cross_entropy)
    with pytest.raises(InputError, match="steps must be a whole number above 0"):
        fit(net(3), data, loss=F.cross_entropy, steps=0)
    with pytest.raises(InputError, match="at least one sample"):
        fit(net(3), Toy(torch.empty(0, 4), torch.empty(0)), loss=F.cross_entropy, steps=2)
    with pytest.raises(InputError, match="trainable"):
        fit(nn.ReLU(), data, loss=F.cross_entropy, steps=2)


def test_recipe_reports_all_mistakes_together() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(optimizer="adamww", lr=-1, temperature=math.nan, clip=0)  # type: ignore[arg-type]
    text = str(caught.value)
    assert all(name in text for name in ("optimizer", "Did you mean 'adamw'", "recipe.lr", "temperature", "clip"))


def test_schedules_by_hand() -> None:
    line = Recipe(lr=1.0, warmup=0)
    assert [line.lr_at(9, f) for f in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    wave = Recipe(lr=1.0, warmup=0, schedule="cosine")
    assert [wave.lr_at(9, f) for f in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert Recipe(lr=1.0, warmup=3, schedule="constant").lr_at(0, 0.0) == 0.25
    assert Recipe(lr=1.0, warmup=3, schedule="constant").lr_at(3, 0.0) == 1.0


def test_student_and_teacher_meet_where_the_student_lies(data: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that computes shapes alone: nothing of the loss is left on the host."""
    seen: list[tuple[str, str]] = []

    def one_loss(model: nn.Module, batches: Any, objective: Any, recipe: Recipe, source: Any, plan: Any) -> Trained:
        inputs, targets = (part.to("meta") for part in next(batches.batches(8)))
        seen.append((plan.distribution.device.type, objective(model, inputs, targets).device.type))
        return Trained(model, (), 0.0, 0)

    monkeypatch.setattr("equipoise.training.recover.run", one_loss)
    monkeypatch.setattr("equipoise.training.recover.fingerprint", lambda model: "")
    monkeypatch.setattr("equipoise.training.recover.answer_of", lambda model, inputs: Answer())
    for kind in ("softmax", "values"):
        recover.distill(net(0).to("meta"), net(1), data, divergence=Divergence(kind), steps=1, features=["0"])
        recover.distill(
            net(0).to("meta"), lambda inputs: torch.zeros(len(inputs), 3), data, divergence=Divergence(kind), steps=1
        )
    assert seen == [("meta", "meta")] * 4


def test_more_seconds_go_on_from_a_run_that_seconds_ended(data: Toy, tmp_path: Path) -> None:
    path, recipe = tmp_path / "leg", Recipe(batch=32)
    first = distill(net(3), net(4), data, seconds=0.2, recipe=recipe, checkpoint=path)
    same = distill(net(3), net(4), data, seconds=0.2, recipe=recipe, checkpoint=path)
    more = distill(net(3), net(4), data, seconds=0.6, recipe=recipe, checkpoint=path)
    assert same.steps == first.steps
    assert more.steps > first.steps
    assert more.seconds >= 0.6


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_each_sample_is_in_part_another(share: float) -> None:
    rows = {"a": torch.eye(40), "b": 2 * torch.eye(40)[:, :, None], "flag": True}
    found = blended(None, share)(rows, generator())
    own = found["a"].diagonal()
    assert 1 - share <= float(own.min()) < 1 - 0.8 * share
    assert float(own.mean()) == pytest.approx(1 - share / 2, abs=0.1)
    torch.testing.assert_close(found["a"].sum(1), torch.ones(40))
    assert int((found["a"] > 0).sum(1).max()) == 2
    torch.testing.assert_close(found["b"][:, :, 0], 2 * found["a"])
    assert found["flag"] is True
    again = blended(lambda given, _: {**given, "a": 3 * given["a"]}, share)(rows, generator())
    torch.testing.assert_close(again["a"], 3 * found["a"])


def test_the_teacher_answers_for_the_blends(data: Toy) -> None:
    asked, teacher = list[Tensor](), net(4).eval()

    def answers(inputs: Tensor) -> Tensor:
        asked.append(inputs)
        return teacher(inputs)  # type: ignore[no-any-return]

    distill(net(3), answers, data, steps=3, recipe=Recipe(batch=32, mix=0.5))
    assert (torch.cdist(asked[-1], data.inputs).min(1).values > 1e-3).float().mean() > 0.8, "hardly any is as it was"


def test_tokens_do_not_blend() -> None:
    ids = torch.randint(0, 5, (64, 6), generator=generator())
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(24, 3))
    with pytest.raises(InputError, match=r"recipe.mix must be 0 where inputs are int64"):
        distill(model, model, Toy(ids, ids[:, 0] % 3), steps=1, recipe=Recipe(batch=32, mix=0.5))
    with pytest.raises(InputError, match=r"recipe.mix must be from 0 to 0.5"):
        Recipe(mix=0.6)


def test_a_checkpoint_of_another_teacher_or_of_other_free_weights_is_refused(data: Toy, tmp_path: Path) -> None:
    path, recipe = tmp_path / "leg", Recipe(batch=32)
    done = distill(net(3), net(4), data, steps=3, recipe=recipe, checkpoint=path)
    assert distill(net(3), net(4), data, steps=3, recipe=recipe, checkpoint=path).log == done.log
    with pytest.raises(InputError, match="checkpoint"):
        distill(net(3), net(5), data, steps=3, recipe=recipe, checkpoint=path)
    held = net(3)
    held[0].requires_grad_(False)
    with pytest.raises(InputError, match="checkpoint"):
        distill(held, net(4), data, steps=3, recipe=recipe, checkpoint=path)


def test_what_only_fit_can_do_is_refused_and_what_both_can_is_done(data: Toy) -> None:
    with pytest.raises(InputError, match=r"recipe.patience must be None"):
        distill(net(3), net(4), data, steps=3, recipe=Recipe(batch=32, patience=2))
    hard = Recipe(batch=32, soft_weight=0.0, hard_weight=1.0)
    plain, spread = (distill(net(3), net(4), data, steps=1, recipe=replace(hard, label_smoothing=s)).log[0] for s in (0.0, 0.9))
    assert spread != pytest.approx(plain, rel=0.01)
