"""What is built is what is installed: wheel and sdist, in bare environments, on every Python at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
NEWER = ("3.12", "3.13", "3.14")
"""Beside the Python that runs the tests; those that are not here are skipped."""


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of the tree, an sdist, and the wheel that is made of the sdist alone."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: it comes with the dev extra")
    folder = tmp_path_factory.mktemp("built")
    hatch = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*hatch, "-d", str(folder / "tree")], cwd=checkout, check=True, capture_output=True, timeout=300)
    (sdist,), (wheel,) = (folder / "tree").glob("*.tar.gz"), (folder / "tree").glob("*.whl")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    subprocess.run(
        [*hatch, "-t", "wheel", "-d", str(folder / "again")], cwd=source, check=True, capture_output=True, timeout=300
    )
    return {"wheel": wheel, "sdist": sdist, "again": next((folder / "again").glob("*.whl"))}


def bare(folder: Path, python: str) -> Path:
    """Make an environment that holds nothing, and return its programs' folder."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=300, env=clean())
    return folder / "bin"


def clean() -> dict[str, str]:
    """The variables of this process without those that lead back to the source tree."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def said(*words: str | Path, cwd: Path) -> str:
    """Run a command as a user would, and return what it printed on stdout."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean(), capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built, checkout):
    tracked = {p.relative_to(checkout).as_posix() for p in (checkout / "equipoise").rglob("*") if p.is_file()}
    held = {name for name in contents(built["wheel"]) if ".dist-info/" not in name}
    assert held == {name for name in tracked if "__pycache__" not in name}
    assert {"equipoise/py.typed", "equipoise/pages/page/base.html", "equipoise/pages/page/style.css"} <= held


def test_the_sdist_makes_the_same_wheel(built):
    assert contents(built["again"]) == contents(built["wheel"])


def test_from_a_bare_environment_to_the_sentence(built, checkout, tmp_path):
    programs = bare(tmp_path / "bare", sys.executable)
    said(programs / "pip", "install", "--quiet", built["wheel"], "-c", checkout / "constraints.txt", cwd=tmp_path)
    assert "No broken requirements" in said(programs / "pip", "check", cwd=tmp_path)
    offline = ["unshare", "--net"] if _can_unshare() else []
    printed = said(*offline, programs / "equipoise", "demo", cwd=tmp_path)
    assert "on 600 test samples that the search never saw" in printed.splitlines()[-1]
    page = (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert json.loads(said(programs / "equipoise", "report", "runs/demo", "--json", cwd=tmp_path))
    # what an sdist makes is the same wheel; that pip can make it needs no second torch
    said(programs / "pip", "install", "--quiet", "--force-reinstall", "--no-deps", built["sdist"], cwd=tmp_path)
    assert said(programs / "equipoise", "--version", cwd=tmp_path).startswith("equipoise ")


@pytest.mark.parametrize("version", NEWER)
def test_a_newer_python_takes_it(built, tmp_path, version):
    """Without what it depends on, whose wheels a newer Python may lack here: every file compiles, what needs none works."""
    programs = bare(tmp_path / "bare", newer(version))
    said(programs / "pip", "install", "--quiet", "--no-deps", built["wheel"], cwd=tmp_path)
    where = said(programs / "python", "-c", "import equipoise; print(equipoise.__path__[0])", cwd=tmp_path).strip()
    said(programs / "python", "-W", "error", "-m", "compileall", "-q", "-f", where, cwd=tmp_path)
    for module in sorted(Path(where).glob("[a-z]*.py")):
        said(programs / "python", "-W", "error", "-c", f"import equipoise.{module.stem}", cwd=tmp_path)
    assert "exit codes:" in said(programs / "equipoise", "--help", cwd=tmp_path)
    assert "complete -o" in said(programs / "equipoise", "completion", "bash", cwd=tmp_path)


def newer(version: str) -> str:
    """Return an interpreter of that version: the system's, or one that pyenv keeps."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for python in filter(None, (shutil.which(f"python{version}"), *map(str, kept))):
        if subprocess.run([python, "-c", "import ssl"], capture_output=True, check=False).returncode == 0:
            return python  # pyenv's own stand-in on the path may be of a version that is not chosen
    pytest.skip(f"no Python {version} on this machine")


def _can_unshare() -> bool:
    """Whether a process may be put where there is no network."""
    return bool(shutil.which("unshare")) and not subprocess.run(["unshare", "--net", "true"], check=False).returncode
