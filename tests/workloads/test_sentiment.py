"""Texts as a task: which column is which, what is told, words of the training texts alone, padding that changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from polar import polar, write_polar

from equipoise.errors import InputError
from equipoise.training import Recipe, fit
from equipoise.workloads import load_family, load_task
from equipoise.workloads.sentiment import Trimmed, sentiment_task
from equipoise.workloads.tables import read_texts
from equipoise.workloads.task import Shape
from equipoise.workloads.tokens import Given, Words, cleaned

TEXTS = ("bag", "textcnn", "gru", "encoder")
ODD = (
    "A\u00a0\ufb01lm\u200b, isn\u2019t it",
    "",
    "Ünïcode \u201cquoted\u201d \u2014 déjà vu\u2026 it's 3,000.50$ #tag @me",
    "ΟΔΟΣ İstanbul straße",
    "हिन्दी 日本語、です。 emoji 😀👍🏽 👩\u200d👩\u200d👧",
    "tab\tnew\nline\x01ctl \x85 nel",
    "'quoted' rock'n'roll 'tis ''' a_b",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_polar(tmp_path_factory.mktemp("polar"))


# ---- tables ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "good film\t1\nbad film\t0\nfine\t1\npoor\t0\n"),
        ("a.tsv", "1\tgood film\n0\tbad film\n1\tfine\n0\tpoor\n"),
        ("a.csv", 'sentence,id,Label\n"good film",1,1\nbad film,2,0\n"fine",3,1\n\npoor,4,0\n'),
        ("a.csv", "\ufeffid,label,text\r\n1,1,good film\r\n2,0,bad film\r\n3,1,fine\r\n4,0,poor\r\n"),
    ],
)
def test_columns_are_seen(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_texts(tmp_path / name)["all"]
    assert found.texts == ("good film", "bad film", "fine", "poor")
    assert found.labels == ("1", "0", "1", "0")


def test_columns_are_given(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("title,body,stars\nx,long text here,1\ny,other text there,2\n")
    assert read_texts(file, text="title", label="stars")["all"].texts == ("x", "y")
    assert read_texts(file, text="1", label="stars")["all"].labels == ("1", "2")
    with pytest.raises(InputError, match=r"label column of .*a\.csv must be one of title, body, stars, or 1 to 3; got 'sars'"):
        read_texts(file, label="sars")
    with pytest.raises(InputError, match="a text and a label that can be told apart"):
        read_texts(file, text="title", label="1")


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('"good\t1\nbad" ending\t0\n')
    assert read_texts(tmp_path / "a.tsv")["all"].texts == ('"good', 'bad" ending')


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("good\t1\n \t1\nbad\t0\ngood\t0\nbad\t0\nfine\t1\n")
    found = read_texts(tmp_path / "a.tsv", text="1", label="2")["all"]
    assert len(found) == 5
    assert found.notes == (
        "a: 1 text is empty and left out",
        "a: 2 lines repeat an earlier text, and 1 of them under different labels; kept as given",
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "made of lines with a text and a label"),
        (b"only\nonce\n", "of two columns or more"),
        (b"good\t1\nbad\xff\t0\n", "UTF-8"),
        (b"good one\t1\nbad one\t\nfine one\t0\n", "label in line 2"),
        (b"good one\t1\nbad one\t0\nfine\n", "line 3 of"),
        (b"a longer text\t1\nanother text\t1\n", "a text and a label that can be told apart"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_texts(tmp_path / "a.tsv")


def test_a_folder_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an existing file or folder"):
        read_texts(tmp_path / "none")
    (tmp_path / "train.tsv").write_text("good\t1\nbad\t0\n")
    with pytest.raises(InputError, match="with a test file"):
        read_texts(tmp_path)
    (tmp_path / "test.tsv").write_text("good\t2\nbad\t0\n")
    with pytest.raises(InputError, match=r"labels of the test texts must be among 0, 1; got \['2'\]"):
        sentiment_task(tmp_path)


# ---- words -----------------------------------------------------------------------------------------------------------------


def test_cleaned() -> None:
    assert cleaned("Zero\u200bWidth\x01 \u2019tis") == "zerowidth 'tis"


def test_words_are_those_of_the_training_texts(folder: Path) -> None:
    task = sentiment_task(folder, length=16)
    known = json.loads(task.files["tokenizer.json"])["model"]["vocab"]
    train = " ".join(text for text, _ in polar(600, seed=0)).split()
    assert set(known) - {"[PAD]", "[UNK]"} == {word for word in train if train.count(word) > 1}
    (folder / "more").mkdir(exist_ok=True)
    for name in ("train", "dev"):
        (folder / "more" / f"{name}.tsv").write_text((folder / f"{name}.tsv").read_text())
    (folder / "more" / "test.tsv").write_text("zyzzyva zyzzyva\t1\nzyzzyva zyzzyva\t0\n")
    other = sentiment_task(folder / "more", length=16)
    assert other.files == task.files  # no word of the test texts is in it
    assert other.test.tensors()[0][:, :3].tolist() == [[1, 1, 0]] * 2


def test_the_file_gives_the_same_rows() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text")
    texts = [*ODD, *(text for text, _ in polar(50))]
    known = Words.of([text for text in texts for _ in (0, 1)], length=9)
    read = tokenizers.Tokenizer.from_str(known.file.decode())
    rows = torch.tensor([found.ids for found in read.encode_batch(texts)])
    assert torch.equal(known.encode(texts), rows)
    assert not torch.equal(known.encode([text.upper() + "x" for text in texts]), rows)  # control


def test_a_tokenizer_that_is_given(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra text")
    own = sentiment_task(folder, length=8)
    (tmp_path / "tokenizer.json").write_bytes(own.files["tokenizer.json"])
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        given = load_task(f"sentiment:{folder}?length=8&tokenizer={place}")
        assert given.shape == own.shape
        assert torch.equal(given.train.tensors()[0], own.train.tensors()[0])
    assert Given(tmp_path, length=5).encode(["the film is not dull"]).shape == (1, 5)
    with pytest.raises(InputError, match="tokenizer must be an existing file"):
        sentiment_task(folder, tokenizer=tmp_path / "no.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="a file of Hugging Face's tokenizers"):
        sentiment_task(folder, tokenizer=tmp_path)


# ---- the task --------------------------------------------------------------------------------------------------------------


def test_splits_are_kept_as_given(folder: Path) -> None:
    task = load_task(f"sentiment:{folder}?length=12")
    assert (len(task.train), len(task.validation), len(task.test)) == (600, 100, 100)
    assert task.shape == Shape((12,), 2, task.vocabulary)
    assert task.labels == ("0", "1")
    place = torch.argsort(task.test.order)
    assert task.test.tensors()[1][place].tolist() == [label for _, label in polar(100, seed=2)]
    with pytest.raises(InputError, match="length must be at least 1"):
        sentiment_task(folder, length=0)


def test_one_file_is_cut_in_three_without_a_text_twice(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    lines = [f"{text},{'pos' if label else 'neg'}" for text, label in polar(400)]
    file.write_text("\n".join(["text,label", *lines]))
    task = sentiment_task(file, length=16)
    assert task.labels == ("neg", "pos")
    rows = [{tuple(row) for row in split.tensors()[0].tolist()} for split in (task.train, task.validation, task.test)]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    assert sum(map(len, (task.train, task.validation, task.test))) == 400
    assert torch.equal(sentiment_task(file, length=16).test.order, task.test.order)


def test_a_text_that_is_cut_is_told(folder: Path) -> None:
    assert sentiment_task(folder, length=40).train.notes[-1].endswith("kept as given")  # duplicates alone
    assert "texts fill or exceed the length 4" in sentiment_task(folder, length=4).train.notes[-1]


def test_trimming_leaves_what_is_text() -> None:
    rows = torch.tensor([[3, 4, 0, 0, 0], [3, 0, 5, 0, 0]])
    assert Trimmed(0)(rows, torch.Generator()).tolist() == [[3, 4, 0], [3, 0, 5]]
    assert Trimmed(0)(torch.zeros(2, 4, dtype=torch.int64), torch.Generator()).shape == (2, 1)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", TEXTS)
def test_padding_changes_no_answer(name: str, padding: int) -> None:
    shape = Shape((24,), 3, 50, padding=padding)
    model = load_family(name).model({}, shape, generator=torch.Generator().manual_seed(0)).eval()
    rows = torch.randint(2, 50, (6, 7), generator=torch.Generator().manual_seed(1))
    whole = torch.full((6, 24), padding)
    whole[:, :7] = rows
    with torch.no_grad():
        short, long, half = model(rows), model(whole), model(whole[:, :12])
        other = model(torch.where(whole == padding, 2, whole))  # control: another token there is read
        nothing = model(torch.full((2, 24), padding))
    assert torch.allclose(short, long, atol=1e-6)
    assert torch.allclose(half, long, atol=1e-6)
    assert not torch.allclose(other, long, atol=1e-4)
    assert bool(nothing.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_families_learn_more_than_words(folder: Path, name: str) -> None:
    task = sentiment_task(folder, length=12)
    model = load_family(name).model({}, task, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(optimizer="adamw", lr=3e-3, batch=20, dropout=0.1)
    done = fit(model, task.train, loss=task.loss, epochs=8, recipe=recipe, augment=task.augment)
    answers = done.model.eval()(task.test.tensors()[0])
    assert task.metric.score(answers, task.test.tensors()[1]) > 90


@pytest.mark.data
def test_sst2() -> None:
    data = Path(os.environ.get("EQUIPOISE_DATA", "../shared/data")) / "sst2"
    if not data.is_dir():
        pytest.skip("no SST-2 in EQUIPOISE_DATA")
    task = sentiment_task(data)
    assert (len(task.train), len(task.validation), len(task.test)) == (6920, 872, 1821)
    assert task.train.notes[0] == "train: 9 lines repeat an earlier text; kept as given"
