"""How far outputs are from others, against the definitions: labels, yes-or-no scores, values, sequences with padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from many_inputs import VOCABULARY, sentences
from torch import Tensor, nn

from equipoise.training import Recipe, distill
from equipoise.workloads import Workload
from equipoise.workloads import divergence as module
from equipoise.workloads.divergence import KINDS, Divergence, Kind

softmax = Divergence("softmax")


def damage(reference: Any, outputs: Any, divergence: Divergence) -> float:
    return divergence.between(reference, outputs)


def test_kl_against_the_definition() -> None:
    ours, theirs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    p, q = torch.softmax(theirs / 3, 1), torch.softmax(ours / 3, 1)
    expected = 9 * sum(float(p[i, j] * (p[i, j] / q[i, j]).log()) for i in range(5) for j in range(3)) / 5
    assert float(softmax.loss(ours, theirs, temperature=3)) == pytest.approx(expected)
    assert float(softmax.loss(ours, ours)) == pytest.approx(0, abs=1e-12)
    assert float(softmax.loss(theirs, ours, temperature=3)) != pytest.approx(expected)  # control: the two sides are not alike


def test_single_logit_counts_as_two_classes() -> None:
    ours, theirs = torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.2], [0.5]])
    both = [torch.cat([torch.zeros(2, 1), z], 1) for z in (ours, theirs)]
    found = Divergence("bernoulli").between(theirs, ours)
    assert found == pytest.approx(softmax.between(both[1], both[0]))
    assert found > 0.01


def test_class_scores_are_apart_by_their_distributions() -> None:
    reference, outputs = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(reference, outputs + 3.0, Divergence("softmax")) == pytest.approx(expected)  # logits may be shifted
    assert damage(reference, reference, Divergence("softmax")) == pytest.approx(0.0)
    assert damage(outputs, reference, Divergence("softmax")) != pytest.approx(expected)  # the direction matters


def test_values_are_apart_by_their_spread() -> None:
    reference = np.array([[0.0], [2.0], [4.0]])
    assert damage(reference, reference + 1.0, Divergence("values")) == pytest.approx(1 / torch.tensor(reference).var().item())
    assert damage(10 * reference, 10 * (reference + 1.0), Divergence("values")) == pytest.approx(
        damage(reference, reference + 1.0, Divergence("values"))
    )


def test_yes_or_no_outputs_count_each_on_its_own() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    reference, outputs = np.array([[logit(0.5), logit(0.9)]]), np.array([[logit(0.25), logit(0.9)]])
    expected = 0.5 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))  # the other output is the same: a mean of two
    several = Divergence("bernoulli")
    assert damage(reference, outputs, several) == pytest.approx(expected)
    assert damage(reference, reference + 3.0, several) > 0.1  # a shift is seen, as softmax would not
    assert damage(reference, reference + 3.0, Divergence("softmax")) == pytest.approx(0.0)
    chances = (np.array([[0.5, 0.9]]), np.array([[0.25, 0.9]]))
    assert damage(*chances, Divergence("bernoulli", probabilities=True)) == pytest.approx(expected)


def test_probabilities_are_not_squashed_twice() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(p, q, Divergence("softmax", probabilities=True)) == pytest.approx(expected)
    assert damage(p, q, Divergence("softmax")) != pytest.approx(expected, rel=0.1)  # control
    assert damage(np.log(p), np.log(q), Divergence("softmax")) == pytest.approx(expected)
    sure = damage(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), Divergence("softmax", probabilities=True))
    assert 10 < sure < math.inf


def test_each_value_counts_in_its_own_spread() -> None:
    reference = np.array([[0.0, 0.0, 7.0], [1.0, 1000.0, 7.0], [2.0, 2000.0, 7.0]])  # the last never moves
    values = Divergence("values")
    small, large = (damage(reference, reference + np.array(by), values) for by in ([1.0, 0, 0], [0, 1000.0, 0]))
    assert small == pytest.approx(large) == pytest.approx(1 / 3)
    assert damage(reference, reference + np.array([0, 0, 1.0]), values) < 1e-6


def test_the_classes_are_found_where_they_lie() -> None:
    draw = np.random.default_rng(0)
    reference, outputs = draw.normal(size=(3, 4, 5)), draw.normal(size=(3, 4, 5))
    last = damage(reference, outputs, Divergence("softmax", axis=2))
    assert last == pytest.approx(damage(reference.swapaxes(1, 2), outputs.swapaxes(1, 2), Divergence("softmax")))
    assert last != pytest.approx(damage(reference, outputs, Divergence("softmax")))


class Tagger(nn.Module):
    """A score of each class for every token (N, LENGTH, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores: Tensor = self.head(self.token(input_ids))
        return scores


def tagged(count: int, seed: int, ignored: int | None) -> tuple[dict[str, Tensor], Tensor]:
    inputs, _ = sentences(count, seed=seed)
    targets = inputs["input_ids"] * 3 // VOCABULARY
    return inputs, targets if ignored is None else torch.where(inputs["attention_mask"] > 0, targets, ignored)


@pytest.mark.parametrize("ignored", [None, -100])
def test_padding_does_not_count(ignored: int | None) -> None:
    """Told by the attention mask, or by the label that is not judged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tagger()
    metric = "accuracy"
    work = Workload(model=net, train=tagged(60, 1, ignored), test=tagged(30, 2, ignored), metric=metric, ignore_label=ignored)
    meaning = work.divergence
    assert (meaning.kind, meaning.axis, meaning.masked) == ("softmax", 2, True)
    inputs, targets = work.validation.tensors()
    kept = meaning.kept(inputs, targets)
    assert kept is not None
    assert torch.equal(kept, inputs["attention_mask"] > 0)
    with torch.no_grad():
        reference = work.model(**inputs)
    padding = torch.where(kept[..., None], reference, reference + torch.randn(reference.shape) * 10)
    assert meaning.between(reference, padding, kept=kept) == pytest.approx(0.0, abs=1e-9)
    assert meaning.between(reference, padding) > 0.1  # control: it is another answer, had the padding counted
    other = reference + torch.linspace(-1, 1, 3)
    p, q = (F.log_softmax(values.double(), 2)[kept] for values in (reference, other))
    assert meaning.between(reference, other, kept=kept) == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-6)


def test_a_student_is_not_taught_padding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = Tagger().eval(), Tagger()

    class Wild(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            noise = 100 * torch.sin(torch.arange(3.0) + input_ids[..., None])
            return torch.where(attention_mask[..., None] > 0, teacher(input_ids, attention_mask), noise)

    work = Workload(model=teacher, train=tagged(60, 1, None), test=tagged(30, 2, None))
    logs = [
        distill(student, guide, work.train, divergence=work.divergence, steps=3, recipe=Recipe(batch=16)).log
        for guide in (teacher, Wild())
    ]
    assert logs[0] == pytest.approx(logs[1])


@pytest.mark.parametrize("case", ["one logit", "several labels", "values"])
def test_what_is_learned_is_what_is_counted(case: str) -> None:
    """Training, the tables and `verify` measure by one thing: the first loss of a run is the distance of its start."""
    columns = 1 if case == "one logit" else 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = nn.Linear(5, columns), nn.Linear(5, columns)
        x = torch.randn(120, 5)
    y = teacher(x).detach() if case == "values" else (teacher(x) > 0).long()
    y = y if columns > 1 else y[:, 0]
    work = Workload(
        model=teacher,
        train=(x[:40], y[:40]),
        validation=(x[40:80], y[40:80]),
        test=(x[80:], y[80:]),
        metric="mse" if case == "values" else "accuracy",
    )
    meaning = work.divergence
    assert meaning.kind == ("values" if case == "values" else "bernoulli")
    inputs, targets = work.train.tensors()
    found = distill(student, teacher, work.train, divergence=meaning, steps=1, recipe=Recipe(batch=40, temperature=1.0)).log[0]
    with torch.no_grad():
        counted = meaning.between(teacher(inputs), student(inputs), kept=meaning.kept(inputs, targets))
    assert found == pytest.approx(counted, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_many_samples_are_read_in_parts(kind: Kind, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of a translation are a gigabyte a split: in doubles all at once they were a dozen."""
    monkeypatch.setattr(module, "PART", 1000)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(207, 5, 3, generator=generator)
    outputs = wanted + 0.3 * torch.randn(wanted.shape, generator=generator)
    kept = torch.rand(len(wanted), 3, generator=generator) < torch.linspace(0, 1, len(wanted))[:, None] if masked else None
    divergence = Divergence(kind)
    whole = float(divergence.loss(outputs.double(), wanted.double(), kept=kept))
    assert divergence.between(wanted, outputs, kept=kept) == pytest.approx(whole, rel=1e-6)
    nothing = torch.zeros(len(wanted), 3, dtype=torch.bool)
    assert divergence.between(wanted, outputs, kept=nothing) == 0.0
