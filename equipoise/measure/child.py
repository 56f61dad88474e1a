"""Work done in a fresh child process, so that what is read of it is its own.

The child imports this package from where the parent did, finds its payload as files in a folder of its own and answers with
plain JSON. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHILD = "import sys; from equipoise.measure.child import main; main(sys.argv[1])"


class ChildFailed(Exception):
    """A child process gave no answer; the text says why."""


class Children:
    """A payload on disk, and children that work on it one after the other; use `children`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def run(self, entry: str, options: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Return what ``entry(folder, options)`` returns in a fresh process.

        Args:
            entry: ``package.module:function``, importable by the child; it gets the payload's folder.
            options: Plain JSON data.
            timeout_s: Seconds after which the child is stopped.
        Raises:
            ChildFailed: The child failed, was killed, or took too long.
        """
        result = self._root / "result.json"
        result.unlink(missing_ok=True)
        (self._root / "order.json").write_text(json.dumps({"entry": entry, "options": dict(options)}), encoding="utf-8")
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-c", CHILD, str(self._root)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"the child process was stopped after {timeout_s:g} s") from error
        except OSError as error:
            raise ChildFailed(f"no child process could be started: {error}") from error
        if done.returncode < 0:
            raise ChildFailed(f"the child process was killed by signal {-done.returncode} (out of memory?)")
        if done.returncode or not result.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ChildFailed(f"the child process failed: {last}")
        return json.loads(result.read_text(encoding="utf-8"))


@contextmanager
def children(payload: Mapping[str, bytes]) -> Iterator[Children]:
    """Write `payload` (file name -> content) into a temporary folder and give the means to run children on it."""
    with tempfile.TemporaryDirectory(prefix="equipoise-child-") as root:
        folder = Path(root) / "payload"
        folder.mkdir()
        for name, content in payload.items():
            (folder / name).write_bytes(content)
        yield Children(Path(root))


def main(root: str) -> None:
    """Do the order in folder `root` and write ``result.json``: the child's side."""
    order = json.loads((Path(root) / "order.json").read_text(encoding="utf-8"))
    found = pkgutil.resolve_name(order["entry"])(Path(root) / "payload", order["options"])
    (Path(root) / "result.json").write_text(json.dumps(found), encoding="utf-8")
