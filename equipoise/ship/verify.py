"""Hold an exported folder to its promises, in a clean process.

First the files: the manifest's schema, its digest, whether it agrees with itself, every hash, strangers, the card's figures.
Only files that are those that were exported are loaded; then `recheck` rebuilds the source model and measures everything again
(numerics, quality on validation and test, latency beside the reference), because hashes alone say nothing about someone who can
also rewrite hashes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from equipoise.built_in import WORKLOADS
from equipoise.errors import EXIT_BAD_INPUT, EquipoiseError, InputError, must_be
from equipoise.records import Reading, as_data, reading_from
from equipoise.runtimes.base import runs_code
from equipoise.ship.agreement import contradictions
from equipoise.ship.artifact import Artifact
from equipoise.ship.card import BEGIN, END, figures, verified_block, with_test
from equipoise.ship.manifest import ManifestError
from equipoise.ship.promises import SAMPLES, Check, judged
from equipoise.study.files import write_atomic
from equipoise.study.tested import RESULT, headline, tested

CARD_BYTES = 4_000_000
PATIENCE_S = 3600
"""A program that has not answered after so long is taken for one that never will."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Every check of one artifact.

    Attributes:
        path: The folder.
        checks: In the order they were made.
        seconds: Wall time.
        saved: Whether ``verify.json`` could be written beside the manifest.
        executed: What was executed to find out, in words.
        headline: What the test split shows, in one sentence; empty where it was not read.
        test: The figures behind the headline by axis.
        digest: Of the manifest that was checked.
        recorded: What the manifest records and nobody can check, in words.
    """

    path: str
    checks: tuple[Check, ...]
    seconds: float
    saved: bool = False
    executed: str = ""
    headline: str = ""
    test: Mapping[str, Reading] = field(default_factory=dict)
    digest: str = ""
    recorded: str = ""

    def __repr__(self) -> str:
        broken = ", ".join(check.name for check in self.broken)
        return f"Verification({self.path}: {len(self.checks)} checks, {f'broken: {broken}' if broken else 'all kept'})"

    @property
    def ok(self) -> bool:
        """Whether no promise is broken; what cannot be told from here is in `untold`."""
        return not self.broken

    @property
    def broken(self) -> tuple[Check, ...]:
        """The promises that are not kept."""
        return tuple(check for check in self.checks if check.state == "broken")

    @property
    def untold(self) -> tuple[Check, ...]:
        """The promises that cannot be told kept or broken from here, each with the reason in its note."""
        return tuple(check for check in self.checks if check.state == "cannot tell")

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "schema": 2,
            "ok": self.ok,
            "headline": self.headline,
            "broken": [check.name for check in self.broken],
            "cannot_tell": [check.name for check in self.untold],
            "path": self.path,
            "digest": self.digest,
            "executed": self.executed,
            "recorded_not_checked": self.recorded,
            "test": as_data(self.test),
            "checks": as_data(self.checks),
            "seconds": round(self.seconds, 3),
        }


def verify(
    artifact: Artifact | str | Path,
    *,
    workload: Any = None,
    seconds: float = 10.0,
    trust_nothing: bool = False,
    announce: Callable[[str], None] = lambda executed: None,
) -> Verification:
    """Check every promise of an artifact on its files, write ``verify.json`` beside them and the test figures into its card.

    Args:
        artifact: The folder, or what `export` returned of it; what is checked is what lies there now.
        workload: Where the source model and the data come from: a spec such as ``digits``; None takes what the manifest
            records, and then the Python file that it names is executed. A `Workload` object is used in this process, since it
            cannot be handed to a clean one.
        seconds: Wall time for the latency comparison.
        trust_nothing: Execute no code that the artifact names: no workload, so that only the files, the probe, sizes, structure
            and the ratio of latencies are checked, and the rest is said to be unchecked. A ``verify.json`` with test figures of
            the same digest stays, unless a promise is found broken.
        announce: Told in words what will be executed, before it is.
    Returns:
        The checks; `Verification.ok` tells whether no promise is broken.
    Raises:
        InputError: No artifact there, a workload that cannot be loaded, or one whose samples are of another shape. (A manifest
            that claims what cannot be is a check that is broken.)
    """
    if not 0 < seconds < math.inf:
        raise must_be("seconds", "positive and finite", seconds, "10 is enough for most models.")
    if trust_nothing and workload is not None:
        raise must_be("workload", "left out with trust_nothing", workload, "Its code would be executed.")
    began, path = time.perf_counter(), artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    try:
        artifact = Artifact.load(path)
    except ManifestError as error:
        return _forged(path, str(error), time.perf_counter() - began)
    executed = executes(artifact, workload, trust_nothing=trust_nothing)
    announce(executed)
    checks, found = list(integrity(artifact)), dict[str, Reading]()
    if all(check.ok for check in checks):
        measured, found = _measured(artifact, workload, seconds, trust_nothing=trust_nothing)
        other = next((check for check in measured if check.name == SAMPLES and not check.ok), None)
        if other is not None and workload is not None:
            wanted = f"what the artifact was made of, with samples that are {other.promised}"
            raise must_be("workload", wanted, other.found, "Pass the source model with its own data.")
        checks += measured
    else:
        checks.append(
            judged("figures", "", "not measured", False, "the files are not those that were exported; none was loaded")
        )
    told = headline(found, artifact.manifest["study"]["metric"]) if "drop" in found else ""
    took, saved = time.perf_counter() - began, os.access(artifact.path, os.W_OK)
    recorded = _recorded(artifact)
    result = Verification(str(path), tuple(checks), took, saved, executed, told, found, artifact.digest, recorded)
    if saved and not (trust_nothing and result.ok and tested(artifact.path, artifact.digest)):  # that one says more
        foreign = workload is not None and any(check.name == "source model" for check in result.broken)
        _save(artifact, result, on_card=not foreign and not trust_nothing)
    return result


def executes(artifact: Artifact, workload: Any = None, *, trust_nothing: bool = False) -> str:
    """Say which code besides Equipoise's own a verification executes.

    Raises:
        InputError: Nothing may be executed, but a program is of a runtime whose files may hold code; or the workload that the
            manifest names lies in the artifact itself.
    """
    claims = artifact.claims
    if trust_nothing:
        for program in (claims.deployable, claims.reference):
            if runs_code(program.runtime):
                wanted = "of a runtime whose files hold no code"
                raise must_be("a program to verify with --trust-nothing", wanted, program.runtime, ASK)
        return "nothing but the programs' own operators: no workload, no pickle, no code from the folder"
    spec = claims.recorded.workload if workload is None else workload
    if not isinstance(spec, str):
        return "the model and the metric of the workload that was given"
    file, _, _ = spec.rpartition(":")
    if not file.endswith(".py"):
        if spec.partition(":")[0] not in WORKLOADS:
            kinds = "built in or FILE.py:FUNCTION (this study was made from an object in Python)"
            remedy = "Pass its file with --workload SPEC, or the object in Python: eq.verify(artifact, workload=work)."
            raise must_be("the workload that the manifest names", kinds, spec, remedy)
        return f"the built-in workload {spec}; no code from the folder"
    if workload is None and artifact.path.resolve() in Path(file).resolve().parents:
        raise must_be("the workload that the manifest names", "outside the artifact", spec, ASK)
    return f"the Python file {file}, which " + ("the manifest names" if workload is None else "--workload names")


def _recorded(artifact: Artifact) -> str:
    """Name what stands in the manifest for the record alone."""
    r = artifact.claims.recorded
    said = f"picked as {r.pick!r}, seed {r.seed}, workload {r.workload}, exported {r.exported.at} by {r.exported.equipoise}"
    return f"{said}, on {r.machine.get('cpu', 'an unknown CPU')}"


def _forged(folder: Path, reason: str, seconds: float) -> Verification:
    """What there is to say of a manifest that no export wrote: nothing else in the folder was looked at."""
    check = judged("manifest", "what an export writes", "something else", False, reason)
    saved = os.access(folder, os.W_OK)
    found = Verification(str(folder), (check,), seconds, saved, "nothing")
    if saved:
        write_atomic(folder / RESULT, (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    return found


ASK = "Get the workload from someone you trust and pass it with --workload SPEC."


def _save(artifact: Artifact, found: Verification, *, on_card: bool) -> None:
    """Write the result beside the manifest and, where it is of the artifact's own workload, its headline into the card."""
    write_atomic(artifact.path / RESULT, (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    file = artifact.path / "README.md"
    if on_card and file.is_file() and not file.is_symlink() and file.stat().st_size <= CARD_BYTES:
        text = file.read_text(encoding="utf-8", errors="replace")
        write_atomic(file, with_test(text, verified_block(found.headline, found.broken, found.untold)).encode())


def integrity(artifact: Artifact) -> Iterator[Check]:
    """Check digest, the manifest against itself, hashes, strangers and the card, without loading anything."""
    recorded = str(artifact.manifest.get("digest"))
    same = recorded == artifact.digest
    yield judged(
        "manifest", recorded[:12], artifact.digest[:12], same, "" if same else "its figures were changed after the export"
    )
    wrong = list(contradictions(artifact.manifest))
    yield judged("agrees with itself", "", "yes" if not wrong else "no", not wrong, "; ".join(wrong))
    yield _hashes(artifact)
    strangers = artifact.unlisted
    named = ", ".join(strangers[:5]) + (" and more" if len(strangers) > 5 else "")
    yield judged("nothing else", "no file beyond those", f"{len(strangers)} unlisted", not strangers, named)
    yield _card(artifact)


def _hashes(artifact: Artifact) -> Check:
    wrong: list[str] = []
    for name, entry in artifact.manifest["files"].items():
        try:
            content = artifact.read(name)
        except (InputError, OSError) as error:
            wrong.append(str(error))
            continue
        if len(content) != entry["bytes"]:
            wrong.append(f"{name} has {len(content)} bytes, not {entry['bytes']}")
        elif sha256(content).hexdigest() != entry["sha256"]:
            wrong.append(f"{name} has another SHA-256")
    total = len(artifact.manifest["files"])
    return judged("files", f"{total} files", f"{total - len(wrong)} as recorded", not wrong, "; ".join(wrong))


def _card(artifact: Artifact) -> Check:
    try:
        if (artifact.path / "README.md").stat().st_size > CARD_BYTES:
            raise must_be("README.md", f"under {CARD_BYTES} bytes", "more", "Export it again.")
        text = artifact.read("README.md").decode(errors="replace")
    except (InputError, OSError) as error:
        return judged("model card", "README.md", "nothing", False, str(error))
    block = BEGIN + text.partition(BEGIN)[2].partition(END)[0] + END
    same = text.count(BEGIN) == text.count(END) == 1 and block == figures(artifact.manifest)
    return judged("model card", "the manifest's figures", "the same" if same else "others", same)


def _measured(
    artifact: Artifact, workload: Any, seconds: float, *, trust_nothing: bool
) -> tuple[list[Check], dict[str, Reading]]:
    """Measure in a clean process, or here where the workload is an object."""
    spec = artifact.claims.recorded.workload if workload is None else workload
    if not isinstance(spec, str):
        from equipoise.ship.recheck import recheck

        found: dict[str, Reading] = {}
        return list(recheck(artifact, spec, seconds=seconds, found=found)), found
    file = "" if trust_nothing else spec.rpartition(":")[0]
    if file.endswith(".py") and not Path(file).is_file():
        missing = must_be("workload file", "an existing Python file", file, "Paths are relative to the current folder.")
        raise _unloadable({"error": str(missing), "exit_code": EXIT_BAD_INPUT}, spec, named=workload is None)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checks.json"
        words = [str(artifact.path), "" if trust_nothing else spec, repr(seconds), str(out)]
        command = [sys.executable, "-P", "-m", "equipoise.ship.recheck", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return [judged("loads and runs", "", "no end", False, f"stopped after {PATIENCE_S} s")], {}
        if not out.is_file():
            return [_died(done, loaded=out.with_suffix(".loaded").is_file(), spec=spec)], {}
        result = json.loads(out.read_bytes())
    if "error" in result:
        raise _unloadable(result, spec, named=workload is None)
    return [Check(**check) for check in result["checks"]], {k: reading_from(v) for k, v in result["found"].items()}


def _died(done: subprocess.CompletedProcess[str], *, loaded: bool, spec: str) -> Check:
    """Tell a process that a file brought down from one that did not get so far."""
    how = f"the process died of signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    last = (done.stderr.strip().splitlines() or [how])[-1][:300]
    if not loaded:
        raise EquipoiseError(f"workload {spec} could not be loaded in a clean process: {how}. {last}")
    return judged("loads and runs", "", how, False, f"while the files were loaded and run; {last}")


def _unloadable(result: Mapping[str, Any], spec: str, *, named: bool) -> EquipoiseError:
    """Say what to do where the workload that the manifest names is not to be found from here."""
    error = str(result["error"])
    if named:
        error += (
            f" The manifest names the workload {spec!r}, as it was called where the study ran. "
            "Pass --workload SPEC with the source model and its data, as they are named from here."
        )
    return InputError(error) if result["exit_code"] == EXIT_BAD_INPUT else EquipoiseError(error)
