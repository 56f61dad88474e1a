"""A recommender is searched as any model: its table is rounded on both sides at once, and what was taken stays down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from equipoise.built_in import workload_of
from equipoise.compress.bits import Bits
from equipoise.compress.rank import Rank
from equipoise.compress.subject import Subject
from equipoise.generated.shop import write_rows
from equipoise.runtimes.export import Exporter
from equipoise.training import Recipe
from equipoise.verbs.train import train
from equipoise.workloads import Shape, check, family, load
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.families.recommend import HELD
from equipoise.workloads.recommend import recommend_task

FAMILIES = ("sasrec", "twotower")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ready(name: str, *, unseen: bool = True) -> tuple[nn.Module, torch.Tensor]:
    model = family(name).model({"width": 32}, Shape((12,), 40, 40, unseen=unseen), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    rows = torch.stack([1 + torch.randperm(39, generator=generator)[:12] for _ in range(6)])
    rows[::2, 7:] = 0
    return model.eval(), rows


@pytest.mark.slow
@pytest.mark.parametrize("unseen", [True, False])
def test_the_file_pushes_down_what_was_taken(name: str, unseen: bool) -> None:
    model, rows = ready(name, unseen=unseen)
    session = onnxruntime.InferenceSession(Exporter().onnx(model, rows[:2], topology=name), providers=["CPUExecutionProvider"])
    for n in (1, 4, 6):
        (found,) = session.run(None, {"input": rows[:n].numpy()})
        wanted = model(rows[:n]).detach().numpy()
        assert np.allclose(found, wanted, atol=1e-4)
        assert (np.take_along_axis(found, rows[:n].numpy(), 1) == HELD).all() == unseen


def test_the_table_is_one_place_for_bits(name: str) -> None:
    model, rows = ready(name)
    subject = Subject.prepare(model, rows[:2], rows)
    tables = [offer for offer in Bits().offers(subject) if "head" in offer.layers]
    assert len(tables) == 1
    assert len(tables[0].layers) == 2  # the embedding with the product
    assert {"8-weights", "4-weights"} <= set(tables[0].menu)
    assert list(Rank().offers(subject))


def test_what_is_pushed_down_does_not_weigh() -> None:
    model, rows = ready("twotower")
    wanted = model(rows)
    kl, others = Divergence("softmax"), torch.ones_like(wanted, dtype=torch.bool).scatter(1, rows, False)
    moved = torch.where(others, wanted + 0.1 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)), wanted)
    pairs = [(w[o][None].detach(), m[o][None].detach()) for w, m, o in zip(wanted, moved, others, strict=True)]
    alone = [kl.between(before, after) for before, after in pairs]
    assert kl.between(wanted.detach(), moved.detach()) == pytest.approx(sum(alone) / len(alone), rel=1e-6)
    assert kl.between(wanted.detach(), moved.detach()) > 1e-4  # control


@pytest.mark.slow
def test_what_training_left_is_a_workload(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.csv", 300)
    recipe = Recipe(lr=1e-2, batch=64, weight_decay=0.01)
    found = train("twotower", recommend_task(file, length=16), {"width": 32}, store=tmp_path / "run", epochs=4, recipe=recipe)
    spec = workload_of("twotower", f"recommend:{file}?length=16", found.header["scale"], tmp_path / "run")
    work = load(spec)
    check(work)
    assert work.divergence.kind == "softmax"
    assert work.metric.name == "HR@10"
    assert work.quality() == pytest.approx(found.reached["quality"].get())
