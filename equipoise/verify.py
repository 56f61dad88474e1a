"""Hold an exported folder to its promises, in a clean process.

First the files: every hash, the manifest's digest over itself, the card's figures. Only files that are those that were exported
are loaded; then `examine` rebuilds the source model and measures everything again (numerics, quality on validation and test,
latency beside the reference), because hashes alone say nothing about someone who can also rewrite hashes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from equipoise.artifact import Artifact
from equipoise.card import BEGIN, END, figures
from equipoise.errors import EXIT_BAD_INPUT, EquipoiseError, InputError, must_be
from equipoise.records import as_data
from equipoise.store import write_atomic


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what was found.

    Attributes:
        name: What was looked at.
        promised: In words; empty where nothing was promised and the figure is for information.
        found: In words.
        ok: Whether the promise is kept.
        note: How it was judged.
    """

    name: str
    promised: str
    found: str
    ok: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """Every check of one artifact.

    Attributes:
        path: The folder.
        checks: In the order they were made.
        seconds: Wall time.
        saved: Whether ``verify.json`` could be written beside the manifest.
    """

    path: str
    checks: tuple[Check, ...]
    seconds: float
    saved: bool = False

    def __repr__(self) -> str:
        broken = ", ".join(check.name for check in self.broken)
        return f"Verification({self.path}: {len(self.checks)} checks, {f'broken: {broken}' if broken else 'all kept'})"

    @property
    def ok(self) -> bool:
        """Whether every promise is kept."""
        return all(check.ok for check in self.checks)

    @property
    def broken(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "schema": 1,
            "ok": self.ok,
            "path": self.path,
            "checks": as_data(self.checks),
            "seconds": round(self.seconds, 3),
        }


def verify(path: str | Path, *, workload: Any = None, seconds: float = 10.0) -> Verification:
    """Check the artifact in folder `path` and write ``verify.json`` into it.

    Args:
        workload: Where the source model and the data come from: a spec such as ``digits``; None takes the manifest's. A
            `Workload` object is used in this process, since it cannot be handed to a clean one.
        seconds: Wall time for the latency comparison.
    Returns:
        The checks; `Verification.ok` tells whether all promises are kept.
    Raises:
        InputError: No artifact there, or its workload cannot be loaded.
    """
    if not seconds > 0:
        raise must_be("seconds", "positive", seconds, "10 is enough for most models.")
    began = time.perf_counter()
    artifact = Artifact.load(path)
    checks = list(integrity(artifact))
    if all(check.ok for check in checks):
        checks += _measured(artifact, workload, seconds)
    else:
        checks.append(
            Check("figures", "", "not measured", False, "the files are not those that were exported; none was loaded")
        )
    found = Verification(str(path), tuple(checks), time.perf_counter() - began, os.access(artifact.path, os.W_OK))
    if found.saved:
        write_atomic(artifact.path / "verify.json", (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    return found


def integrity(artifact: Artifact) -> Iterator[Check]:
    """Check hashes, digest and card without loading anything."""
    recorded = str(artifact.manifest.get("digest"))
    same = recorded == artifact.digest
    yield Check(
        "manifest", recorded[:12], artifact.digest[:12], same, "" if same else "its figures were changed after the export"
    )
    wrong: list[str] = []
    for name, entry in artifact.manifest["files"].items():
        try:
            content = artifact.read(name)
        except InputError as error:
            wrong.append(str(error))
            continue
        if len(content) != entry["bytes"]:
            wrong.append(f"{name} has {len(content)} bytes, not {entry['bytes']}")
        elif sha256(content).hexdigest() != entry["sha256"]:
            wrong.append(f"{name} has another SHA-256")
    needed = {*artifact.manifest["deployable"]["files"], *artifact.manifest["reference"]["files"]}
    wrong += [f"{name} is needed but has no hash" for name in sorted(needed - artifact.manifest["files"].keys())]
    total = len(artifact.manifest["files"])
    yield Check("files", f"{total} files", f"{total - len(wrong)} as recorded", not wrong, "; ".join(wrong))
    yield _card(artifact)


def _card(artifact: Artifact) -> Check:
    try:
        text = artifact.read("README.md").decode(errors="replace")
    except InputError as error:
        return Check("model card", "README.md", "nothing", False, str(error))
    block = BEGIN + text.partition(BEGIN)[2].partition(END)[0] + END
    same = block == figures(artifact.manifest)
    return Check("model card", "the manifest's figures", "the same" if same else "others", same)


def _measured(artifact: Artifact, workload: Any, seconds: float) -> list[Check]:
    """Measure in a clean process, or here where the workload is an object."""
    spec = artifact.manifest["study"]["workload"] if workload is None else workload
    if not isinstance(spec, str):
        if workload is None:
            raise must_be("workload", "given, since the manifest names none", spec, "Pass --workload SPEC.")
        from equipoise.examine import examine

        return list(examine(artifact, spec, seconds=seconds))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checks.json"
        command = [sys.executable, "-P", "-m", "equipoise.examine", str(artifact.path), spec, repr(seconds), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode < 0:
            found = f"the process died of signal {-done.returncode}"
            return [Check("loads and runs", "", found, False, "while the files were loaded and run")]
        if not out.is_file():
            raise EquipoiseError(f"the clean process failed: {done.stderr.strip()[-1500:] or f'exit {done.returncode}'}")
        result = json.loads(out.read_bytes())
    if "error" in result:
        raise InputError(result["error"]) if result["exit_code"] == EXIT_BAD_INPUT else EquipoiseError(result["error"])
    return [Check(**check) for check in result["checks"]]
