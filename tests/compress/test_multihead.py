"""Torch's own attention is put in linear layers where they answer the same, in every way it is called; elsewhere it stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.compress import multihead
from equipoise.compress.dense import linear_form
from equipoise.compress.graph import groups
from equipoise.compress.group_proof import silence
from equipoise.compress.multihead import Multihead, multihead_form
from equipoise.compress.prune import prune

WIDTH, HEADS = 24, 4


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def parts(*, batch_first: bool, cross: bool, alone: bool = False, kdim: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 5, WIDTH, generator=generator)
    key = torch.randn(3, 7, kdim, generator=generator) if cross else query
    value = key + 1 if cross else query
    found = {id(x): x[0] if alone else x if batch_first else x.transpose(0, 1) for x in (query, key, value)}
    return found[id(query)], found[id(key)], found[id(value)]


def alike(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for new, old in zip(found, wanted, strict=True):
        assert (new is None) == (old is None)
        if old is not None:
            torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_it_answers_as_the_attention_does_however_it_is_called(packed: bool, batch_first: bool, cross: bool) -> None:
    whole = attention(batch_first=batch_first)
    form, given = Multihead(whole, packed=packed), parts(batch_first=batch_first, cross=cross)
    length = 7 if cross else 5
    causal = torch.ones(5, length, dtype=torch.bool).triu(1)
    padded = torch.arange(length).expand(3, -1) >= torch.tensor([[length], [3], [2]])
    each = torch.randn(3 * HEADS, 5, length, generator=torch.Generator().manual_seed(2))
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": causal, "need_weights": False},
        {"attn_mask": causal, "key_padding_mask": padded},
        {"attn_mask": each, "key_padding_mask": padded.float(), "need_weights": False},
        {"attn_mask": each},
        {"key_padding_mask": padded, "need_weights": False},
    )
    with torch.no_grad():
        for way in ways:
            alike(form(*given, **way), whole(*given, **way))
        one = parts(batch_first=batch_first, cross=cross, alone=True)
        alike(form(*one, key_padding_mask=padded[1]), whole(*one, key_padding_mask=padded[1]))
        if not cross:
            alike(
                form(*given, attn_mask=causal, is_causal=True, need_weights=False),
                whole(*given, attn_mask=causal, is_causal=True, need_weights=False),
            )


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 10, "vdim": 10}, {"kdim": 10, "vdim": 10, "bias": False}])
def test_without_biases_and_with_keys_of_another_width(options: dict[str, Any]) -> None:
    whole = attention(batch_first=True, **options)
    given = parts(batch_first=True, cross="kdim" in options, kdim=options.get("kdim", WIDTH))
    with torch.no_grad():
        alike(Multihead(whole, packed="kdim" not in options)(*given), whole(*given))


class Net(nn.Module):
    """One attention and a classifier; of keys from elsewhere, or of the same tokens."""

    def __init__(self, attends: nn.Module, *, cross: bool = False) -> None:
        super().__init__()
        self.attends, self.cross, self.head = attends, cross, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1) if self.cross else x
        return self.head(torch.tanh(x + self.attends(x, other, other, need_weights=False)[0]).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("cross", "makers"), [(False, ["qkv"]), (True, ["query", "key", "value"])])
def test_whole_heads_of_it_are_cut_and_repaired(cross: bool, makers: list[str]) -> None:
    model, x = Net(attention(batch_first=True), cross=cross).eval(), torch.randn(64, 5, WIDTH)
    form = linear_form(copy.deepcopy(model), x[:2])
    (group,) = [group for group in groups(form, x[:2]) if "attends.out_proj" in group.consumers]
    assert (group.size, group.prunable, list(group.producers)) == (HEADS, True, [f"attends.{name}" for name in makers])
    asked: dict[str, Any] = {"widths": {group.name: 2}, "round_to": 1, "data": x}
    cut, mended = (prune(model, x[:2], repair=repair, **asked) for repair in (False, True))
    kept = [
        head
        for head in range(HEADS)
        if torch.isin(
            form.get_submodule("attends.out_proj").weight[:, 6 * head], cut.get_submodule("attends.out_proj").weight
        ).all()
    ]
    silent = copy.deepcopy(form)
    silence(silent.get_submodule("attends.out_proj"), torch.tensor([6 * head + i for head in kept for i in range(6)]))
    with torch.no_grad():
        torch.testing.assert_close(cut(x), silent(x), atol=1e-5, rtol=1e-4)
        wanted = model(x)
        assert float((mended(x) - wanted).square().mean()) < 0.5 * float((cut(x) - wanted).square().mean())
    assert len(kept) == 2
    assert isinstance(model.attends, nn.MultiheadAttention)


class Padded(nn.Module):
    """Torch's encoder, quick path and all, on padded tokens; it looks at the padding or not."""

    def __init__(self, *, looks: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.looks, self.encoder, self.head = looks, nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        there = x.abs().sum(-1) > 0
        seen = self.encoder(x, src_key_padding_mask=~there)
        return self.head(seen.mean(1) if self.looks else (seen * there[..., None]).sum(1))  # type: ignore[no-any-return]


def padded(*, looks: bool) -> tuple[Padded, Tensor]:
    there = torch.arange(6) < torch.tensor([[6], [3], [5], [2]])
    return Padded(looks=looks).eval(), torch.randn(4, 6, WIDTH) * there[..., None]


NESTED = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@NESTED
def test_an_encoder_that_leaves_padding_out_is_taken_apart() -> None:
    model, x = padded(looks=False)
    form = multihead_form(model, x)
    with torch.no_grad():
        torch.testing.assert_close(form(x), model(x), atol=1e-5, rtol=1e-4)
    found = {group.name: group for group in groups(form, x)}
    assert all(found[f"encoder.layers.{layer}.self_attn.qkv"].prunable for layer in range(2))
    assert model.encoder.use_nested_tensor, "the model itself is left as it was"


@NESTED
def test_one_whose_padding_is_looked_at_stays() -> None:
    """The quick path answers zeros at the padding, the layers on their own do not: the whole model tells."""
    model, x = padded(looks=True)
    assert multihead_form(model, x) is model


class Other(nn.MultiheadAttention):
    def forward(self, *given: Any, **named: Any) -> Any:
        answer, weights = super().forward(*given, **named)
        return 2 * answer, weights


def test_what_is_no_plain_attention_stays() -> None:
    x = torch.randn(2, 5, WIDTH)
    hooked = attention(batch_first=True)
    hooked.register_forward_hook(lambda _m, _x, answer: (-answer[0], answer[1]))
    others = (
        Other(WIDTH, HEADS, batch_first=True),
        attention(batch_first=True, add_bias_kv=True),
        attention(batch_first=True, add_zero_attn=True),
        hooked,
    )
    for other in others:
        model = Net(other).eval()
        assert multihead_form(model, x) is model


@pytest.mark.parametrize("change", ["value is key", "scale", "raises"])
def test_a_form_that_answers_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    model, x = Net(attention(batch_first=True), cross=True).eval(), torch.randn(2, 5, WIDTH)
    assert multihead_form(model, x) is not model
    right = multihead._projections

    def wrong(whole: Any) -> Any:
        query, key, value = right(whole)
        if change == "raises":
            return [query, key, (value[0][:5], value[1])]
        return [query, key, key] if change == "value is key" else [(1.01 * query[0], query[1]), key, value]

    monkeypatch.setattr(multihead, "_projections", wrong)
    assert multihead_form(model, x) is model


def test_an_attention_under_two_names_stays_one() -> None:
    model, x = Net(attention(batch_first=True)).eval(), torch.randn(2, 5, WIDTH)
    model.again = model.attends
    form: Any = multihead_form(model, x)
    assert isinstance(form.attends, Multihead)
    assert form.again is form.attends
