"""Which layers repair reaches: convolutions in groups, attention's output, what reads an embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import only_product
from torch import Tensor, nn

from equipoise.compress.cut import Keep, sliced
from equipoise.compress.graph import groups, keeping
from equipoise.compress.repair import repair, solve
from equipoise.compress.statistics import (
    Invocation,
    as_matrix,
    collect,
    groups_of,
    input_rows,
    is_attention,
    output_rows,
    projected,
)
from equipoise.compress.trace import record, watch


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (4, 6, 9, 8)),
        (nn.Conv2d(6, 12, 3, stride=2, groups=6), (4, 6, 9, 8)),
        (nn.Conv2d(6, 9, (1, 3), dilation=(1, 2), groups=3), (4, 6, 9, 8)),
        (nn.Conv1d(6, 6, 5, padding="same", groups=6), (4, 6, 17)),
        (nn.Conv3d(4, 6, 2, groups=2), (4, 4, 5, 4, 3)),
    ],
    ids=str,
)
def test_rows_of_each_group_times_its_weight_are_its_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    call, output = only_product(layer, shape)
    count, outputs = groups_of(call), layer.weight.shape[0]
    places = torch.randperm(output.numel() // outputs, generator=torch.Generator().manual_seed(1))[:40]
    rows = input_rows(call, places)
    with torch.no_grad():
        weights = as_matrix(layer.weight).unflatten(0, (count, -1))
        found = (rows @ weights.mT).transpose(0, 1).flatten(1) + layer.bias
        torch.testing.assert_close(found, output_rows(output, places, call.op))
        wrong = (rows @ weights.flip(0).mT).transpose(0, 1).flatten(1) + layer.bias
        assert not torch.allclose(wrong, output_rows(output, places, call.op))
    torch.testing.assert_close(input_rows(call, places, parts=slice(1, 2)), rows[1:2])


@pytest.mark.parametrize("held", [0.0, 0.25])
def test_groups_are_solved_as_if_each_were_a_layer(held: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, target = torch.randn(3, 200, 8, generator=generator), torch.randn(200, 6, generator=generator)
    whole = nn.Conv1d(6, 6, 4, groups=3)
    parts = [nn.Linear(8, 2) for _ in range(3)]
    for i, part in enumerate(parts):
        part.weight.data.copy_(as_matrix(whole.weight.data)[2 * i : 2 * i + 2])
        part.bias.data.copy_(whole.bias.data[2 * i : 2 * i + 2])
        solve(part, rows[i], target[:, 2 * i : 2 * i + 2], held=held)
    assert solve(whole, rows[:2], target[:, :4], outputs=slice(0, 4), held=held)
    untouched = whole.weight.detach()[4:].clone()
    assert torch.equal(whole.weight.detach()[4:], untouched)
    assert solve(whole, rows[2:], target[:, 4:], outputs=slice(4, 6), held=held)
    found = as_matrix(whole.weight.detach())
    torch.testing.assert_close(found, torch.cat([part.weight.detach() for part in parts]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.bias.detach(), torch.cat([part.bias.detach() for part in parts]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_each_group_is_least_squares_when_the_ridge_vanishes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, target = torch.randn(5, 300, 9, generator=generator), torch.randn(300, 5, generator=generator)
    layer = nn.Conv2d(5, 5, 3, groups=5)
    solve(layer, rows, target, ridge=1e-12)
    for group in range(5):
        x = np.c_[rows[group].double().numpy(), np.ones(300)]
        expected = np.linalg.lstsq(x, target[:, group].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(as_matrix(layer.weight.detach())[group].numpy(), expected[:9], atol=1e-4)
        np.testing.assert_allclose(float(layer.bias.detach()[group]), expected[9], atol=1e-4)


def kept_of(keep: Keep) -> dict[str, Tensor]:
    return {layer: places for (layer, axis), places in keep.items() if axis == "out"}


class Stream(nn.Module):
    """Blocks on a stream: a convolution in groups reads what the cut before it has broken."""

    def __init__(self, groups: int, kind: type[nn.Module]) -> None:
        super().__init__()
        conv: object = kind
        self.stem, self.wide, self.back = conv(3, 16, 1), conv(16, 48, 1), conv(48, 16, 1)  # type: ignore[operator]
        self.apart, self.mix, self.last = conv(16, 16, 3, padding=1, groups=groups), conv(16, 16, 1), conv(16, 5, 1)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(torch.relu(self.wide(x)))
        x = x + self.mix(torch.relu(self.apart(x)))
        return self.last(x).flatten(2).mean(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "shape"), [(nn.Conv1d, (20,)), (nn.Conv2d, (6, 6))], ids=["1-D", "2-D"])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_convolution_in_groups_mends_what_is_before_it(kind: type[nn.Module], shape: tuple[int, ...], count: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs, fresh = Stream(count, kind).eval(), torch.randn(128, 3, *shape), torch.randn(256, 3, *shape)
    keep = keeping(model, groups(model, inputs[:2]), {"wide": range(0, 48, 4)})
    cut = sliced(model, keep)
    mended = repair(cut, model, inputs, kept=kept_of(keep))
    assert not torch.equal(mended.apart.weight, cut.apart.weight)
    without = repair(cut, model, inputs, kept=kept_of(keep))
    without.apart.load_state_dict(cut.apart.state_dict())
    with torch.no_grad():
        exact = model(fresh)
        assert float((mended(fresh) - exact).square().mean()) < 0.5 * float((cut(fresh) - exact).square().mean())


class Attending(nn.Module):
    """Two blocks of attention and a feed-forward layer on embedded words."""

    def __init__(self, *, plain: bool, twice: bool = False) -> None:
        super().__init__()
        self.plain, self.twice = plain, twice
        self.embedding = nn.Embedding(40, 16)
        self.wide, self.back = nn.Linear(16, 48), nn.Linear(48, 16)
        self.asks, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def attended(self, x: Tensor) -> Tensor:
        if not self.plain:
            return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]
        asked = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.asks(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(*asked).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.back(torch.relu(self.wide(x)))
        for _ in range(1 + self.twice):
            x = x + self.attended(x)
        return self.head(x)  # type: ignore[no-any-return]


def attending(**options: bool) -> tuple[Attending, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attending(**options).eval(), torch.randint(0, 40, (192, 9)), torch.randint(0, 40, (256, 9))


@pytest.mark.parametrize("plain", [True, False], ids=["scaled_dot_product_attention", "MultiheadAttention"])
def test_an_attentions_output_projection_is_fitted(plain: bool) -> None:
    model, inputs, fresh = attending(plain=plain)
    name = "out" if plain else "attention.out_proj"
    assert name in collect(model, inputs).targets
    keep = keeping(model, groups(model, inputs[:2]), {"wide": range(0, 48, 4)})
    cut = sliced(model, keep)
    mended = repair(cut, model, inputs, kept=kept_of(keep))
    assert not torch.equal(mended.get_submodule(name).weight, cut.get_submodule(name).weight)
    with torch.no_grad():
        exact = model(fresh)
        assert float((mended(fresh) - exact).square().mean()) < 0.5 * float((cut(fresh) - exact).square().mean())


def test_an_attention_in_two_steps_is_the_attention() -> None:
    model, inputs, _ = attending(plain=False)
    seen: list[tuple[str, Tensor]] = []

    def answer(invocation: Invocation) -> object:
        if is_attention(invocation):
            return projected(invocation, answer)
        result = invocation.run()
        if invocation.op == "linear":
            seen.append((invocation.layer, result))
        return result

    with torch.no_grad():
        exact = model(inputs)
    torch.testing.assert_close(watch(model, inputs, answer), exact, atol=1e-6, rtol=1e-5)
    assert [name for name, _ in seen] == ["wide", "back", "attention.out_proj", "head"]
    assert [call.op for call in record(model, inputs[:2]).calls].count("multi_head_attention_forward") == 1


def test_an_attention_that_runs_twice_stays() -> None:
    model, inputs, _ = attending(plain=False, twice=True)
    assert "attention.out_proj" not in collect(model, inputs).targets
    keep = keeping(model, groups(model, inputs[:2]), {"wide": range(0, 48, 4)})
    mended = repair(sliced(model, keep), model, inputs, kept=kept_of(keep))
    assert torch.equal(mended.attention.out_proj.weight, model.attention.out_proj.weight)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.reads, self.last = nn.Embedding(60, 24), nn.Linear(24, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.reads(self.embedding(x))))  # type: ignore[no-any-return]


def test_what_reads_a_narrowed_embedding_is_fitted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = Words().eval(), torch.randint(0, 60, (256, 8))
        model.embedding.weight.data[:, 12:] = model.embedding.weight.data[:, :12] @ torch.randn(12, 12)
    cut = sliced(model, {("embedding", "out"): torch.arange(12), ("reads", "in"): torch.arange(12)})
    mended = repair(cut, model, inputs)
    assert tuple(cut.embedding.weight.shape) == (60, 12)
    with torch.no_grad():
        exact = model(inputs)
        assert float((mended(inputs) - exact).square().mean()) < 1e-3 * float((cut(inputs) - exact).square().mean())
