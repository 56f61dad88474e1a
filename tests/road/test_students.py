"""Which scales of a family are offered beside a trained model, and what a bad request is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from equipoise.compress.technique import Draft
from equipoise.errors import InputError
from equipoise.measure.counts import count
from equipoise.records import Plan
from equipoise.road import training
from equipoise.road.bench import Workbench
from equipoise.road.students import SCALES, students
from equipoise.road.training import ATTENDING, FOLDED, FRESH, WITH_NORM, recipe_for
from equipoise.road.walk import optimize
from equipoise.runtimes import Target
from equipoise.training.normalize import Normed
from equipoise.workloads import Workload
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape


@pytest.fixture(scope="module")
def work() -> Workload:
    """A ResNet-8 for images of noise."""
    shape, source = Shape((3, 16, 16), 4), torch.Generator().manual_seed(0)
    net = family("resnet").model({"depth": 8}, shape, generator=source).eval()
    x, y = torch.randn(90, 3, 16, 16, generator=source), torch.arange(90) % 4
    return Workload(model=net, train=(x[:30], y[:30]), validation=(x[30:60], y[30:60]), test=(x[60:], y[60:]))


def test_the_scales_are_cheaper_than_the_model_and_spread_over_its_cost(work: Workload) -> None:
    found = students("cnn", work)
    counts = [count(make(), work.example) for make in found.values()]
    whole = count(work.model, work.example)
    assert 2 <= len(found) <= SCALES
    assert [c.macs for c in counts] == sorted((c.macs for c in counts), reverse=True)
    assert all(c.macs < whole.macs or c.params < whole.params for c in counts)
    assert counts[-1].macs < 0.3 * whole.macs
    assert {tuple(make()(work.example).shape) for make in found.values()} == {(len(work.example), 4)}


def test_a_scale_that_is_named_is_the_only_one(work: Workload) -> None:
    (name,) = students("cnn:width=64,depth=3", work)
    assert name == "cnn:width=64,depth=3,kernel=3,resolution=1"  # larger than the model, as was asked
    (again,) = students(name, work)
    assert again == name


def test_what_cannot_be_a_student_is_told(work: Workload, tmp_path) -> None:
    with pytest.raises(InputError, match="student must suit the data"):
        students("bag", work)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net(width=8):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, width))\n"
    )
    with pytest.raises(InputError, match="answers in the model's shape"):
        students(f"{tmp_path}/mine.py:net", work)
    tiny = Workload(model=Tiny().eval(), train=work.train, validation=work.validation, test=work.test)
    with pytest.raises(InputError, match="scale that is cheaper than the model"):
        students("mobilenet", tiny)


class Tiny(nn.Module):
    """One small layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 4)."""
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


def test_a_bad_request_is_refused_before_any_work(work: Workload, tmp_path) -> None:
    for bad, told in (("cnnn", "Did you mean 'cnn'"), ("cnn:width=7", "multiple of 8"), (3, "name of a family")):
        with pytest.raises(InputError, match=told):
            optimize(work, student=bad, time=1, store=tmp_path / "study")
    with pytest.raises(InputError, match="left out where nothing is trained"):
        optimize(work, student="cnn", recovery=False, time=1, store=tmp_path / "study")
    assert not (tmp_path / "study" / "study.db").exists()


def test_a_new_model_has_a_recipe_of_its_own(work: Workload) -> None:
    assert recipe_for(work.model, work.example, new=True) is FRESH
    assert recipe_for(work.model, work.example, new=False) == WITH_NORM


def test_large_inputs_are_trained_on_few_at_a_time_at_a_smaller_rate(work: Workload) -> None:
    photographs = recipe_for(work.model, torch.zeros(1, 3, 160, 160), new=False)
    assert (photographs.batch, photographs.lr) == (32, pytest.approx(0.0253, abs=1e-4))
    assert 32 < recipe_for(work.model, torch.zeros(1, 3, 96, 96), new=False).batch < WITH_NORM.batch


def test_what_lost_little_is_trained_at_a_small_rate(work: Workload) -> None:
    rates = [recipe_for(work.model, work.example, new=False, lost=lost).lr for lost in (0.0, 0.04, 0.25, 1.0, 3.0)]
    assert rates == pytest.approx([WITH_NORM.lr * share for share in (0.1, 0.2, 0.5, 1.0, 1.0)])


def test_a_new_model_is_trained_with_its_own_norms_first_and_folded_as_it_was_built(
    work: Workload, tmp_path, monkeypatch
) -> None:
    seen: list[nn.Module] = []

    def spy(student: nn.Module, *args: object, **options: object):
        seen.append(student)
        return distill(student, *args, **options)

    distill = training.distill
    monkeypatch.setattr(training, "distill", spy)
    name = "cnn:width=8,depth=3,kernel=3,resolution=1"
    bench, plan = Workbench(work, (Target("onnxruntime"),), lambda _: "", shapes=True, student=name), Plan({"student": name})
    bench.__dict__["answers"] = work.model
    draft = bench.build(plan)
    first = training.train(bench, plan, draft, seconds=0.5, checkpoint=tmp_path / "a", leg=1, seed=0).model
    second = training.train(
        bench, plan, replace(draft, model=first), seconds=0.5, checkpoint=tmp_path / "b", leg=2, seed=0
    ).model
    assert sum(isinstance(part, nn.BatchNorm2d) for part in seen[0].modules()) == 3
    assert sum(isinstance(part, Normed) for part in seen[1].modules()) == 3
    wanted = {key: value.shape for key, value in draft.model.state_dict().items()}
    for made in (first, second):
        assert {key: value.shape for key, value in made.state_dict().items()} == wanted
        assert not made.training
    assert not torch.allclose(first(work.example), draft.model(work.example))
    assert not torch.allclose(first(work.example), second(work.example))


def test_what_another_recipe_left_half_trained_is_not_gone_on_from(work: Workload, tmp_path, monkeypatch) -> None:
    name = "cnn:width=8,depth=3,kernel=3,resolution=1"
    bench, plan = Workbench(work, (Target("onnxruntime"),), lambda _: "", shapes=True, student=name), Plan({"student": name})
    bench.__dict__["answers"] = work.model
    draft = bench.build(plan)

    def trained() -> int:
        return training.train(bench, plan, draft, seconds=0.2, checkpoint=tmp_path / "leg", leg=1, seed=0).steps

    assert trained() == trained()  # it stood finished in the file
    monkeypatch.setattr(training, "FRESH", replace(FRESH, batch=16))
    assert trained() > 0  # of a release with other steps: once an error, and the plan was lost
    assert len(list(tmp_path.glob("leg-*"))) == 2


@pytest.mark.parametrize(("classes", "temperature"), [(10, FOLDED.temperature), (499, FOLDED.temperature), (500, 1.0)])
def test_answers_among_many_classes_are_not_softened(classes: int, temperature: float, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, classes)).eval(), torch.randn(60, 4)
    parts = {role: (x[i : i + 20], torch.arange(20) % 10) for i, role in ((0, "train"), (20, "validation"), (40, "test"))}
    bench = Workbench(Workload(model=net, **parts), (Target("onnxruntime"),), lambda _: "", shapes=True)
    bench.__dict__["answers"] = net
    seen: list[float] = []
    distill = training.distill
    monkeypatch.setattr(
        training, "distill", lambda *args, **options: seen.append(options["recipe"].temperature) or distill(*args, **options)
    )
    training.train(bench, Plan({}), Draft(net), seconds=0.1, checkpoint=tmp_path / "leg", leg=1, seed=0)
    assert seen == [temperature]


class InParts(nn.Module):
    """Attention written out, as a user's own code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 4) of rows (N, L, 8)."""
        q, k, v = self.heads(x).chunk(3, -1)
        scores: torch.Tensor = self.out(((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1))
        return scores


def test_a_model_with_attention_is_taught_by_what_it_lost_however_it_is_written() -> None:
    rows, source = torch.randint(1, 40, (2, 24)), torch.Generator().manual_seed(0)
    made = {name: family(name).model({}, Shape((24,), 3, 40), generator=source).eval() for name in ("encoder", "textcnn")}
    rates = [recipe_for(made["encoder"], rows, new=False, lost=lost).lr for lost in (0.0, 0.08, 0.15, 0.3, 3.0, None)]
    assert rates == pytest.approx([ATTENDING.lr * share for share in (1 / 9, 1 / 9, 1 / 4, 1.0, 1.0, 1.0)])
    wide = family("encoder").model({"width": 384}, Shape((24,), 3, 40), generator=source).eval()
    assert recipe_for(wide, rows, new=False).lr == pytest.approx(ATTENDING.lr / 3)
    assert recipe_for(InParts(), torch.randn(2, 5, 8), new=False) == ATTENDING
    assert recipe_for(made["textcnn"], rows, new=False) is FOLDED
    ending = nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1))  # a softmax is no attention
    assert recipe_for(ending, torch.randn(2, 8), new=False) is FOLDED
