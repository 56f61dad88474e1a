"""Single changes read by the prober, against whole builds, whole passes and planted answers."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))

from nets import TextEncoder, made

from equipoise.compress.blocks import drop
from equipoise.compress.builder import Builder
from equipoise.compress.cut import sliced
from equipoise.compress.fakequant import rounded, simulate
from equipoise.compress.graph import keeping
from equipoise.compress.subject import Subject
from equipoise.records import Plan
from equipoise.road import prober as probing
from equipoise.road.entries import Loss, calibrated, directed, unsure
from equipoise.road.prober import Change, Prober
from equipoise.workloads.meaning import Divergence

LABELS = Divergence("softmax")


@pytest.fixture(scope="module")
def subject() -> Subject:
    model, inputs = made("option_a")
    return Subject.prepare(model, inputs[:4], inputs)


@pytest.fixture
def prober(subject: Subject) -> Prober:
    return prober_of(subject.model, subject.calibration, torch.randn(90, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def prober_of(teacher: nn.Module, calibration: Tensor, inputs: Tensor, divergence: Divergence = LABELS) -> Prober:
    with torch.no_grad():
        return Prober(teacher, calibration, inputs, teacher(inputs), divergence)


def narrower(subject: Subject, width: int = 4) -> tuple[str, Change]:
    group = next(group for group in subject.groups if group.prunable)
    keep = keeping(subject.model, subject.groups, {group.name: sorted(subject.orders[group.name][:width])})
    narrowed = {layer: spots for (layer, axis), spots in keep.items() if axis == "out"}
    return group.name, Change(lambda: sliced(subject.model, keep, borrow=True), frozenset(name for name, _ in keep), narrowed)


def shaken(teacher: nn.Module, layer: str, size: float) -> nn.Module:
    other = copy.deepcopy(teacher)
    weight = other.get_submodule(layer).weight
    with torch.no_grad():
        weight.add_(size * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return other


def whole(model: nn.Module, prober: Prober, samples: int) -> float:
    with torch.no_grad():
        found = model(prober.inputs[:samples])
    return prober.divergence.between(prober.reference[:samples].numpy(), found.numpy())


def moved(by: Tensor) -> Change:
    """The model with answers that are off by `by` (N, classes) or (classes,)."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.last = nn.Linear(4, len(by))
            with torch.no_grad():
                self.last.weight.zero_()
                self.last.bias.copy_(by)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.flat(x)[:, :4]) + self.flat(x)[:, : len(self.last.bias)]
            return out

    return Change(lambda: Moved().eval(), None, mended=False)


@pytest.mark.parametrize("kind", ["softmax", "bernoulli", "values"])
def test_losses_of_changes_add_as_vectors_in_what_the_record_keeps_of_them(kind: str) -> None:
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    teacher = moved(torch.zeros(6)).make()
    prober = prober_of(teacher, inputs, inputs, Divergence(kind))
    steps = [0.05 * torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    (a, b), joint = (prober.loss(moved(step)) for step in steps), prober.loss(moved(steps[0] + steps[1]))
    against = prober.loss(moved(-steps[0]))
    one, two, turned = (directed(loss.toward) / np.linalg.norm(directed(loss.toward)) for loss in (a, b, against))
    assert one @ turned == pytest.approx(-1, abs=1e-3)
    crossed = 2 * float(one @ two) * math.sqrt(a.mean * b.mean)
    assert a.mean + b.mean + crossed == pytest.approx(joint.mean, rel=0.06)
    assert abs(joint.mean / (a.mean + b.mean) - 1) > 0.12, "the sum alone is told apart"


def test_a_mask_of_another_form_than_the_answers_leaves_their_direction_as_it_is() -> None:
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    teacher = moved(torch.zeros(6)).make()
    plain, masked = (prober_of(teacher, inputs, inputs) for _ in range(2))
    masked.kept = torch.ones(64, 9, dtype=torch.bool)  # of tokens, where an answer is of the whole text
    change = moved(torch.arange(6) / 50)
    assert masked.loss(change).toward == plain.loss(change).toward != ""


def test_mended_to_the_end_it_is_the_whole_build(subject, prober, monkeypatch) -> None:
    monkeypatch.setattr(probing, "HELD", 0.0)
    monkeypatch.setattr("equipoise.compress.builder.HELD", 0.0)
    name, change = narrower(subject)
    change = replace(change, mending=None)
    built = Builder(subject).build(Plan({f"width.{name}": 4})).model
    assert prober.loss(change, 90).mean == pytest.approx(whole(built, prober, 90), rel=1e-3, abs=1e-7)
    block = next(iter(subject.blocks))
    gone = Change(lambda: drop(subject.model, [subject.blocks[block]]), frozenset({block}), mending=None)
    assert prober.loss(gone, 90).mean == pytest.approx(
        whole(Builder(subject).build(Plan({f"depth.{block}": "drop"})).model, prober, 90), rel=1e-3, abs=1e-7
    )


@pytest.mark.parametrize(("further", "expected"), [(0, ""), (1, "1"), (2, "123"), (3, "1234"), (9, "1234"), (None, "1234")])
def test_layers_in_groups_do_not_count_among_those_mended(further: int | None, expected: str) -> None:
    names = ["0", "1", "2", "3", "4"]
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3)).eval()
    inputs = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = prober_of(model, inputs, inputs)._mending(frozenset({"0"}), further)
    assert [name for name in found if name in names] == ["0", *expected]


def test_mending_near_the_change_is_better_than_none(subject, prober) -> None:
    _, change = narrower(subject)
    bare = Change(change.make, change.layers, change.kept, mended=False)
    assert prober.loss(change, 90).mean < 0.8 * prober.loss(bare, 90).mean


def test_int8_is_simulated_in_ranges_read_once(prober) -> None:
    layer = "layer2.1.conv1"
    change = Change(lambda: rounded(prober.teacher, {layer: prober.ranges[layer]}), frozenset({layer}), mended=False)
    alone = simulate(prober.teacher, prober.calibration, layers={layer})
    assert prober.loss(change, 90).mean == pytest.approx(whole(alone, prober, 90), rel=1e-6)


def test_a_reading_grows_by_what_is_new(prober) -> None:
    made: list[int] = []

    def make() -> nn.Module:
        made.append(1)
        return shaken(prober.teacher, "linear", 0.3)

    change = Change(make, frozenset({"linear"}), mended=False)
    first, second = prober.loss(change, 64), prober.loss(change, 90)
    assert (first.samples, second.samples, len(made)) == (64, 90, 1)
    assert second.mean == pytest.approx(whole(make(), prober, 90), rel=1e-6)
    each = torch.cat(prober._read[id(change)][1])
    assert second.error == pytest.approx(float(np.std(each.numpy(), ddof=1)) / 90**0.5)


@pytest.mark.parametrize("divergence", [LABELS, Divergence("values")])
def test_answers_to_others_tell_how_far_values_spread_and_nothing_else(subject, prober, divergence) -> None:
    change = Change(lambda: shaken(prober.teacher, "conv1", 0.3), None, mended=False)
    longer = prober_of(subject.model, subject.calibration, prober.inputs, divergence)
    alone = prober_of(subject.model, subject.calibration, prober.inputs[:70], divergence)
    longer.inputs = alone.inputs  # 70 samples are a whole batch and a part of one
    read = [some.loss(change, 200) for some in (alone, longer)]
    assert [loss.samples for loss in read] == [70, 70]
    with torch.no_grad():
        found = shaken(prober.teacher, "conv1", 0.3)(alone.inputs).double()
    for loss, some in zip(read, (alone, longer), strict=True):
        spread = divergence.spread(some.reference)
        assert loss.mean == pytest.approx(float(divergence.loss(found, alone.reference.double(), spread=spread)), rel=1e-6)
    assert (read[0].mean == read[1].mean) == (divergence is LABELS)


def test_where_the_layers_are_not_known_the_whole_model_runs(prober) -> None:
    change = Change(lambda: shaken(prober.teacher, "conv1", 0.3), None, mended=False)
    assert prober.loss(change, 90).mean == pytest.approx(whole(shaken(prober.teacher, "conv1", 0.3), prober, 90), rel=1e-6)


def test_students_share_what_they_have_in_common_and_are_bounded(subject, prober) -> None:
    _, change = narrower(subject)
    prober.loss(change)
    (student,) = prober._students.values()
    theirs = {id(value) for value in prober.teacher.parameters()}
    own = {name for name, value in student.named_parameters() if id(value) not in theirs}
    assert own
    assert len(own) < len(list(student.parameters())) / 2
    small = prober_of(subject.model, subject.calibration, prober.inputs)
    small.most_bytes = 1000
    for _ in range(3):
        small.loss(narrower(subject)[1])
    assert not small._students
    assert small.kept_bytes <= 1000


@pytest.mark.parametrize("kind", ["softmax", "bernoulli", "values"])
def test_small_changes_are_estimated_to_second_order(subject, monkeypatch, kind) -> None:
    prober = prober_of(subject.model, subject.calibration, torch.randn(64, 3, 16, 16), Divergence(kind))
    monkeypatch.setattr(probing, "DRAWS", 60)
    changes = {
        layer: Change(lambda layer=layer: shaken(prober.teacher, layer, 0.02), frozenset({layer}), mended=False)
        for layer in ("conv1", "layer1.1.conv2", "layer2.0.conv1", "linear")
    }
    guesses = prober.estimate(changes)
    for layer, change in changes.items():
        assert guesses[layer].mean == pytest.approx(prober.loss(change).mean, rel=0.3), layer
        assert guesses[layer].samples == 0


def test_what_happens_to_single_numbers_is_taken_for_independent(subject, monkeypatch) -> None:
    """Noise in a linear layer's weights is: in the mean over many of it, a score is its loss."""
    prober = prober_of(subject.model, subject.calibration, torch.randn(64, 3, 16, 16), LABELS)
    monkeypatch.setattr(probing, "DRAWS", 60)

    def noisy(seed: int) -> nn.Module:
        model = copy.deepcopy(prober.teacher)
        weight = model.get_submodule("linear").weight
        weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        return model

    changes = {seed: Change(lambda seed=seed: noisy(seed), frozenset({"linear"}), mended=False) for seed in range(12)}
    scores, guesses = prober.estimate(changes, apart=True), prober.estimate(changes)
    losses = [prober.loss(change).mean for change in changes.values()]
    means = [sum(each.mean for each in found.values()) / 12 for found in (scores, guesses)]
    assert means == pytest.approx([sum(losses) / 12] * 2, rel=0.3)


def test_a_transformer_is_estimated_too() -> None:
    torch.manual_seed(0)
    model, tokens = TextEncoder().eval(), torch.randint(0, 50, (64, 7))
    prober = prober_of(model, tokens, tokens)
    layers = ("encoder.layers.0.linear1", "encoder.layers.1.linear2", "head")
    changes = {name: Change(lambda name=name: shaken(model, name, 0.1), frozenset({name}), mended=False) for name in layers}
    guesses = prober.estimate(changes)
    for name, change in changes.items():
        assert 0.3 < guesses[name].mean / prober.loss(change).mean < 3, name


def test_only_what_cannot_be_told_apart_grows() -> None:
    read = {"a": Loss(0.10, 0.02, 64), "b": Loss(0.11, 0.02, 64), "c": Loss(0.5, 0.02, 64), "d": Loss(0.53, 0.06, 256)}
    assert unsure(read, most=256) == ["a", "b", "c"]  # d has grown already
    assert unsure({"a": read["a"], "c": read["c"]}, most=256) == []
    assert unsure({"a": Loss(1e-5, 1e-5, 64), "b": Loss(2e-5, 1e-5, 64)}, most=256) == []  # both are below what counts


def test_growing_ends_with_the_samples(prober) -> None:
    change = Change(lambda: shaken(prober.teacher, "linear", 0.3), frozenset({"linear"}), mended=False)
    read = {turn: prober.loss(change, 64) for turn in range(2)}
    assert unsure(read, most=prober.most) == [0, 1]
    read = {turn: prober.loss(change, 2 * read[turn].samples) for turn in read}
    assert read[0].samples == prober.most == 90
    assert not unsure(read, most=prober.most)


def test_a_line_for_each_kind_puts_estimates_on_scale() -> None:
    kinds = {f"{kind}{i}": kind for kind in "wd" for i in range(6)}
    truth = {key: 0.01 * 2 ** int(key[1]) for key in kinds}
    guesses = {key: Loss((0.2 if key[0] == "w" else 5.0) * truth[key], 0.0, 0) for key in kinds}
    read = {key: Loss(truth[key], 0.0, 64) for key in kinds if int(key[1]) % 2}
    found = calibrated(guesses, read, kinds)
    assert set(found) == kinds.keys() - read.keys()
    for key, loss in found.items():
        assert loss.mean == pytest.approx(truth[key], rel=0.01)
    assert calibrated(guesses, {}, kinds)["w0"].mean == pytest.approx(guesses["w0"].mean)  # nothing to hold them to
