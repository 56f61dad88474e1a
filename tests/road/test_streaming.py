"""Data that do not fit into memory: photographs of different sizes are read a few at a time, all along the road."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patience import searched
from torch import Tensor, nn
from torch.utils.data import DataLoader

from equipoise.ship.artifact import pack
from equipoise.ship.verify import verify
from equipoise.study.store import Store
from equipoise.workloads import Split, Workload, predict, sources

MOST = 512
"""Samples that may be in memory together, beyond those that are kept."""


class Photographs:
    """Made when they are asked for, each of its own size; how many live at once is counted."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.alive = self.most = self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(self.seed * 100_000 + index)
        label = index % 3
        size = 8 + index % 5
        photograph = torch.randn(3, size, size, generator=generator)
        photograph[label] += 1.0
        self.alive += 1
        self.reads += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(photograph, self._gone)
        return photograph, label

    def _gone(self) -> None:
        self.alive -= 1


def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images = [F.interpolate(image[None], size=(8, 8), mode="bilinear")[0] for image, _ in items]
    return torch.stack(images), torch.tensor([label for _, label in items])


def split(count: int, seed: int) -> DataLoader[Any]:
    return DataLoader(Photographs(count, seed), batch_size=32, collate_fn=collate)  # type: ignore[arg-type]


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    data = Photographs(600, 9)
    for start in range(0, 600, 30):
        images, labels = collate([data[i] for i in range(start, start + 30)])
        optimizer.zero_grad()
        F.cross_entropy(made(images), labels).backward()
        optimizer.step()
    return made.eval()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hundred photographs or so be kept."""
    monkeypatch.setattr(sources, "KEEP_BYTES", 100 * 3 * 10 * 10 * 4)


@pytest.mark.usefixtures("little")
def test_items_are_kept_as_far_as_they_fit() -> None:
    loader = split(900, 1)
    data: Any = loader.dataset
    whole = Split.of(loader, name="validation")
    for _ in range(2):
        outputs, targets = predict(lambda inputs: inputs.mean((2, 3)), whole, batch=64)
    assert (len(outputs), len(targets)) == (900, 900)
    assert 60 < data.alive < 160  # kept: those of the first batches
    assert data.most <= data.alive + 64
    assert 900 + 700 < data.reads < 900 + 900  # the second time these were not read again


@pytest.mark.slow
@pytest.mark.usefixtures("little")
def test_the_whole_road_reads_a_few_at_a_time(tmp_path: Path) -> None:
    counts = {"train": 3000, "validation": 3000, "test": 2000, "calibration": 600}
    loaders = {role: split(count, seed) for seed, (role, count) in enumerate(counts.items())}
    work = Workload(model=net(), **loaders)
    study, changed = searched(work, tmp_path / "study", seconds=25)
    assert not [e.reason for e in study.evaluations if not e.ok]
    with Store.open(tmp_path / "study", create=False) as store:
        artifact = pack(changed[-1], store, tmp_path / "out")
    found = verify(artifact.path, workload=work, seconds=2)
    assert found.ok, [(check.name, check.note) for check in found.broken]
    for role, loader in loaders.items():
        data: Any = loader.dataset
        assert 0 < data.most <= MOST + 160, f"{role}: {data.most} of {len(data)} photographs were in memory together"
