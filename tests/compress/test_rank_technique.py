"""Rank behind other techniques: it works on what they left, whatever that is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.blocks import replaced
from equipoise.compress.builder import Builder
from equipoise.compress.factorize import halves
from equipoise.compress.rank import _second_moment
from equipoise.compress.statistics import Moments, collect
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.ops import Op
from equipoise.records import Plan
from equipoise.techniques import TECHNIQUES, Kind, Stage
from equipoise.testing.techniques import Probe, probe_inputs


def cropped(layer: nn.Conv2d, rows: slice, columns: slice) -> nn.Conv2d:
    """The layer with these rows and columns of its kernel, at the places where they were."""
    small = copy.deepcopy(layer)
    small.weight = nn.Parameter(layer.weight.detach()[:, :, rows, columns].clone())
    small.kernel_size = (small.weight.shape[2], small.weight.shape[3])
    small.padding = (int(layer.padding[0]) - rows.start, int(layer.padding[1]) - columns.start)
    return small


def grown(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with a border of zeros around its kernel."""
    large = copy.deepcopy(layer)
    large.weight = nn.Parameter(nn.functional.pad(layer.weight.detach(), (1, 1, 1, 1)))
    large.kernel_size, large.padding = (5, 5), (2, 2)
    return large


STAGES = (Stage.CUT, Stage.FACTORIZE)
MIDDLE, ALL = slice(1, 2), slice(0, 3)
FORMS = {
    1: lambda conv: cropped(conv, MIDDLE, MIDDLE),
    2: lambda conv: cropped(conv, MIDDLE, ALL),
    5: grown,
    6: lambda conv: nn.Sequential(nn.Identity(), conv),
}
"""What another technique might make of a 3x3 convolution."""


class Reforms:
    """Changes the form of the probe's convolution."""

    def offers(self, subject):
        yield Offer("conv", (3, *FORMS), ("conv",))

    def apply(self, draft, subject, chosen):
        made = {name: FORMS[form](draft.model.get_submodule(name)) for name, form in chosen.items()}
        renamed = {name: f"{name}.1" for name, part in made.items() if isinstance(part, nn.Sequential)}
        return replace(draft, model=replaced(draft.model, made), damaged=True, renamed=renamed)

    def ops(self, subject, offer, layer, choice):
        return (subject.ops[layer],)


@pytest.fixture(scope="module")
def subject() -> Subject:
    inputs = probe_inputs()
    return Subject.prepare(Probe().eval(), inputs[:2], inputs)


@pytest.mark.parametrize("width", [{}, {"width.stem": 8}])
@pytest.mark.parametrize(("form", "stage"), [*((form, stage) for form in (1, 2, 5) for stage in STAGES), (6, Stage.FACTORIZE)])
def test_a_layer_of_another_form_does_not_stop_it(
    subject: Subject, form: int, stage: Stage, width: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"form": Kind(f"{__name__}:Reforms", stage, "form", lambda *_: "", lambda *_: "")}
    for module in ("technique", "builder"):
        monkeypatch.setattr(f"equipoise.compress.{module}.TECHNIQUES", {**first, **TECHNIQUES})
    builder = Builder(subject)
    for repair in (False, True):
        made = builder.build(Plan({"form.conv": form, "rank.conv": 50, **width}), repair=repair).model
        assert made(probe_inputs()[:3]).shape == (3, 5)
    alone = builder.build(Plan({"form.conv": form, **width})).model
    pays = form == 5 or (form != 6 and not width)
    assert (held(made) < held(alone)) == pays  # what is no layer any more, or so narrow that it would not pay, stays as it is


def held(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("layer", "taps"),
    [
        (nn.Conv2d(4, 8, 3, padding=1), range(9)),
        (nn.Conv2d(4, 8, 1), [4]),
        (nn.Conv2d(4, 8, (1, 3), padding=(0, 1)), [3, 4, 5]),
        (nn.Conv2d(4, 8, 2, padding=0), [4, 5, 7, 8]),
        (nn.Conv2d(4, 8, 2, padding=1), [0, 1, 3, 4]),
        (nn.Conv2d(4, 8, 1, padding=1), [0]),
    ],
)
def test_of_a_smaller_kernel_the_taps_that_are_left_are_weighed(layer: nn.Conv2d, taps: list[int]) -> None:
    numbers = torch.arange(9 * 6).double()
    moments = Moments(torch.outer(numbers, numbers) + 1000 * numbers[:, None], torch.zeros(54))
    kept = torch.tensor([0, 2, 3, 5])
    draft = Draft(nn.Identity(), keep={("conv", "in"): kept})
    found = _second_moment(draft, "conv", layer, Op("conv", 6, 8, (3, 3), padding=(1, 1)), moments)
    places = torch.tensor([tap * 6 + int(channel) for tap in taps for channel in kept])
    assert torch.equal(found, moments.gram[places][:, places])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 5, padding=2),
        nn.Conv2d(6, 8, 1, padding=2),
        nn.Conv2d(6, 8, 3, padding=0),
        nn.Conv2d(5, 8, 3, padding=1),
    ],
    ids=["larger", "beside", "shifted", "of channels that nobody told of"],
)
def test_what_was_never_read_is_not_weighed(layer: nn.Conv2d) -> None:
    moments = Moments(torch.rand(54, 54).double(), torch.zeros(54))
    found = _second_moment(Draft(nn.Identity()), "conv", layer, Op("conv", 6, 8, (3, 3), padding=(1, 1)), moments)
    assert found is None


def test_the_cut_moment_is_better_than_none() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator) * torch.logspace(0, -3, 12)
    inputs = torch.einsum("nchw,dc->ndhw", torch.randn(32, 12, 9, 9, generator=generator), mix)
    conv = nn.Conv2d(12, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight.normal_(generator=generator)
    net = nn.Sequential(conv)
    moments = collect(net, inputs, moments_of=frozenset({"0"}), targets=False).moments["0"]
    small, op = cropped(conv, MIDDLE, MIDDLE), Op("conv", 12, 16, (3, 3), padding=(1, 1), height=9, width=9)

    def error(moment: Tensor) -> float:
        with torch.no_grad():
            return float((halves(small, 4, moment)(inputs) - small(inputs)).square().mean())

    weighed = _second_moment(Draft(net), "0", small, op, moments)
    assert error(weighed) < 0.8 * error(torch.eye(12, dtype=torch.float64))
