"""Sentences in two languages, and what can be wrong with their files."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from equipoise.errors import InputError
from equipoise.generated.languages import SIZES, sentences, write
from equipoise.workloads.parallel import read_parallel


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_read_as_they_stand(tmp_path: Path, packed: bool) -> None:
    found = read_parallel(write(tmp_path, packed=packed), source="en", target="de")
    assert {role: len(part.source) for role, part in found.items()} == dict(
        zip(("train", "validation", "test"), SIZES.values(), strict=True)
    )
    assert list(zip(found["train"].source, found["train"].target, strict=True)) == sentences(SIZES["train"], 0)
    back = read_parallel(tmp_path, source="de", target="en")
    assert back["test"].source == found["test"].target


def test_the_first_of_several_test_sets_is_taken(tmp_path: Path) -> None:
    write(tmp_path)
    for tag in ("en", "de"):
        shutil.move(tmp_path / f"test.{tag}", tmp_path / f"test_2016_flickr.{tag}")
        (tmp_path / f"test_2017.{tag}").write_text("another\n")
    assert len(read_parallel(tmp_path, source="en", target="de")["test"].source) == SIZES["test"]


def test_pairs_with_an_empty_side_are_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path)
    lines = (tmp_path / "train.de").read_text().split("\n")
    (tmp_path / "train.de").write_text("\n".join(["", "  ", *lines[2:]]))
    found = read_parallel(tmp_path, source="en", target="de")["train"]
    assert len(found.source) == SIZES["train"] - 2
    assert found.notes == (f"train: 2 of {SIZES['train']} pairs have an empty side and are left out",)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "must be a folder with train.en"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "an empty folder"),
        (lambda folder: (folder / "train.de").write_text("one line\n"), "240 and 1 lines"),
        (lambda folder: (folder / "train.de").unlink(), r"train\.de must be beside train\.en"),
        (lambda folder: [(folder / f"test.{tag}").unlink() for tag in ("en", "de")], "a test split"),
        (lambda folder: (folder / "train.de").write_bytes(b"\xff\xfe\n"), r"UTF-8.*byte 0"),
        (lambda folder: (folder / "val.de").write_text("\n" * SIZES["val"]), "40 pairs with an empty side"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path, spoil: object, told: str) -> None:
    folder = write(tmp_path / "data")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=told):
        read_parallel(folder, source="en", target="de")


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    content = (tmp_path / "train.en.gz").read_bytes()
    (tmp_path / "train.en.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"train\.en\.gz must be a readable file"):
        read_parallel(tmp_path, source="en", target="de")
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"x")[:-4] + b"abcd")
    with pytest.raises(InputError, match=r"train\.en\.gz"):
        read_parallel(tmp_path, source="en", target="de")


def test_languages_that_are_not_there_are_told_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"target language must be one of de, en; got 'fr'"):
        read_parallel(tmp_path, source="en", target="fr")
    with pytest.raises(InputError, match="another language than the source en"):
        read_parallel(tmp_path, source="en", target="en")
