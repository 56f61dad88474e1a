"""Is a sentence of a film review friendly? Word ids in, two logits out; SST-2 with its standard split.

    EQUIPOISE_DATA=/path/to/data equipoise optimize examples/sentiment.py:make_workload --budget "latency<=0.2ms, drop<=1"

EQUIPOISE_DATA holds ``sst2/{train,dev,test}.tsv``, one ``sentence<TAB>label`` a line. Training takes about ten seconds
on one core; the accuracy is near 80 % (Kim 2014, whose CNN-rand this is in small: 82.7 %).
"""

import os
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import equipoise as eq
from equipoise.training import Recipe, fit
from equipoise.workloads import Split

WORDS = 40
"""Sentences are cut or padded to this many words. Id 0 pads, id 1 stands for unknown words."""


class TextNet(nn.Module):
    """Embed, convolve over three words, keep the strongest answer of each filter."""

    def __init__(self, vocabulary: int, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 64)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.conv = nn.Conv1d(64, width, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)  # (N, 64, words)
        x = F.relu(self.conv(x)).amax(dim=2)  # (N, width)
        return self.linear(self.dropout(x))


def read(file: Path, limit: int | None) -> tuple[list[list[str]], Tensor]:
    lines = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines()[:limit]]
    return [sentence.split()[:WORDS] for sentence, _ in lines], torch.tensor([int(label) for _, label in lines])


def make_workload(limit: int | None = None, epochs: float = 4) -> eq.Workload:
    folder = Path(os.environ.get("EQUIPOISE_DATA", "data")) / "sst2"
    parts = {role: read(folder / f"{role}.tsv", limit) for role in ("train", "dev", "test")}
    counts = Counter(word for sentence in parts["train"][0] for word in sentence)
    ids = {word: number for number, (word, count) in enumerate(counts.most_common(), start=2) if count > 1}

    def encode(role: str) -> tuple[Tensor, Tensor]:
        sentences, labels = parts[role]
        rows = [[ids.get(word, 1) for word in sentence] + [0] * (WORDS - len(sentence)) for sentence in sentences]
        return torch.tensor(rows), labels

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TextNet(len(ids) + 2)
    recipe = Recipe(batch=64, lr=2e-3, weight_decay=1e-2)
    model = fit(model, Split.of(encode("train")), loss=F.cross_entropy, epochs=epochs, recipe=recipe).model
    return eq.Workload(
        model=model, train=encode("train"), validation=encode("dev"), test=encode("test"), metric="accuracy", name="sentiment"
    )
