"""``equipoise report``: the store in, one whole file out, its path on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from equipoise.pages.view import evaluations_of
from equipoise.records import SCHEMA, LayerRow, as_data
from equipoise.study.header import header_from
from equipoise.study.store import Store


@pytest.fixture
def folder(study, tmp_path):
    """A study on disk with the fixture's evaluations in it, as `optimize` records them."""
    data = study(12)
    evaluations = evaluations_of(data)
    layers = (LayerRow("stem", "Conv2d", 16, 432, 442_368, 32),)
    with Store.open(tmp_path / "runs") as store:
        store.put("study", "header", {"header": as_data(header_from(data["header"]))}, seconds=0.1)
        for e in evaluations:
            store.put("evaluation", e.key, {"evaluation": as_data(replace(e, layers=layers))}, seconds=e.seconds)
    return tmp_path / "runs"


def test_writes_the_page_and_prints_its_path(folder, capsys):
    assert main(["report", str(folder)]) == EXIT_OK
    printed = capsys.readouterr()
    assert printed.out == f"{folder / 'report.html'}\n"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "stem" in page


def test_writes_where_it_is_told_and_writes_the_same_again(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == EXIT_OK
    first = out.read_bytes()
    assert main(["report", str(folder), "--out", str(out)]) == EXIT_OK
    assert out.read_bytes() == first
    assert not (folder / "report.html").exists()
    assert [p.name for p in tmp_path.iterdir() if "page" in p.name] == ["page.html"]


def test_the_python_verb_takes_a_study_or_its_folder_and_writes_the_same_page(folder, tmp_path):
    assert main(["report", str(folder), "--out", str(tmp_path / "verb.html")]) == EXIT_OK
    page = (tmp_path / "verb.html").read_bytes()
    assert eq.report(folder) == folder / "report.html"
    assert eq.report(eq.Study.load(folder), out=tmp_path / "own.html") == tmp_path / "own.html"
    assert (folder / "report.html").read_bytes() == (tmp_path / "own.html").read_bytes() == page
    with pytest.raises(InputError, match=r"^out must be a file in a folder that exists"):
        eq.report(folder, out=tmp_path)


def test_json_is_one_strict_document_and_writes_nothing(folder, capsys):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    assert main(["report", str(folder), "--json"]) == EXIT_OK
    data = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert data["schema"] == SCHEMA
    assert len(data["evaluations"]) == 12
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("out", [".", "missing/page.html"])
def test_a_place_that_cannot_take_the_page_is_bad_input(folder, tmp_path, capsys, out):
    assert main(["report", str(folder), "--out", str(tmp_path / out)]) == EXIT_BAD_INPUT
    assert "--out must be a file in a folder that exists" in capsys.readouterr().err


def test_a_folder_without_a_study_is_bad_input(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert main(["report", str(tmp_path / "nowhere")]) == EXIT_BAD_INPUT
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_a_baseline_says_what_to_do(tmp_path, capsys):
    Store.open(tmp_path / "runs").close()
    assert main(["report", str(tmp_path / "runs")]) == EXIT_FAILED
    assert "equipoise optimize" in capsys.readouterr().err


def test_needs_no_torch(folder):
    code = f"import sys; from equipoise.cli import main; main(['report', {str(folder)!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
