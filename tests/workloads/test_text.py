"""Text as a task: windows that share no character across regions, an alphabet of the training region, bits per character."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from equipoise.errors import InputError
from equipoise.workloads import Task, load_task
from equipoise.workloads.text import UNKNOWN, Alphabet, read_text, text_task, windows


@pytest.fixture(scope="module")
def topics() -> Path:
    """English prose that ships with Python."""
    found = importlib.util.find_spec("pydoc_data.topics")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


def laid_out(task: Task, role: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of a split in the order of the text."""
    split = getattr(task, role)
    inputs, targets = split.tensors()
    place = torch.argsort(split.order)
    return inputs[place], targets[place]


def leaks(text: str, task: Task, context: int) -> list[str]:
    """Roles whose windows hold anything but their own region of `text`."""
    cuts = [0, round(len(text) * 0.9), round(len(text) * 0.95), len(text)]
    alphabet = Alphabet.of(text[: cuts[1]])
    wrong = []
    for role, start, stop in zip(("train", "validation", "test"), cuts, cuts[1:], strict=False):
        inputs, targets = laid_out(task, role)
        region = alphabet.encode(text[start:stop])
        whole = torch.cat((inputs.flatten(), targets.flatten()[-1:]))
        same = torch.equal(whole, region[: len(whole)]) and torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
        if not same or len(region) - len(whole) >= context:
            wrong.append(role)
    return wrong


def test_regions_share_no_window(topics: Path) -> None:
    task = text_task(topics, context=32)
    text = topics.read_text(encoding="utf-8")
    assert leaks(text, task, 32) == []
    assert leaks(text[1:] + text[0], task, 32) == ["train", "validation", "test"]  # control: shifted by one character
    assert sum(len(s) for s in (task.train, task.validation, task.test)) == pytest.approx(len(text) / 32, abs=3)
    assert task.shape.dense
    assert task.outputs == task.vocabulary
    assert task.sample == (32,)
    assert task.train.tensors()[0].dtype == torch.int64
    assert task.metric.name == "bits_per_character"


def test_windows_by_hand() -> None:
    inputs, targets = windows(torch.arange(8), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert targets.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert len(windows(torch.arange(7), 3)[0]) == 2
    assert len(windows(torch.arange(6), 3)[0]) == 1


def test_unknown_characters_later(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("ab" * 450 + "z" + "ab" * 24 + "é" * 60, encoding="utf-8")  # z is met once, é never in training
    task = text_task(file, context=4)
    assert task.vocabulary == 3  # unknown, a, b
    assert set(laid_out(task, "test")[0].unique().tolist()) == {0}
    assert 0 in laid_out(task, "train")[0]
    alphabet = Alphabet.of("aabbc" + UNKNOWN * 2)
    assert alphabet.characters == (UNKNOWN, "a", "b")
    assert alphabet.decode(alphabet.encode("abc")) == f"ab{UNKNOWN}"


def test_bits_of_a_letter_count_are_its_entropy(topics: Path) -> None:
    """A model that knows only how often each character comes scores the cross entropy of the counts."""
    task = text_task(topics, context=16)
    tokens = laid_out(task, "train")[1].flatten()
    counts = torch.bincount(tokens, minlength=task.outputs).double() + 1
    shares = counts / counts.sum()
    _, targets = task.validation.tensors()
    logits = shares.log().float()[None, :, None].expand(len(targets), -1, 16)
    found = task.metric.score(logits, targets)
    seen = Counter(targets.flatten().tolist())
    by_hand = -sum(n * math.log2(float(shares[token])) for token, n in seen.items()) / targets.numel()
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found < math.log2(task.outputs)  # better than guessing
    each = task.metric.each(logits, targets)
    assert each.shape == (len(targets),)


@pytest.mark.data
def test_first_column_of_a_table(data_folder: Path) -> None:
    file = data_folder / "sst2" / "train.tsv"
    task = load_task(f"text:{file}?context=48")
    text = read_text(file)
    assert "\t" not in text
    assert text.startswith("a stirring , funny and finally transporting")
    assert text.count("\n") == 6920
    assert task.sample == (48,)
    assert len(task.train) > 10_000


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 9999)
    (tmp_path / "same.txt").write_text("a" * 9999)
    for spec, message in (
        ("text:missing.txt", "an existing file"),
        (f"text:{tmp_path / 'short.txt'}", "at least 3880 characters for a context of 64; got 9"),
        (f"text:{tmp_path / 'latin.txt'}", "UTF-8"),
        (f"text:{tmp_path / 'same.txt'}", "at least two classes"),
        ("text:x?context=0", "context must be at least 1"),
        ("text:x?context=many", "a whole number"),
        ("text:x?contxt=3", "Did you mean 'context'"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(spec)
    (tmp_path / "enough.txt").write_text("ab" * 1940)
    assert len(load_task(f"text:{tmp_path / 'enough.txt'}").validation) == 3
