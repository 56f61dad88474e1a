"""The notebooks of the docs run from the first cell to the last, and show what they end with as a notebook would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "docs" / "notebooks").glob("*.ipynb"))
_RUN = """
import ast, json, sys
space = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"], 1):
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), space)
        if last is not None and (value := eval(compile(ast.Expression(last), f"cell {number}", "eval"), space)) is not None:
            print(f"[{number}]", getattr(value, "_repr_html_", value.__repr__)())
"""


def run(notebook: Path, folder: Path) -> str:
    """Run the cells of a notebook in a folder of its own, and return what it printed and showed."""
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(notebook)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_what_it_showed(notebook):
    found = json.loads(notebook.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    for cell in found["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert found["cells"][0]["source"][0].startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fast-and-explained", "test samples that the search never saw"),
        ("how-large", "[8]"),
        ("by-hand", "taught, int8"),
    ],
)
def test_a_notebook_runs(name, shown, tmp_path):
    (notebook,) = (file for file in NOTEBOOKS if file.stem == name)
    assert shown in run(notebook, tmp_path)


def test_a_cell_that_fails_is_told(tmp_path):
    cells = [{"cell_type": "code", "source": ["x = 1\n", "x"]}, {"cell_type": "code", "source": ["x / 0"]}]
    (tmp_path / "bad.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(AssertionError, match=r"cell 2"):
        run(tmp_path / "bad.ipynb", tmp_path)
    (tmp_path / "good.ipynb").write_text(json.dumps({"cells": cells[:1]}))
    assert run(tmp_path / "good.ipynb", tmp_path) == "[1] 1\n"
