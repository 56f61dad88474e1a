"""Models of several inputs for every room's tests: token ids with a mask, as Hugging Face's take them, and an image with a row.

The workload's labels are the sign of what the unmasked tokens add up to, so that a mask that is lost shows in the answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from equipoise.workloads import Workload

VOCABULARY, LENGTH = 40, 12
Data = tuple[dict[str, Tensor], Tensor]


@dataclass
class Output:
    """What the encoder returns, as libraries do: a record, of which one tensor is judged."""

    logits: Tensor
    pooled: Tensor | None = None


class Layer(nn.Module):
    """Attention that sees unmasked places, and a two-layer network, each added to its input and normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        parts = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = parts
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + attention_mask
        seen = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.merge(seen))
        return self.norm2(x + self.narrow(F.gelu(self.widen(x))))


class Encoder(nn.Module):
    """``forward(input_ids, attention_mask=None, *, detailed=False)`` -> a record with logits (N, 2)."""

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, detailed: bool = False) -> Output:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.token(input_ids) + self.place(torch.arange(input_ids.shape[1]))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        shares = mask[..., None].to(x.dtype)
        pooled = (x * shares).sum(1) / shares.sum(1)
        return Output(self.head(pooled), pooled if detailed else None)


def sentences(count: int, *, seed: int = 0) -> Data:
    """Token ids and masks (count, LENGTH), and whether the unmasked tokens lie above the middle of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    centred = (ids - (VOCABULARY - 1) / 2) * mask
    return {"input_ids": ids, "attention_mask": mask}, (centred.sum(1) > 0).long()


def trained(*, steps: int = 120) -> nn.Module:
    """An encoder that has learned its task fairly well, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Encoder()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    inputs, targets = sentences(64 * steps, seed=1)
    for start in range(0, len(targets), 64):
        few = {name: value[start : start + 64] for name, value in inputs.items()}
        loss = F.cross_entropy(net(**few).logits, targets[start : start + 64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def workload(net: nn.Module | None = None, *, padded: bool = True) -> Workload:
    """The encoder with its data: what a user writes. Not padded, each batch is as long as its longest sentence."""
    make = sentences if padded else ragged
    return Workload(model=net or trained(), train=make(600, seed=2), validation=make(300, seed=3), test=make(200, seed=4))


def ragged(count: int, *, seed: int) -> DataLoader[Any]:
    """The same sentences without padding: token ids of any length, put together as they are drawn."""
    inputs, labels = sentences(count, seed=seed)
    rows = zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True)
    samples = [{"input_ids": ids[mask > 0], "label": label} for ids, mask, label in rows]
    return DataLoader(_Rows(samples), batch_size=8, collate_fn=together)  # type: ignore[arg-type]


class _Rows:
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def together(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad to the longest of these."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.stack([F.pad(row["input_ids"], (0, longest - len(row["input_ids"]))) for row in rows])
    mask = torch.stack([(torch.arange(longest) < len(row["input_ids"])).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.stack([row["label"] for row in rows])}


class Pair(nn.Module):
    """``forward(image, row)``: an image (N, 3, 8, 8) and a row of numbers (N, 4), by position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.row = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(4, 16)
        self.head = nn.Linear(32, 3)

    def forward(self, image: Tensor, row: Tensor, scale: float = 1.0) -> Tensor:
        seen = F.relu(self.norm(self.conv(image))).mean((2, 3))
        return self.head(torch.cat([seen, scale * F.relu(self.row(row))], 1))


def pairs(count: int, *, seed: int = 0) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Images with rows, and labels of three classes."""
    generator = torch.Generator().manual_seed(seed)
    image, row = torch.randn(count, 3, 8, 8, generator=generator), torch.randn(count, 4, generator=generator)
    return (image, row), torch.stack([image.mean((1, 2, 3)) * 10, row.sum(1), row[:, 0]], 1).argmax(1)


def paired() -> nn.Module:
    """A model of an image and a row, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Pair()
        net.train()(*pairs(64, seed=9)[0])
    return net.eval()
