"""A model is cut into stages that together are the model."""

from __future__ import annotations

import pytest
import torch
from rank_program import Block, net
from torch import Tensor, nn

from equipoise.built_in import FAMILIES
from equipoise.errors import EquipoiseError, InputError
from equipoise.testing.families import SHAPES, samples, shape_of, smallest
from equipoise.training.blocks import recomputed
from equipoise.training.distribution.pipeline import _Answered, _divisor
from equipoise.training.distribution.stages import split
from equipoise.workloads.families import family


class Speller(nn.Module):
    """A character model: embedding, positions, blocks, head."""

    def __init__(self, *, choosy: bool = False) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.head = nn.Linear(8, 11, bias=False)
        self.choosy = choosy

    def forward(self, tokens: Tensor) -> Tensor:
        _, length = tokens.shape
        x = self.embedding(tokens) + self.positions[:length]
        if self.choosy and x.sum() > 0:
            x = -x
        for block in self.blocks:
            x = block(x)
        return self.head(x).transpose(1, 2)


TOKENS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))


class Forgetful(nn.Module):
    """Drops activations by its own training flag, which a trace would fix as it stood."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.dropout(layer(x), 0.5, self.training)
        return x


@pytest.mark.parametrize("training", [True, False])
def test_what_goes_by_the_training_flag_outside_modules_is_refused_and_modes_are_kept(training: bool) -> None:
    model = Forgetful().train(training)
    model.layers[1].train(not training)
    with pytest.raises(InputError, match=r"the same steps in training and evaluation mode.*nn\.Dropout"):
        split(model, 2)
    assert [part.training for part in model.modules()] == [training, training, training, not training, training, training]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_stages_in_turn_are_the_model(stages: int, checkpointed: bool) -> None:
    model = Speller()
    names = [name for name, _ in model.named_parameters()]
    with recomputed(model, checkpointed):
        flow = TOKENS
        made = split(model, stages)
        for stage in made:
            flow = stage(flow)
        assert torch.equal(flow, model(TOKENS))
    assert sorted(name for stage in made for name, _ in stage.named_parameters()) == sorted(names)


def test_the_largest_stage_is_as_small_as_it_can_be() -> None:
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for width in (4, 4, 4, 8, 4)))
    sizes = [sum(parameter.numel() for parameter in stage.parameters()) for stage in split(model, 3)]
    assert sizes == [48, 64, 16]


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].data])
def test_every_family_can_be_cut_but_those_of_pairs(name: str) -> None:
    kind = family(name)
    if "pairs" in kind.kinds:
        with pytest.raises(InputError, match=r"must be traceable by torch\.fx|0 places"):
            split(kind.model(smallest(kind), shape_of(kind), generator=torch.Generator().manual_seed(0)), 2)
        return
    shape = SHAPES["images"] if name == "encoder" else shape_of(kind)  # its texts carry their padding past every block
    model = kind.model(smallest(kind), shape, generator=torch.Generator().manual_seed(0)).eval()
    inputs = samples(shape)
    first, second = split(model, 2)
    assert torch.equal(second(first(inputs)), model(inputs))


def test_named_cuts_are_where_they_say() -> None:
    first, second = split(net(), 2, cuts=["blocks.3"])
    assert {name.split(".")[0] for name, _ in first.named_parameters()} == {"first", "blocks"}
    assert next(iter(second.named_parameters()))[0].startswith("blocks.3.")


@pytest.mark.parametrize(
    ("model", "stages", "cuts", "message"),
    [
        (Speller(choosy=True), 2, [], "traceable by torch.fx"),
        (Speller(), 30, [], "30 stages"),
        (Speller(), 2, ["blocks.3.back"], "nothing passes by.*Use one of .*blocks.1"),
        (Speller(), 3, ["blocks.2", "blocks.1"], "2 names in the order"),
        (Speller(), 3, ["blocks.1", "blocks.1"], "2 names in the order"),
    ],
)
def test_what_cannot_be_cut_is_refused(model: nn.Module, stages: int, cuts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        split(model, stages, cuts=cuts)


def test_an_objective_that_changes_the_inputs_is_refused() -> None:
    inputs, outputs = torch.randn(2, 3), torch.randn(2, 1)
    assert _Answered(inputs, outputs)(inputs) is outputs
    with pytest.raises(EquipoiseError, match="as they are"):
        _Answered(inputs, outputs)(inputs + 1)


@pytest.mark.parametrize(("rows", "wanted", "count"), [(33, 4, 3), (32, 4, 4), (31, 4, 31), (2, 4, 2), (1, 4, 1)])
def test_micro_batches_divide_the_batch(rows: int, wanted: int, count: int) -> None:
    assert _divisor(rows, wanted) == count
