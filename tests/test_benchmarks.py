"""The benchmarks name only what there is: each is imported, so that a name that the package drops is missed at once."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_imported(name: str) -> None:
    ended = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_gallerys_page_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    gallery = importlib.import_module("gallery")
    page = gallery.PAGE.read_text()
    assert gallery.MARK in page
    measured = {field: found for field in gallery.FIELDS if (found := gallery.kept(field))}
    for field, found in measured.items():
        assert gallery.section(field, found) in page, f"{field}: python benchmarks/gallery.py page"
        assert (gallery.PICTURES / f"{field}.svg").is_file()
    assert page.partition(gallery.MARK)[2].count("](gallery/") == len(measured)
