"""The gallery: fields that can each be tried offline, and one walked from data to a verified file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from equipoise.built_in import FAMILIES, TASKS, workload_of
from equipoise.cli import main
from equipoise.cli.gallery import add_parser, run
from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from equipoise.fields import FIELDS
from equipoise.workloads import load_family, load_task

DOCS = Path(__file__).parents[2] / "docs"


def test_the_fields_are_listed_with_their_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "--store", str(tmp_path)]) == EXIT_OK
    told = capsys.readouterr().out
    for name, row in FIELDS.items():
        assert row.says in told
        assert f"equipoise gallery {name} --data PATH" in told
    assert told.count("last: never run here") == len(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_made_of_what_is_there(name: str) -> None:
    row = FIELDS[name]
    kind = row.task.partition(":")[0]
    assert kind in TASKS
    assert row.family in FAMILIES
    assert "{data}" in row.task
    assert (DOCS / row.page).is_file()
    assert workload_of(row.family, row.task.format(data="DATA"), {"width": 8}, Path("runs/a")), (
        "what is trained can be optimized"
    )


@pytest.mark.parametrize("name", FIELDS)
def test_its_made_up_set_is_a_task_that_its_family_learns(name: str, tmp_path: Path) -> None:
    row = FIELDS[name]
    if name == "driving":
        pytest.importorskip("stable_baselines3")
    folder = row.written(tmp_path / "data")
    family = load_family(row.family)
    task = load_task((row.sampled or row.task).format(data=folder), family=family)
    again = row.written(tmp_path / "again")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in names)  # always the same set
    assert family.scale(**(row.small or row.scale))
    assert len(task.train) >= 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gallery", "cooking"], "field must be one of"),
        (["gallery", "--data", "x"], "FIELD must be given with --data"),
        (["gallery", "translation", "--data", "no/such/folder"], "--data must be an existing file or folder"),
    ],
)
def test_what_cannot_be_run_is_told(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--store", str(tmp_path / "store")]) == EXIT_BAD_INPUT
    assert told in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_folder_is_of_one_set_and_one_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own data after the made-up set ended in an error of an inner folder, and so did its remedy, after a training."""
    walked: list[list[str]] = []
    monkeypatch.setattr("equipoise.cli.main", lambda words: walked.append(words) or EXIT_FAILED)
    store = tmp_path / "store"
    data = [FIELDS["recommendation"].written(tmp_path / each / "shop") for each in "ab"]

    def gallery(*words: str) -> int:
        return run(parsed("recommendation", "--store", str(store), *words))

    assert [gallery(), gallery("--data", str(data[0]))] == [EXIT_FAILED] * 2
    folders = {Path(words[words.index("--store") + 1]).parent for words in walked}
    assert folders == {store / "recommendation", store / f"recommendation-{data[0].name.partition('.')[0]}"}
    for words, told in ((["--time", "2min"], "--time must be '60s'"), (["--data", str(data[1])], "--data must be")):
        with pytest.raises(InputError, match=told) as raised:
            gallery(*words)
        assert "Name another --store, or delete" in str(raised.value)
    assert len(walked) == 2


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["gallery", *words])


@pytest.mark.slow
def test_a_field_is_walked_from_data_to_a_verified_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gallery", "sentiment", "--store", str(tmp_path), "--time", "40s"]
    code = main(words)
    assert code in (EXIT_OK, EXIT_FAILED)  # on a busy machine the time may be too short to search anything, and that is told
    told = capsys.readouterr().out
    assert "every promise is kept" in told or "no promise is broken" in told
    found = json.loads((tmp_path / "sentiment" / "gallery.json").read_text())
    assert found["trained"]["test_quality"]["value"] > 80
    assert found["best"]["size_bytes"]["value"] <= found["untouched"]["size_bytes"]["value"]
    assert (tmp_path / "sentiment" / "search" / "report.html").is_file()
    assert main(words) == code  # nothing is trained a second time
    again = json.loads((tmp_path / "sentiment" / "gallery.json").read_text())
    assert again["trained"] == found["trained"]
    capsys.readouterr()
    assert main(["gallery", "--store", str(tmp_path), "--json"]) == EXIT_OK
    listed = json.loads(capsys.readouterr().out)["fields"]
    assert listed["sentiment"]["sentence"] == again["sentence"]
    assert listed["translation"] is None
