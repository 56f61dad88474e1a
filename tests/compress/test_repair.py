"""Repair against exact cases: redundant channels must be recoverable to rounding, undamaged layers must not move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import EASY, TextEncoder, fingerprint, made, only_product
from torch import Tensor, nn

from equipoise.compress.blocks import Block, Skip, drop, replaced
from equipoise.compress.cut import sliced
from equipoise.compress.fold import fold
from equipoise.compress.graph import groups, keeping
from equipoise.compress.repair import refit, repair, solve
from equipoise.compress.statistics import (
    Invocation,
    as_matrix,
    as_weight,
    collect,
    columns,
    gram,
    input_rows,
    is_linear_map,
    output_rows,
)
from equipoise.compress.subject import Subject
from equipoise.compress.trace import watch
from equipoise.errors import InputError


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (4, 3, 9, 8)),
        (nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (4, 3, 9, 8)),
        (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (4, 3, 9, 8)),
        (nn.Conv1d(3, 5, 4, stride=2, padding=3), (4, 3, 17)),
        (nn.Conv1d(3, 5, 4, padding="same", dilation=2), (4, 3, 17)),
        (nn.Conv2d(3, 5, (4, 3), padding="same", dilation=(1, 2)), (4, 3, 9, 8)),
        (nn.Conv2d(3, 5, 2, padding="valid"), (4, 3, 5, 6)),
        (nn.Conv3d(3, 5, (1, 3, 2), stride=(2, 1, 2), padding=(0, 1, 1), dilation=(1, 2, 1)), (4, 3, 5, 6, 7)),
        (nn.Linear(6, 5), (4, 7, 6)),
        (nn.Linear(6, 5), (9, 6)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch on even kernels
def test_rows_times_the_weight_are_the_layers_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    call, output = only_product(layer, shape)
    total = output.numel() // 5
    places = torch.randperm(total, generator=torch.Generator().manual_seed(1))[: total // 2]
    rows = input_rows(call, places)
    with torch.no_grad():
        torch.testing.assert_close(rows @ as_matrix(layer.weight).T + layer.bias, output_rows(output, places, call.op))
        torch.testing.assert_close(as_weight(as_matrix(layer.weight), layer.weight), layer.weight.detach())
    assert not torch.allclose(input_rows(call, places.flip(0)), rows)


def test_transposed_calls_are_left_alone() -> None:
    seen: list[bool] = []

    def answer(invocation: Invocation) -> Tensor:
        if invocation.op.startswith("conv"):
            seen.append(is_linear_map(invocation))
        result: Tensor = invocation.run()
        return result

    inputs = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    watch(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)), inputs, answer)
    assert seen == [True, True, False]


def test_columns_name_the_weights_that_read_a_channel() -> None:
    weight = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    reads = columns(weight, ((0,), (1,), (2,)))
    torch.testing.assert_close(as_matrix(weight)[:, reads[1]].view(2, 2, 2), weight[:, 1])


def test_moments_agree_with_numpy_over_all_places() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    inputs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 2
    moments = collect(model, inputs, moments_of=frozenset({"0"})).moments["0"]
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(inputs.numpy().T, bias=True), atol=1e-5)
    assert gram(inputs).dtype == torch.float64


@pytest.mark.parametrize("seed", range(2))
def test_solve_is_least_squares_when_the_ridge_vanishes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, target = torch.randn(300, 8, generator=generator), torch.randn(300, 4, generator=generator)
    layer = nn.Linear(8, 4)
    solve(layer, rows, target, ridge=1e-12)
    x = np.c_[rows.numpy(), np.ones(300)].astype(np.float64)
    expected = np.linalg.lstsq(x, target.numpy().astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected[:8].T, atol=1e-4)
    np.testing.assert_allclose(layer.bias.detach().numpy(), expected[8], atol=1e-4)


def test_rows_that_are_held_back_keep_a_layer_from_fitting_chance() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, fresh = (torch.randn(n, 60, generator=generator) for n in (120, 2000))
    true = torch.randn(60, 8, generator=generator)
    target = rows @ true + 5.0 * torch.randn(120, 8, generator=generator)  # what no layer can answer is as large as half of it

    def excess(start: Tensor, held: float) -> float:
        layer = nn.Linear(60, 8)
        with torch.no_grad():
            layer.weight.copy_(start.T)
            layer.bias.zero_()
            solve(layer, rows, target, held=held)
            return float((layer(fresh) - fresh @ true).square().mean())

    assert excess(true, 0.25) < 0.25 * excess(true, 0.0)  # it was right, and is left so
    assert excess(torch.zeros_like(true), 0.25) < 0.7 * float((fresh @ true).square().mean())  # it was wrong, and moves


def test_what_the_data_does_not_decide_stays() -> None:
    layer = nn.Linear(3, 1)
    before = layer.weight.detach().clone()
    rows = torch.zeros(50, 3)
    rows[:, 0] = torch.randn(50, generator=torch.Generator().manual_seed(0))
    solve(layer, rows, 2 * rows[:, :1])
    assert float(layer.weight.detach()[0, 0]) == pytest.approx(2.0, abs=0.02)
    torch.testing.assert_close(layer.weight[:, 1:].detach(), before[:, 1:])


def fitted(rows: Tensor, target: Tensor) -> Tensor:
    """What a layer that knew nothing answers after `solve`."""
    layer = nn.Linear(rows.shape[1], target.shape[1])
    layer.weight.data.zero_()
    assert solve(layer, rows, target)
    with torch.no_grad():
        return (layer.weight.double() @ rows.double().T).T + layer.bias.double()


def best(rows: Tensor, target: Tensor) -> Tensor:
    """The least-squares answer of the same, by NumPy in double precision on centred columns."""
    x, y = rows.double().numpy(), target.double().numpy()
    around, level = x - x.mean(0), y - y.mean(0)
    return torch.from_numpy(around @ np.linalg.lstsq(around, level, rcond=1e-10)[0] + y.mean(0))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["plain", "twice", "constant", "dead", "scales", "few"])
def test_solve_stands_what_real_columns_bring(kind: str, offset: float) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(6 if kind == "few" else 400, 12, generator=generator, dtype=torch.float64)
    target = rows @ torch.randn(12, 3, generator=generator, dtype=torch.float64) + 7
    if kind == "twice":
        rows[:, 6:] = rows[:, :6]
        target = rows[:, :6] @ torch.randn(6, 3, generator=generator, dtype=torch.float64)
    rows += offset
    if kind == "constant":
        rows[:, 3] = 1e6
    elif kind == "dead":
        rows[:, 3] = 0.0
    elif kind == "scales":
        rows *= torch.logspace(-3, 3, 12, dtype=torch.float64)
    rows = rows.float()
    wanted = best(rows, target)
    spread = float((wanted - wanted.mean(0)).square().mean().sqrt())
    off = fitted(rows, target.float()) - wanted
    tolerance = 0.1 if offset == 1e6 else 0.01  # a weight in single precision times a million is itself no better
    assert float(off.square().mean().sqrt()) < tolerance * spread


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_layer_that_cannot_be_fitted_keeps_its_weights(value: float) -> None:
    layer = nn.Linear(4, 2)
    before = fingerprint(layer)
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    target = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    rows[3, 1] = value
    assert not solve(layer, rows, target)
    assert fingerprint(layer) == before


def test_an_unsolved_layer_is_named_in_a_warning() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = groups(model, inputs[:2])
    keep = keeping(model, found, {"0": [0, 3, 5]})
    inputs[7] = float("inf")
    with pytest.warns(UserWarning, match="2 could not be repaired and keeps its weights"):
        mended = repair(sliced(model, keep), model, inputs, kept={"0": keep["0", "out"]})
    assert torch.equal(mended[2].weight, model[2].weight[:, [0, 3, 5]])


def doubled(model: nn.Module, group_names: list[str]) -> nn.Module:
    """Make the second half of each named layer's channels copies of the first: half can go without loss."""
    for name in group_names:
        layer = model.get_submodule(name)
        half = len(layer.weight) // 2
        layer.weight.data[half:] = layer.weight.data[:half]
        layer.bias.data[half:] = layer.bias.data[:half]
    return model


@pytest.mark.parametrize("name", EASY)
def test_redundant_channels_are_recovered_exactly(name: str) -> None:
    model, inputs = made(name)
    teacher = fold(model, inputs[:2])
    chosen = [g for g in groups(teacher, inputs[:2]) if g.prunable and not g.coupled]
    doubled(teacher, [group.name for group in chosen])
    keep = keeping(teacher, chosen, {group.name: range(group.size // 2) for group in chosen})
    cut = sliced(teacher, keep)
    marks = fingerprint(cut), fingerprint(teacher)
    mended = repair(cut, teacher, inputs, kept={layer: spots for (layer, axis), spots in keep.items() if axis == "out"})
    assert (fingerprint(cut), fingerprint(teacher)) == marks
    with torch.no_grad():
        exact, damaged, repaired = teacher(inputs), cut(inputs), mended(inputs)
    if not chosen:  # every group of this net is coupled
        return
    spread = float(exact.std())
    assert float((damaged - exact).std()) > 0.05 * spread
    assert float((repaired - exact).std()) < 0.02 * spread


@pytest.mark.parametrize("name", EASY)
def test_an_undamaged_model_does_not_move(name: str) -> None:
    model, inputs = made(name)
    teacher = fold(model, inputs[:2])
    mended = repair(teacher, teacher, inputs)
    for (_, ours), (_, theirs) in zip(mended.named_parameters(), teacher.named_parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_dropped_block_is_mended_by_those_after_it() -> None:
    model, inputs = made("option_a")
    teacher = fold(model, inputs[:2])
    short = drop(teacher, [Block({"layer1.1": Skip()}, ())])
    mended = repair(short, teacher, inputs)
    with torch.no_grad():
        exact = teacher(inputs)
        assert float((mended(inputs) - exact).square().mean()) < 0.3 * float((short(inputs) - exact).square().mean())


def test_an_encoders_hidden_width_is_mended() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = TextEncoder().eval(), torch.randint(0, 50, (128, 7))
    found = [group for group in groups(model, tokens[:2]) if group.prunable]
    keep = keeping(model, found, {group.name: range(0, group.size, 2) for group in found})
    cut = sliced(model, keep)
    mended = repair(cut, model, tokens, kept={layer: spots for (layer, axis), spots in keep.items() if axis == "out"})
    with torch.no_grad():
        exact = model(tokens)
        assert float((mended(tokens) - exact).square().mean()) < 0.5 * float((cut(tokens) - exact).square().mean())


def test_a_narrowed_layer_must_say_what_it_kept() -> None:
    model, inputs = made("mlp")
    teacher = fold(model, inputs[:2])
    found = groups(teacher, inputs[:2])
    cut = sliced(teacher, keeping(teacher, found, {"0": range(24)}))
    with pytest.raises(InputError, match="the 24 output channels that the layer kept"):
        repair(cut, teacher, inputs)


class Borrowing(nn.Module):
    """Multiplies by weights of its own, by another layer's, and by one layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(16, 6) / 3)
        self.wide, self.back, self.again, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(nn.functional.linear(x, self.own))
        x = x + self.back(torch.relu(self.wide(x)))
        for _ in range(3):
            x = torch.relu(self.again(x))
        return nn.functional.linear(x, self.last.weight, self.last.bias)


def test_weights_that_no_layer_multiplies_by_alone_stay() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = Borrowing().eval(), torch.randn(100, 6)
    found = groups(model, inputs[:2])
    keep = keeping(model, found, {"wide": range(0, 32, 2)})
    cut = sliced(model, keep)
    mended = repair(cut, model, inputs, kept={layer: spots for (layer, axis), spots in keep.items() if axis == "out"})
    for name in ("own", "again.weight", "last.weight", "wide.weight"):
        assert torch.equal(mended.get_parameter(name), cut.get_parameter(name)), name
    assert not torch.equal(mended.back.weight, cut.back.weight)
    with torch.no_grad():
        exact = model(inputs)
        assert float((mended(inputs) - exact).square().mean()) < float((cut(inputs) - exact).square().mean())


class Tied(nn.Module):
    """An embedding whose weight is the head's too, or the first layer's, turned over, the last one's."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.given = nn.Linear(30, 16, bias=False) if turned else nn.Embedding(30, 16)
        self.wide, self.back, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 30, bias=False)
        if not turned:
            self.head.weight = self.given.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.given(x)
        x = x + self.back(torch.relu(self.wide(x)))
        return nn.functional.linear(x, self.given.weight.t()) if self.turned else self.head(x)


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_that_another_call_reads_too_stays(turned: bool) -> None:
    """Fitting it to one of its uses would change the other behind the fit's back."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied(turned=turned).eval()
    inputs = torch.randn(300, 30, generator=generator) if turned else torch.randint(0, 30, (300, 8), generator=generator)
    keep = keeping(model, groups(model, inputs[:2]), {"wide": range(0, 32, 2)})
    cut = sliced(model, keep)
    mended = repair(cut, model, inputs, kept={layer: spots for (layer, axis), spots in keep.items() if axis == "out"})
    assert torch.equal(mended.given.weight, model.given.weight)
    if not turned:
        assert mended.head.weight is mended.given.weight
        assert mended.head.bias is None
    assert not torch.equal(mended.back.weight, cut.back.weight)
    with torch.no_grad():
        exact = model(inputs)
        assert float((mended(inputs) - exact).square().mean()) < float((cut(inputs) - exact).square().mean())


def test_a_layer_of_a_dropped_block_is_not_refitted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    student = replaced(teacher, {"2": Skip(0)})
    repaired = refit(student, inputs, targets=collect(teacher, inputs).targets)
    wanted = teacher(inputs)
    assert isinstance(repaired[2], Skip)
    assert (repaired(inputs) - wanted).square().mean() < 0.5 * (student(inputs) - wanted).square().mean()


# ---- what is collected ------------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A depthwise net that counts its runs and how far they came."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)
        self.begun = self.ended = 0

    def forward(self, x: Tensor) -> Tensor:
        self.begun += 1
        x = self.last(torch.relu(self.deep(torch.relu(self.first(x)))))
        self.ended += 1
        return x.mean((2, 3))


def test_nothing_runs_for_moments_that_no_layer_has_or_after_the_last() -> None:
    model, images = Counted().eval(), torch.randn(8, 3, 6, 6)
    assert collect(model, images, moments_of=frozenset({"deep"}), targets=False).moments == {}
    assert (model.begun, model.ended) == (0, 0)
    found = collect(model, images, moments_of=frozenset({"deep", "first"}), targets=False).moments
    assert found.keys() == {"first"}
    assert (model.begun, model.ended) == (1, 0)
    both = collect(model, images, moments_of=frozenset({"first", "last"}), targets=False).moments
    torch.testing.assert_close(both["first"].covariance, found["first"].covariance, rtol=0, atol=0)
    assert both.keys() == {"first", "last"}


def test_moments_are_asked_of_a_model_once() -> None:
    model, images = Counted().eval(), torch.randn(32, 3, 6, 6)
    subject = Subject.prepare(model, images[:2], images)
    runs = subject.model.begun
    for layers in (["deep"], ["deep", "first"], ["last"], ["deep"]):
        assert subject.moments(layers).keys() == {*layers} - {"deep"}
    assert subject.model.begun <= runs + 1


class Routed(nn.Module):
    """Each sample goes to the expert that its first feature names; the last one is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.experts = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden, way = torch.relu(self.stem(x)), (x[:, 0] > 0.3).long()
        out = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            out[way == number] = expert(hidden[way == number])
        return out


@pytest.mark.parametrize("shift", [0.0, 0.5, -9.0])
def test_layers_that_samples_pass_by_keep_their_weights(shift: float) -> None:
    torch.manual_seed(0)
    teacher, x = Routed().eval(), torch.randn(50, 6)
    student = Routed().eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student.stem.weight[:, 1] = 0
    mended = repair(student, teacher, x + torch.tensor([shift, 0, 0, 0, 0, 0]))
    assert not torch.equal(mended.stem.weight, student.stem.weight)  # type: ignore[union-attr, arg-type]
    for name in ("experts.0", "experts.1", "experts.2")[shift == -9.0 :]:  # then all go to the first
        assert torch.equal(mended.get_submodule(name).weight, teacher.get_submodule(name).weight)  # type: ignore[arg-type]


class Otherwise(Routed):
    """Sends by what the stem says: a damaged stem sends others."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.stem(x))
        few = hidden[hidden[:, 0] > 0.2]
        return self.experts[0](few).mean(0, keepdim=True).expand(len(x), 4)  # type: ignore[no-any-return]


def test_a_student_that_routes_otherwise_is_not_fitted_to_the_rows_of_others() -> None:
    torch.manual_seed(0)
    teacher, x = Otherwise().eval(), torch.randn(50, 6)
    student = Otherwise().eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student.stem.weight[0] = 0
        student.stem.bias[0] = 1
    mended = repair(student, teacher, x)
    assert torch.equal(mended.experts[0].weight, teacher.experts[0].weight)  # type: ignore[index, union-attr, arg-type]


class ByName(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, bias=self.bias)


class AllByName(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(input=x, weight=self.weight, bias=self.bias)


@pytest.mark.parametrize("kind", [ByName, AllByName])
def test_layers_that_name_their_arguments_are_repaired(kind: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), kind(12, 4)).eval(), torch.randn(200, 6)
    student = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), kind(12, 4)).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student[2].weight.mul_(0.5)  # type: ignore[union-attr, operator]
    assert (repair(student, teacher, x)(x) - teacher(x)).abs().max() < 5e-3
