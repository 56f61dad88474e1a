"""eq.distill in one line: the right thing is learned, whatever the outputs mean."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.verbs import compress
from equipoise.verbs.compress import _meaning
from equipoise.workloads import Split

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(1000, 8, generator=SOURCE)


def net(outputs: int, seed: int, width: int = 32, after: nn.Module | None = None) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Linear(8, width), nn.ReLU(), nn.Linear(width, outputs)]
        return nn.Sequential(*parts, *([after] if after else [])).eval()


def scaled(outputs: int) -> nn.Sequential:
    """A teacher of values: offset, and each output in another unit."""
    teacher = net(outputs, 1)
    with torch.no_grad():
        teacher[2].weight.mul_(torch.logspace(0, 2, outputs)[:, None] if outputs > 1 else 10)
        teacher[2].bias.add_(4.0)
    return teacher


def relative(student: nn.Module, teacher: nn.Module) -> list[float]:
    """Root mean square error of each output over its spread."""
    with torch.no_grad():
        ours, theirs = student(X), teacher(X)
    return ((ours - theirs).square().mean(0).sqrt() / theirs.std(0)).tolist()


@pytest.mark.parametrize("kind", [None, "values"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_values_are_learned_from_inputs_alone(outputs: int, kind: Any) -> None:
    teacher = scaled(outputs)
    student = eq.prune(teacher, X[:2], ratio=0.5)
    done = eq.distill(student, teacher, X, seconds=60, steps=400, lr=1e-2, kind=kind)
    assert max(relative(done, teacher)) < 0.3
    assert min(relative(student, teacher)) > 0.4


def test_classes_are_learned_from_inputs_alone() -> None:
    teacher, student = net(4, 1), net(4, 2)
    done = eq.distill(student, teacher, X, seconds=60, steps=400, lr=1e-2)
    assert float((done(X).argmax(1) == teacher(X).argmax(1)).float().mean()) > 0.85


TEACHER, SIGMOID = net(3, 1), net(3, 1, after=nn.Sigmoid())
YES = (TEACHER(X) > 0).long()


@pytest.mark.parametrize(
    ("teacher", "targets", "expected"),
    [
        (TEACHER, TEACHER(X).argmax(1), ("softmax", False)),
        (TEACHER, YES, ("bernoulli", False)),
        (TEACHER, YES.float(), ("bernoulli", False)),
        (SIGMOID, YES, ("bernoulli", True)),
        (TEACHER, TEACHER(X).detach(), ("values", False)),
        (TEACHER, (40 * TEACHER(X)).long(), ("values", False)),
        (net(3, 1, after=nn.Softmax(1)), YES[:, 0], ("softmax", True)),
        (net(1, 1), YES[:, 0], ("bernoulli", False)),
        (net(1, 1), (50 + 9 * X[:, 0]).long(), ("values", False)),
    ],
)
def test_targets_tell_what_outputs_mean(teacher: nn.Module, targets: Tensor, expected: tuple[str, bool]) -> None:
    found = _meaning(teacher, Split.of((X, targets), name="train"), None, None)
    assert (found.kind, found.probabilities) == expected


@pytest.mark.slow
def test_several_labels_are_learned_better_than_by_softmax() -> None:
    teacher, student = net(6, 1), net(6, 2, width=4)
    with torch.no_grad():
        teacher[2].weight.copy_(3 * teacher[2].weight[:1] + 0.1 * teacher[2].weight)  # all labels come together
        wanted = teacher(X) > 0

    def right(kind: Any) -> float:
        done = eq.distill(student, teacher, (X, wanted.long()), seconds=60, steps=300, lr=2e-2, kind=kind)
        return float(((done(X) > 0) == wanted).float().mean())

    assert right(None) == right("bernoulli")
    assert right(None) > right("softmax") + 0.05


def test_nothing_given_is_changed() -> None:
    teacher, student = net(3, 1).train(), net(3, 2).train()
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    eq.distill(student, teacher, X, seconds=60, steps=3)
    for model, kept in zip((teacher, student), before, strict=True):
        assert model.training
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "logit"}, "kind must be one of"),
        ({"temprature": 3.0}, "Did you mean 'temperature'"),
        ({"lr": -1.0}, "recipe.lr must be positive"),
        ({"hard_weight": 0.5}, "hard_weight must be 0 where there are no labels"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eq.distill(net(3, 2), net(3, 1), X, seconds=1, **options)


def test_a_family_and_its_scale_make_a_student_in_one_line() -> None:
    images = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()
    untaught = eq.distill("cnn:width=8,depth=3", teacher, images, seconds=60, steps=1, lr=1e-9)
    done = eq.distill("cnn:width=8,depth=3", teacher, images, seconds=60, steps=150, lr=1e-2)
    with torch.no_grad():
        before, after = ((each(images) - teacher(images)).square().mean() for each in (untaught, done))
    assert after < 0.3 * before
    assert done(images).shape == (200, 3)
    with pytest.raises(InputError, match=r"student must be FAMILY.*Did you mean 'cnn'.*resnet \(width 8 to 64"):
        eq.distill("cnnn", teacher, images)
    with pytest.raises(InputError, match="student must suit the data and the answers of the model; for gpt"):
        eq.distill("gpt", teacher, images)


def test_as_many_steps_as_are_asked_for_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    whole = compress._distill

    @functools.wraps(whole)
    def told(*args: Any, **options: Any) -> Any:
        asked.append((options["seconds"], options.get("steps")))
        return whole(*args, **{**options, "seconds": 0.1})

    monkeypatch.setattr(compress, "_distill", told)
    eq.distill(net(3, 2), net(3, 1), X, steps=3)
    eq.distill(net(3, 2), net(3, 1), X)
    eq.distill(net(3, 2), net(3, 1), X, steps=3, seconds=9)
    assert asked == [(None, 3), (60.0, None), (9, 3)]
