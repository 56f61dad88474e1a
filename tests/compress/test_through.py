"""Training through rounding: what is learned is what the file computes with, and its weights stay where they were learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import fingerprint
from torch import Tensor, nn

import equipoise as eq
from equipoise.compress.fakequant import simulate
from equipoise.compress.fold import fold
from equipoise.compress.rounding import on_grid
from equipoise.compress.through import Through, late, settle, snapped, through, waiting
from equipoise.errors import InputError
from equipoise.records import Choice
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.training.recover import distill
from equipoise.workloads import Split
from equipoise.workloads.divergence import Divergence

LAYERS = ("0", "2", "5")
X = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net(*, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(8) if norm else nn.Identity()
        made = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            middle,
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 5),
        )
        if norm:
            made(X)
            with torch.no_grad():
                middle.weight.uniform_(0.3, 2.0)
    return made.eval()


def ways(choice: Choice) -> dict[str, Choice]:
    return {name: choice for name in LAYERS if choice != "8-dynamic" or name == "5"}


@pytest.mark.parametrize("choice", ["4-weights", "8-dynamic"])
def test_a_settled_net_computes_what_the_file_computes(choice: Choice) -> None:
    model, schemes, exact_int8 = net(), ways(choice), has_exact_int8()  # the file is made for this CPU
    before = fingerprint(model)
    student = through(model, schemes, exact=exact_int8)
    with torch.no_grad():
        exact = model(X)
        assert waiting(student)
        assert torch.equal(student(X), exact)  # in floats until it is settled
        settle(student, X, exact=exact_int8)
        found, held = student(X[:1]), on_grid(snapped(student), schemes, exact=exact_int8, calibration=X)
    assert not waiting(student)
    assert fingerprint(model) == before
    file = OnnxRuntime().compile(Exporter().source(held, X[:2], topology=""), schemes=schemes)
    wanted = torch.from_numpy(OnnxRuntime().load(file).run(X[:1].numpy()))
    lost = float((wanted - exact[:1]).abs().max())
    assert float((found - wanted).abs().max()) < 0.05 * lost


def test_static_int8_is_that_of_the_simulation() -> None:
    model = net()
    student = through(model, ways(8), exact=True)
    settle(student, X, exact=True)
    wanted = simulate(model, X, layers=set(LAYERS), ranges="mse")
    with torch.no_grad():
        torch.testing.assert_close(student(X), wanted(X))
        assert not torch.allclose(student(X), model(X))


def test_a_normalization_leaves_the_grid_as_it_is() -> None:
    student = through(net(norm=True), ways("4-weights"), exact=True)
    settle(student, X, exact=True)
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        student.train()(X).square().mean().backward()
        optimizer.step()
    folded = fold(snapped(student.eval()), X[:2])
    again = on_grid(folded, ways("4-weights"), exact=True, calibration=X)
    pairs = [(dict(again.named_parameters())[name], value) for name, value in folded.named_parameters()]
    assert all(torch.allclose(new, old, atol=1e-6) for new, old in pairs)
    loose = fold(student.eval(), X[:2])  # as it was learned, before it was put on the grid
    moved = on_grid(loose, ways("4-weights"), exact=True, calibration=X)
    assert not all(torch.allclose(new, old, atol=1e-3) for new, old in zip(moved.parameters(), loose.parameters(), strict=True))


def test_weights_that_two_layers_share_lie_on_one_grid() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 40, bias=False)).eval()
    model[3].weight = model[0].weight
    tokens, schemes = torch.arange(40).reshape(8, 5), {"0": "8-weights", "1": "4-weights", "3": "4-weights"}
    student = through(model, schemes, exact=True)
    settle(student, tokens, exact=True)
    held = snapped(student)
    again = on_grid(held, schemes, exact=True, calibration=tokens)
    assert held[0].weight is held[3].weight
    assert torch.allclose(again[0].weight, held[0].weight, atol=1e-6)
    assert not torch.allclose(on_grid(model, schemes, exact=True)[0].weight, model[0].weight, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(student(tokens), held(tokens))


def test_gradients_pass_straight_through() -> None:
    student = through(net(), {"5": "4-weights"}, exact=True)
    settle(student, X, exact=True)
    student(X).sum().backward()
    layer: Any = student[5]
    read = student[:5](X)
    behind = (student[5](read) > 0).float() @ torch.diag(student[7].weight.sum(0))
    torch.testing.assert_close(layer.weight.grad, behind.T @ read, rtol=1e-4, atol=1e-4)


def test_learning_through_four_bits_wins_back_what_they_cost() -> None:
    teacher = net()
    taught, floats = (
        eq.distill(teacher, teacher, X, scheme=scheme, seconds=60, steps=100, lr=1e-2, batch=32)
        for scheme in ("4-weights", None)
    )
    assert not any(isinstance(layer, Through) for layer in taught.modules())

    def lost(model: nn.Module) -> float:
        with torch.no_grad():
            rounded = on_grid(model, ways("4-weights") | {"7": "4-weights"}, exact=True, calibration=X)
            return float((rounded(X) - teacher(X)).square().mean())

    assert lost(taught) < 0.7 * min(lost(teacher), lost(floats))


def test_where_rounding_costs_next_to_nothing_it_is_not_learned() -> None:
    student = through(net(), ways("8-weights"), exact=True)
    late(X, exact=True, judge=(net(), lambda wanted, found: 1.0), start=0.5)(student, 0.5)  # as far with it as without
    assert not waiting(student)
    assert not any(layer.settled > 0 for layer in student.modules() if isinstance(layer, Through))
    again = through(net(), ways("8-weights"), exact=True)
    settles = late(X, exact=True, judge=(net(), lambda wanted, found: float((wanted - found).square().mean())), start=0.5)
    settles(again, 0.4)
    assert waiting(again)
    settles(again, 0.5)  # the student is the teacher: all that is lost is lost by rounding
    assert all(layer.settled > 0 for layer in again.modules() if isinstance(layer, Through))


def test_a_killed_training_goes_on_settled(tmp_path: Path) -> None:
    def learned(file: Path, *, stop: int = 0) -> tuple[Tensor, ...]:
        def on_step(progress: Any) -> None:
            if stop and progress.step == stop:
                raise KeyboardInterrupt

        return tuple(
            distill(
                through(net(), ways(8), exact=True), net(), Split.of((X, torch.zeros(96)), name="train"),
                divergence=Divergence("values"), steps=8, checkpoint=file, every_s=0.0,
                before_step=late(X, exact=True, start=0.5), on_step=on_step,
            ).model.state_dict().values()
        )  # fmt: skip

    whole = learned(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "killed", stop=6)
    resumed = learned(tmp_path / "killed")
    assert all(torch.equal(new, old) for new, old in zip(resumed, whole, strict=True))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("4-bits", r"scheme must be one of .*'4-weights'"),
        ({"1": 8}, "layer must be one of"),
        ({"0": "8-dynamic"}, "scheme must be one that the layer has a form in; got .*8-dynamic.* for 0"),
        ({"9": 8}, "layer must be one of"),
    ],
)
def test_bad_schemes_are_told(scheme: Choice | Mapping[str, Choice], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eq.distill(net(), net(), X, scheme=scheme, seconds=1)
    if isinstance(scheme, str):
        with pytest.raises(InputError, match=message):
            through(net(), {"0": scheme}, exact=True)
    with pytest.raises(InputError, match="layers to round must be"):
        through(net(), {"1": 8}, exact=True)
