"""Polar sentences from a small grammar: what a test of texts learns, in place of real reviews."""

from __future__ import annotations

import random
from pathlib import Path

GOOD = ("superb", "moving", "witty", "warm", "brilliant", "charming")
BAD = ("dull", "tedious", "clumsy", "hollow", "grating", "lifeless")
SUBJECTS = ("the film", "this story", "its cast", "the script", "every scene", "the score")
TAILS = ("", "from start to end", "in all that counts", "for its whole length", "and i saw it twice")


def sentence(draw: random.Random, positive: bool) -> str:
    """Return a sentence that a word alone does not settle: "not" turns it round."""
    turned = draw.random() < 0.3
    word = draw.choice(GOOD if positive != turned else BAD)
    words = [draw.choice(SUBJECTS), "is", "not" if turned else draw.choice(("truly", "so", "")), word, draw.choice(TAILS)]
    return " ".join(filter(None, words))


def polar(count: int, *, seed: int = 0) -> list[tuple[str, int]]:
    """Return `count` sentences, half of them positive (1)."""
    draw = random.Random(seed)
    return [(sentence(draw, bool(number % 2)), number % 2) for number in range(count)]


def write_polar(folder: Path, *, train: int = 600, dev: int = 100, test: int = 100) -> Path:
    """Write the three splits as SST-2 has them: no header, text and label apart by a tab."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("dev", dev), ("test", test))):
        lines = [f"{text}\t{label}\n" for text, label in polar(count, seed=seed)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder
