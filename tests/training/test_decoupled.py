"""Decoupled distillation against the formula class by class, and against the plain divergence that it splits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.training.decoupled import decoupled
from equipoise.training.recipe import Recipe
from equipoise.training.recover import _decoupling
from equipoise.workloads.divergence import Divergence

SOURCE = torch.Generator().manual_seed(0)
OURS, THEIRS = (3 * torch.randn(7, 6, generator=SOURCE).double() for _ in range(2))
LABELS = torch.randint(0, 6, (7,), generator=SOURCE)


def by_hand(ours: list[float], theirs: list[float], label: int, temperature: float) -> tuple[float, float, float]:
    """TCKD, NCKD and the teacher's share of the class, as the paper writes them."""
    p, q = ([math.exp(z / temperature) for z in logits] for logits in (theirs, ours))
    pt, qt = p[label] / sum(p), q[label] / sum(q)
    target = pt * math.log(pt / qt) + (1 - pt) * math.log((1 - pt) / (1 - qt))
    others = [i for i in range(len(p)) if i != label]
    ph, qh = ({i: e[i] / sum(e[j] for j in others) for i in others} for e in (p, q))
    return target, sum(ph[i] * math.log(ph[i] / qh[i]) for i in others), pt


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("others", [0.0, 1.0, 8.0])
def test_it_is_the_formula(temperature: float, others: float) -> None:
    rows = [by_hand(a, b, int(c), temperature) for a, b, c in zip(OURS.tolist(), THEIRS.tolist(), LABELS, strict=True)]
    wanted = temperature**2 * sum(t + others * n for t, n, _ in rows) / 7
    found = float(decoupled(OURS, THEIRS, LABELS, temperature=temperature, others=others))
    assert found == pytest.approx(wanted, rel=1e-9)
    wrong = float(decoupled(OURS, THEIRS, (LABELS + 1) % 6, temperature=temperature, others=others))
    assert wrong != pytest.approx(wanted, rel=1e-3)  # the planted wrong answer: another class


def test_its_parts_add_up_to_the_divergence() -> None:
    rows = [by_hand(a, b, int(c), 2.0) for a, b, c in zip(OURS.tolist(), THEIRS.tolist(), LABELS, strict=True)]
    kl = float(Divergence("softmax").loss(OURS, THEIRS, temperature=2.0))
    assert 4 * sum(t + (1 - p) * n for t, n, p in rows) / 7 == pytest.approx(kl, rel=1e-9)


def test_the_same_answers_lose_nothing_and_sure_ones_stay_finite() -> None:
    sure = torch.tensor([[60.0, -60.0, 0.0]]).requires_grad_()
    value = decoupled(sure, torch.tensor([[80.0, 0.0, -80.0]]), torch.tensor([0]), temperature=1.0, others=4.0)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert bool(sure.grad is not None and sure.grad.isfinite().all())
    assert float(decoupled(OURS, OURS, LABELS, temperature=3.0, others=4.0)) == pytest.approx(0, abs=1e-12)


def test_without_labels_the_teachers_class_counts_and_positions_can_be_left_out() -> None:
    own = THEIRS.argmax(-1)
    args = {"temperature": 2.0, "others": 4.0}
    assert torch.equal(decoupled(OURS, THEIRS, torch.zeros(7), **args), decoupled(OURS, THEIRS, own, **args))
    kept = torch.tensor([True, True, False, True, False, True, True])
    labels = LABELS.masked_fill(~kept, -100)
    some = decoupled(OURS[kept], THEIRS[kept], LABELS[kept], **args)
    torch.testing.assert_close(decoupled(OURS, THEIRS, labels, kept=kept, **args), some)


def scores(classes: int) -> Tensor:
    return torch.zeros(2, classes, 3)


@pytest.mark.parametrize(
    ("soft", "classes", "taken"), [("auto", 49, False), ("auto", 50, True), ("kl", 100, False), ("dkd", 3, True)]
)
def test_it_is_taken_from_fifty_classes_on_or_as_asked(soft: str, classes: int, taken: bool) -> None:
    recipe = Recipe(soft=soft)  # type: ignore[arg-type]
    found = _decoupling(Divergence("softmax"), recipe, scores(classes), scores(classes))
    assert (found is not None) == taken
    if found is not None:
        assert found[0].shape == (2, 3, classes)


def test_values_have_no_classes() -> None:
    assert _decoupling(Divergence("values"), Recipe(), scores(99), scores(99)) is None
    with pytest.raises(InputError, match=r"recipe\.soft must be 'kl' or 'auto'"):
        _decoupling(Divergence("values"), Recipe(soft="dkd"), scores(99), scores(99))
    with pytest.raises(InputError, match=r"recipe\.soft.*dkd"):
        Recipe(soft="dk")  # type: ignore[arg-type]


def test_a_student_learns_by_it() -> None:
    def net(seed: int, width: int) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 60)).eval()

    inputs = torch.randn(1000, 8, generator=SOURCE)
    teacher, student = net(0, 64), net(1, 32)
    with torch.no_grad():
        teacher[2].weight.mul_(3)

    def agreement(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(inputs).argmax(1) == teacher(inputs).argmax(1)).float().mean())

    done = eq.distill(student, teacher, (inputs, teacher(inputs).argmax(1)), steps=150, lr=1e-2, kind="softmax", soft="dkd")
    assert agreement(done) > max(0.3, 4 * agreement(student))
