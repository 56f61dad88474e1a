"""Groups of easy and hard nets, against Torch-Pruning's own cutting and with wrong groups planted."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch_pruning
from nets import EASY, ResNet20, Stubborn, TextEncoder, fingerprint, made
from torch import Tensor, nn

from equipoise.compress.cut import sliced
from equipoise.compress.graph import Cut, Group, groups, keeping
from equipoise.compress.group_proof import prove
from equipoise.errors import InputError


def by_name(found: tuple[Group, ...]) -> dict[str, Group]:
    return {group.name: group for group in found}


def test_option_a_resnet_gives_nine_inner_widths_and_leaves_the_streams_whole() -> None:
    found = groups(ResNet20(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    prunable = [group.name for group in found if group.prunable]
    assert prunable == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert [group.size for group in found if group.prunable] == [16] * 3 + [32] * 3 + [64] * 3
    streams = by_name(found)["conv1"]
    assert streams.coupled
    assert streams.reason
    assert by_name(found)["linear"].reason == "it feeds the model's output"


def test_streams_tied_by_projections_are_prunable() -> None:
    model, inputs = made("projection")
    found = by_name(groups(model, inputs[:2]))
    assert all(found[name].prunable for name in ("0", "3.conv1", "4.conv1", "4.conv2", "5.conv1"))
    assert set(found["4.conv2"].producers) == {"4.conv2", "4.shortcut.0", "5.conv2"}
    assert set(found["4.conv2"].consumers) == {"5.conv1", "8"}


def test_flatten_multiplies_the_places_of_a_channel() -> None:
    model, inputs = made("cnn")
    found = by_name(groups(model, inputs[:2]))
    assert [name for name, group in found.items() if group.prunable] == ["0", "4", "9"]
    reading = next(cut for cut in found["4"].cuts if cut.axis == "in")
    assert (reading.layer, reading.positions[1]) == ("9", (4, 5, 6, 7))


def test_depthwise_follows_its_producer_and_grouped_convolutions_stay_whole() -> None:
    model, inputs = made("mobile")
    found = by_name(groups(model, inputs[:2]))
    assert found["0"].prunable
    assert found["0"].producers == ("0", "3")
    assert not found["6"].prunable
    assert "groups" in found["6"].reason


def test_encoder_layers_offer_their_hidden_width() -> None:
    found = groups(TextEncoder().eval(), torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0)))
    hidden = [(group.name, group.consumers) for group in found if group.prunable]
    assert hidden == [(f"encoder.layers.{i}.linear1", (f"encoder.layers.{i}.linear2",)) for i in (0, 1)]


def test_a_reshape_with_a_fixed_width_leaves_only_its_own_group_whole() -> None:
    found = by_name(groups(Stubborn(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))))
    assert not found["first"].prunable
    assert found["second"].prunable


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


def test_a_model_that_cannot_run_gives_one_honest_empty_group() -> None:
    (only,) = groups(Untraceable(), torch.randn(2, 3))
    assert not only.prunable
    assert "not today" in only.reason


def test_tied_weights_stay_whole() -> None:
    hidden = (nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *hidden, nn.Linear(16, 2))
    model[4].weight = model[2].weight
    found = by_name(groups(model, torch.randn(2, 6, generator=torch.Generator().manual_seed(0))))
    assert all("shares its weight" in found[name].reason for name in ("0", "2", "4"))


class Bagged(nn.Module):
    """Words weighted by their place, added, and answered by the rows of the table that read them."""

    def __init__(self, *, words: int, width: int, length: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.head.weight = self.table.weight
        self.age = nn.Parameter(torch.linspace(-1, 1, length))
        self.inner = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = (self.table(tokens) * self.age.exp()[:, None]).sum(1)
        return self.head(x + self.inner(x))


@pytest.mark.parametrize(("width", "length"), [(12, 5), (5, 12)])
def test_a_table_that_is_the_head_is_narrowed_on_both_sides_at_once(width: int, length: int) -> None:
    torch.manual_seed(0)
    model = Bagged(words=9, width=width, length=length).eval()
    tokens = torch.randint(0, 9, (3, length))
    found = groups(model, tokens)
    stream = by_name(found)["table"]
    assert stream.prunable, stream.reason
    assert (stream.producers, stream.consumers) == (("table", "inner"), ("inner", "head"))
    kept = [0, 2, 3]
    small = sliced(model, keeping(model, found, {"table": kept}))
    assert small.head.weight is small.table.weight
    assert small.head.weight.shape == (9, 3)
    assert small.age.shape == (length,)  # a weight for each place is none for each channel
    with torch.no_grad():
        x = (model.table(tokens)[:, :, kept] * model.age.exp()[:, None]).sum(1)
        x = x + x @ model.inner.weight[kept][:, kept].T + model.inner.bias[kept]
        torch.testing.assert_close(small(tokens), x @ model.head.weight[:, kept].T + model.head.bias)


@pytest.mark.parametrize("name", EASY)
def test_cuts_agree_with_torch_pruning_and_the_model_is_untouched(name: str) -> None:
    model, inputs = made(name)
    before = fingerprint(model)
    found = groups(model, inputs[:2])
    assert any(group.prunable for group in found)
    for group in found:
        if not group.prunable:
            continue
        gone = list(range(0, group.size, 3))
        ours = sliced(model, keeping(model, found, {group.name: [c for c in range(group.size) if c not in gone]}))
        theirs = copy.deepcopy(model)
        graph = torch_pruning.DependencyGraph().build_dependency(theirs, inputs[:2], verbose=False)
        root = theirs.get_submodule(group.name)
        graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, gone).prune()
        with torch.no_grad():
            torch.testing.assert_close(ours(inputs), theirs(inputs), atol=1e-5, rtol=1e-4)
    assert fingerprint(model) == before


def proof_of(model: nn.Module, inputs: Tensor, group: Group) -> str:
    return prove(model, inputs, [group])[group.name]


def test_the_proof_rejects_planted_wrong_groups() -> None:
    model, inputs = made("cnn")
    model.eval()
    group = by_name(groups(model, inputs[:2]))["4"]
    assert proof_of(model, inputs[:2], group) == ""
    turned = [replace(cut, positions=cut.positions[::-1]) if cut.axis == "in" else cut for cut in group.cuts]
    assert "places" in proof_of(model, inputs[:2], replace(group, cuts=tuple(turned)))
    swapped = [replace(cut, positions=swap(cut.positions)) if cut.axis == "in" else cut for cut in group.cuts]
    assert "places" in proof_of(model, inputs[:2], replace(group, cuts=tuple(swapped)))
    forgotten = tuple(cut for cut in group.cuts if cut.axis == "out")
    assert "breaks" in proof_of(model, inputs[:2], replace(group, cuts=forgotten))
    output = Group("11", 5, ("11",), (), True, "", (Cut("11", "out", tuple((c,) for c in range(5))),))
    assert "shape" in proof_of(model, inputs[:2], output)


def swap(positions: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Exchange the places of channels 0 and 2: every cut that keeps both or neither looks right."""
    return (positions[2], positions[1], positions[0], *positions[3:])


@pytest.mark.parametrize("kept", [[], [0, 0], [48], [-1]])
def test_kept_channels_are_checked(kept: list[int]) -> None:
    model, inputs = made("mlp")
    with pytest.raises(InputError, match="distinct channel indices"):
        keeping(model, groups(model, inputs[:2]), {"0": kept})


def test_two_groups_cut_one_layer_on_both_sides() -> None:
    model, inputs = made("mlp")
    found = groups(model, inputs[:2])
    smaller = sliced(model, keeping(model, found, {"0": [1, 5, 7], "3": [0, 2]}))
    assert smaller[3].weight.shape == (2, 3)
    torch.testing.assert_close(smaller[3].weight, model[3].weight[[0, 2]][:, [1, 5, 7]])
