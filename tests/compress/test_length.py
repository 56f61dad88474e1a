"""Reading fewer tokens: what a shorter row would give, whatever stands behind; one input or several of one length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import call
from equipoise.compress.length import Length
from equipoise.compress.resolution import Resolution
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft
from equipoise.errors import InputError
from equipoise.records import Plan
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.runtimes.export import Exporter
from equipoise.study.store import Store
from equipoise.workloads import Workload
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape


def texts(length: int = 32) -> Tensor:
    """Rows of 24 tokens and padding behind."""
    rows = torch.randint(1, 40, (16, length), generator=torch.Generator().manual_seed(0))
    rows[:, 24:] = 0
    return rows


def encoder(name: str = "encoder", length: int = 32) -> nn.Module:
    return family(name).model({"width": 32}, Shape((length,), 3, 40), generator=torch.Generator().manual_seed(0)).eval()


class Masked(nn.Module):
    """Takes tokens and a mask by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask[..., None].float()
        mixed: Tensor = torch.relu(self.mix(self.embed(input_ids)))
        logits: Tensor = self.head((mixed * weight).sum(1) / weight.sum(1).clamp(min=1.0))
        return logits


@pytest.mark.parametrize("name", ["bag", "textcnn", "gru", "encoder"])
def test_it_reads_the_first_tokens(name: str) -> None:
    net, rows = encoder(name), texts()
    subject = Subject.prepare(net, rows[:2], rows)
    (offer,) = Length().offers(subject)
    assert offer.menu == (32, 24, 16, 8)
    short = Length().apply(Draft(subject.model), subject, {"": 16}).model
    with torch.no_grad():
        assert torch.allclose(short(rows), net(rows[:, :16]), atol=1e-5)
        assert not torch.allclose(short(rows), net(rows), atol=1e-4)
        padding_alone = Length().apply(Draft(subject.model), subject, {"": 24}).model
        assert torch.allclose(padding_alone(rows), net(rows), atol=1e-5)  # what is cut there is padding
    assert list(short.state_dict()) == list(subject.model.state_dict())


def test_layers_that_see_each_token_see_fewer_and_the_head_sees_as_many() -> None:
    rows = texts()
    subject = Subject.prepare(encoder(), rows[:2], rows)
    (offer,) = Length().offers(subject)
    heights = {layer: Length().ops(subject, offer, layer, 8)[0].height for layer in offer.layers}
    assert heights.pop("head.logits") == 1
    assert set(heights.values()) == {8}


def test_several_inputs_of_one_length_are_cut_together() -> None:
    rows = texts()
    inputs = {"input_ids": rows, "attention_mask": (rows != 0).long()}
    net = Masked().eval()
    subject = Subject.prepare(net, {k: v[:2] for k, v in inputs.items()}, inputs)
    (offer,) = Length().offers(subject)
    short = Length().apply(Draft(subject.model), subject, {"": offer.menu[2]}).model
    with torch.no_grad():
        assert torch.allclose(call(short, inputs), call(net, {k: v[:, :16] for k, v in inputs.items()}), atol=1e-6)


def test_what_is_no_row_of_tokens_is_not_offered() -> None:
    images = torch.randn(4, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    assert list(Length().offers(Subject.prepare(net, images[:2], images))) == []
    short = texts(length=12)
    assert list(Length().offers(Subject.prepare(encoder(length=12), short[:2], short))) == []


def test_a_model_that_answers_each_token_is_left_whole() -> None:
    shape = Shape((32,), 40, 40, dense=True)
    net = family("gpt").model({"width": 32, "depth": 1}, shape, generator=torch.Generator().manual_seed(0)).eval()
    (offer,) = Length().offers(Subject.prepare(net, texts()[:2], texts()))
    assert offer.menu == (32,)
    assert "answers each token" in offer.refused


def test_a_length_that_cannot_be() -> None:
    rows = texts()
    subject = Subject.prepare(encoder(), rows[:2], rows)
    for length in (0, 33):
        with pytest.raises(InputError, match=r"length must be in \[1, 32\]"):
            Length().apply(Draft(subject.model), subject, {"": length})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bag", "textcnn", "gru", "encoder"])
def test_it_ships(name: str) -> None:
    rows = texts()
    subject = Subject.prepare(encoder(name), rows[:2], rows)
    short = Length().apply(Draft(subject.model), subject, {"": 16}).model
    program = runtimes.get("onnxruntime").compile(Exporter().source(short, rows[:2], topology="short"))
    found = runtimes.get("onnxruntime").load(program).run(rows[:5].numpy())
    assert np.allclose(found, short(rows[:5]).detach().numpy(), atol=1e-4)


class Sized(nn.Module):
    """Its own attributes have the names that one would give them."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.length = 32, 64
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.size == 32, "a front has taken the model's own attribute"
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_model_with_a_size_of_its_own_is_resized() -> None:
    net, images = Sized().eval(), torch.randn(8, 3, 32, 32)
    subject, seen = Subject.prepare(net, images[:2], images), list[Tensor]()
    (offer,) = Resolution().offers(subject)
    small = Resolution().apply(Draft(subject.model), subject, {"": offer.menu[1]}).model
    small.conv.register_forward_hook(lambda _m, given, _y: seen.append(given[0]))  # type: ignore[union-attr, operator]
    small(images)
    assert seen[0].shape[2:] == (offer.menu[1],) * 2
    assert not list(Resolution().offers(Subject.prepare(small, images[:2], images))), "resized twice would be resized once"


@pytest.mark.slow  # exports
def test_files_of_two_lengths_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """Where the few rows that an export is compared on are short, a graph of one length passed for that of another."""
    net, short, long = encoder("bag"), texts(), texts()
    short[:, 6:] = 0
    y = net(long).argmax(1)
    work = Workload(model=net, train=(long, y), validation=(short, y), test=(long, y))
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(work, (Target("onnxruntime"),), store.blob)
        for length in (8, 16):
            draft = bench.build(Plan({"length": length}))
            program = bench.compile(draft, bench.source(draft.model), bench.targets[0])
            answers = runtimes.get("onnxruntime").load(program).run(long.numpy())
            assert np.allclose(answers, call(draft.model, long).detach().numpy(), atol=1e-4), length
