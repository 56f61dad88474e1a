"""The schema of ``manifest.json``: what an artifact may claim, and nothing else.

Whoever can change a manifest can also make its hashes and its digest fit, so the manifest is read as a stranger's: every key
known, every value of its type, finite and within what it can be, no key twice. Two kinds of content are kept apart. What
stands outside ``recorded`` is a claim, and `verify` computes each one again. What stands in ``recorded`` (how the model was
chosen, the machine, dates) cannot be computed again; it is shown as recorded and never judged.

Needs no torch and opens no file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from equipoise.axes import AXES, on_request
from equipoise.budget import parse_budget
from equipoise.errors import InputError, must_be
from equipoise.meters import Meters
from equipoise.records import Choice, Reading
from equipoise.runtimes.base import PRECISIONS, RUNTIMES, Target, read_targets

SCHEMA = 3
"""Version of ``manifest.json``. History: 1 = first; 2 = strict: claims apart from what is only recorded; 3 = what was measured
because a budget names it is promised too, with what its user told of the machine."""

KIND = "equipoise artifact"
WEIGHTS, PROBE = "model.safetensors", "probe.safetensors"
SOURCE_STATE = "reference/source.safetensors"
"""Weights of a source model that is trained when it is loaded (``digits``), so that `verify` rebuilds the very same one."""

PROMISED = ("quality", "drop", "latency_s", "size_bytes", "params", "macs", "speed_up")
"""What every artifact promises; beside it stands what was measured because the budget names it (`axes.on_request`)."""
BASELINE = ("quality", "latency_s", "size_bytes", "params", "macs")
RANGES = {"accuracy": 100.0, "f1": 100.0}
"""Metrics that go from 0 to so many points: an interval of the drop as wide as that promises nothing."""
WIDEST_RATIO = 10.0
"""An interval of the speed-up whose ends are further apart than this promises nothing."""
MOST_N = 10**9
MOST_ROUNDS = 100_000
TEXT, NAMES, DEPTH = 2000, 20_000, 12
"""Most characters of a text, entries of a table, and levels of nesting."""


class ManifestError(InputError):
    """A manifest of ours that claims what cannot be: no export wrote it so."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A promised number; notes on how it was read are not part of a promise."""

    value: float
    unit: str
    provenance: Literal["measured"]
    low: float | None
    high: float | None
    n: int

    @property
    def reading(self) -> Reading:
        """The same as a `Reading`."""
        return Reading(float(self.value), self.unit, self.provenance, self.low, self.high, self.n)


@dataclass(frozen=True, slots=True)
class MetricClaim:
    """The metric that the figures are in, compared with the workload's."""

    name: str
    maximize: bool
    unit: str


@dataclass(frozen=True, slots=True)
class StudyClaim:
    """What was asked, of which model and data, and what was told of the machine (`Meters.told`) for what is promised."""

    name: str
    metric: MetricClaim
    target: str
    budget: str
    told: Mapping[str, float]
    fingerprint: str
    source_state: bool


@dataclass(frozen=True, slots=True)
class ProgramClaim:
    """One program of the folder: what runs it, how, and its files."""

    runtime: str
    precision: str
    target: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileClaim:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Exported:
    """When and by which version the folder was written."""

    at: str
    equipoise: str | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is told and cannot be checked: shown as such, judged never."""

    workload: str
    pick: str
    seed: int
    machine: Mapping[str, Any]
    exported: Exported
    baseline_latency_s: Figure


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of ``manifest.json``."""

    schema: int
    kind: str
    study: StudyClaim
    plan: Mapping[str, Choice]
    changed: Mapping[str, tuple[Choice, ...]]
    left_float: tuple[str, ...]
    fidelity: Literal["untouched", "one-shot", "recovered"]
    promise: Mapping[str, Figure]
    loss: float
    baseline: Mapping[str, Figure]
    bounds: str
    bounds_missed: str
    deployable: ProgramClaim
    reference: ProgramClaim
    files: Mapping[str, FileClaim]
    recorded: Recorded
    digest: str

    @property
    def meters(self) -> Meters:
        """What promised figures follow from others by."""
        return Meters(read_targets(self.study.target)[0].batch, **self.study.told)


def parse(content: bytes) -> dict[str, Any]:
    """Return the plain data of a manifest after every check that needs nothing but the manifest.

    Raises:
        InputError: Not UTF-8, not JSON, or of another schema.
        ManifestError: A key twice, a number that is not finite, or anything that `checked` refuses; one error, never more.
    """
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise must_be("manifest.json", "an Equipoise manifest", reason, "Export it again.") from error
    if not isinstance(data, dict) or data.get("kind") != KIND or type(data.get("schema")) is not int:
        raise must_be("manifest.json", "an Equipoise manifest", _short(data), "Export it again.")
    if data["schema"] > SCHEMA:
        raise InputError(
            f"manifest.json was written by a newer Equipoise (schema {data['schema']}, here {SCHEMA}). Upgrade equipoise."
        )
    if data["schema"] < SCHEMA:
        raise InputError(f"manifest.json is of schema {data['schema']}, older than {SCHEMA}. Export it again.")
    checked(data)
    return data


def checked(data: Mapping[str, Any]) -> Manifest:
    """Return `data` as a `Manifest`.

    Raises:
        ManifestError: An unknown or missing key, a wrong type or unit, a number that is not finite or cannot be, an interval
            that is turned round or too wide, or a promise without what is needed to check it.
    """
    manifest = _typed(Manifest, data, "manifest", 0)
    assert isinstance(manifest, Manifest)
    try:
        _figures(manifest)
        _words(manifest)
        _files(manifest)
    except InputError as error:  # of a budget or a target too
        raise ManifestError(str(error)) from error
    return manifest


# ---- one kind of value after the other ---------------------------------------------------------------------------------------


def _typed(kind: Any, data: Any, path: str, depth: int) -> Any:
    """Return `data` as an instance of the annotation `kind`; refuse everything else with the path of the place."""
    if depth > DEPTH:
        raise _refused(path, f"nested at most {DEPTH} deep", "more")
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, path, depth)
    if origin is Literal:
        if not isinstance(data, str) or data not in inside:
            raise _refused(path, f"one of {', '.join(inside)}", data)
        return data
    if origin in (typing.Union, types.UnionType):
        return _one_of(inside, data, path, depth)
    if origin is tuple:
        rows = _sized(data, list, path, "a list")
        return tuple(_typed(inside[0], row, f"{path}[{i}]", depth + 1) for i, row in enumerate(rows))
    if origin is not None:  # a mapping of texts
        table = _sized(data, dict, path, "an object")
        return {_text(k, f"a key of {path}"): _typed(inside[1], v, f"{path}.{_short(k)}", depth + 1) for k, v in table.items()}
    return _plain(kind, data, path, depth)


def _record(kind: Any, data: Any, path: str, depth: int) -> Any:
    hints = _hints(kind)
    table = _sized(data, dict, path, "an object")
    if unknown := sorted(set(table) - set(hints)):
        raise _refused(path, f"made of {', '.join(hints)} alone", unknown[0])
    if missing := [name for name in hints if name not in table]:
        raise _refused(f"{path}.{missing[0]}", "given", "nothing")
    return kind(**{name: _typed(hint, table[name], f"{path}.{name}", depth + 1) for name, hint in hints.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _one_of(kinds: tuple[Any, ...], data: Any, path: str, depth: int) -> Any:
    if data is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        return _typed(rest[0], data, path, depth)
    for kind in rest:
        if type(data) is kind:
            return _plain(kind, data, path, depth)
    raise _refused(path, f"of type {' or '.join(k.__name__ for k in rest)}", data)


def _plain(kind: Any, data: Any, path: str, depth: int) -> Any:
    if kind is str:
        return _text(data, path)
    if kind is bool or kind is int:
        if type(data) is not kind or abs(data) > 2**53:
            raise _refused(path, "true or false" if kind is bool else "a whole number", data)
        return data
    if kind is float:
        if type(data) not in (int, float) or abs(data) > 2**53 * 1e3 or not math.isfinite(data):
            raise _refused(path, "a finite number of a size that can be", data)
        return data
    if isinstance(data, (dict, list)):  # anything plain: what is recorded of the machine
        inner = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in inner:
            _typed(Any, value, f"{path}.{_short(key)}", depth + 1)
        return data
    if data is None or isinstance(data, bool):
        return data
    return _typed(str if isinstance(data, str) else float, data, path, depth)


def _sized(data: Any, kind: type, path: str, word: str) -> Any:
    if not isinstance(data, kind) or len(data) > NAMES:  # type: ignore[arg-type]
        raise _refused(path, f"{word} of at most {NAMES} entries", data)
    return data


def _text(data: Any, path: str) -> str:
    if not isinstance(data, str) or len(data) > TEXT or not all(c.isprintable() for c in data):
        raise _refused(path, f"a text of at most {TEXT} printable characters", data)
    return data


# ---- what the values may be --------------------------------------------------------------------------------------------------


def _figures(m: Manifest) -> None:
    """Hold every promised number to what such a number can be."""
    asked = on_request(m.promise)
    for part, axes in (("promise", (*PROMISED, *(AXES[word].key for word in asked))), ("baseline", BASELINE)):
        figures: Mapping[str, Figure] = getattr(m, part)
        if set(figures) != set(axes):
            odd = sorted(set(figures) ^ set(axes))[0]
            raise _refused(f"manifest.{part}", f"made of {', '.join(axes)}", f"{odd} {'too' if odd in figures else 'missing'}")
        for axis, figure in figures.items():
            _figure(f"manifest.{part}.{axis}", axis, figure, m.study.metric.name, untouched=part == "baseline")
    for word in asked:
        if AXES[word].of and AXES[AXES[word].of].key not in m.promise:
            raise _refused("manifest.promise", f"with the {AXES[word].of} that {word} follows from", "nothing")
    needed = Meters().told(asked)
    if set(m.study.told) != set(needed):
        names, given = (", ".join(table) or "nothing" for table in (needed, m.study.told))
        raise _refused("manifest.study.told", f"{names}, by which promised figures follow", given)
    for name, value in m.study.told.items():
        if not value > 0:
            raise _refused(f"manifest.study.told.{name}", "positive", value)
    if m.loss < -1e-6:
        raise _refused("manifest.loss", "0 or more", m.loss)


def _figure(path: str, axis: str, f: Figure, metric: str, *, untouched: bool) -> None:
    unit = {row.key: row.unit for row in AXES.values()}.get(axis, "1")
    if f.unit != unit:
        raise _refused(f"{path}.unit", unit, f.unit)
    if axis not in ("drop", "quality") and not f.value > 0:
        raise _refused(f"{path}.value", "positive", f.value)
    if axis == "quality" and metric in RANGES and not 0 <= f.value <= RANGES[metric]:
        raise _refused(f"{path}.value", f"between 0 and {RANGES[metric]:g}", f.value)
    if axis in ("params", "macs", "size_bytes") and f.value != int(f.value):
        raise _refused(f"{path}.value", "a whole number", f.value)
    if on_request((axis,)):
        _asked(path, f)
        return
    alone = axis in ("quality", "params", "macs", "size_bytes") or untouched
    if alone and (f.low is not None or f.high is not None):
        raise _refused(f"{path}.low", "null: no interval is promised here", f.low)
    counted = axis not in ("quality", "drop") and alone
    most = 1 if counted else MOST_N if axis in ("quality", "drop") else MOST_ROUNDS
    if not (1 if counted else 2) <= f.n <= most:
        raise _refused(f"{path}.n", "1: it was counted" if counted else f"between 2 and {most}", f.n)
    if not alone:
        _interval(path, axis, f, metric)


def _asked(path: str, f: Figure) -> None:
    """Hold a figure that was measured because a budget names it; how wide its interval may be is for `verify` to judge."""
    if not 1 <= f.n <= MOST_ROUNDS:
        raise _refused(f"{path}.n", f"between 1 and {MOST_ROUNDS}", f.n)
    low, high = (f.value if end is None else end for end in (f.low, f.high))
    if (f.low is None) != (f.high is None) or not 0 <= low <= f.value <= high:
        raise _refused(path, "an interval that holds its value, or none", [f.low, f.value, f.high])


def _interval(path: str, axis: str, f: Figure, metric: str) -> None:
    if f.low is None and f.high is None and axis == "drop":
        return  # a metric of the whole split has none
    if f.low is None or f.high is None or not f.low <= f.value <= f.high:
        raise _refused(path, "an interval that holds its value", [f.low, f.value, f.high])
    if axis == "drop":
        if f.low == f.high != 0:
            raise _refused(path, "an interval of some width", [f.low, f.high])
        if f.high - f.low >= RANGES.get(metric, math.inf):
            raise _refused(path, f"narrower than the {RANGES[metric]:g} points of {metric}", [f.low, f.high])
    elif not 0 < f.low < f.high <= WIDEST_RATIO * f.low:
        raise _refused(path, f"an interval of some width, its ends within {WIDEST_RATIO:g} times", [f.low, f.high])


def _words(m: Manifest) -> None:
    """Hold texts to their own grammar."""
    for path, text, pattern in (
        ("study.fingerprint", m.study.fingerprint, r"[0-9a-f]{16,128}"),
        ("digest", m.digest, r"[0-9a-f]{64}"),
        ("study.name", m.study.name, r".+"),
        ("study.metric.name", m.study.metric.name, r".+"),
    ):
        if not re.fullmatch(pattern, text):
            raise _refused(f"manifest.{path}", f"of the form {pattern}", text)
    for path, program in (("deployable", m.deployable), ("reference", m.reference)):
        if program.runtime not in RUNTIMES or program.precision not in PRECISIONS:
            raise _refused(f"manifest.{path}", "of a known runtime and precision", f"{program.runtime} {program.precision}")
        if str(Target.parse(program.target)) != program.target or Target.parse(program.target).row != program.runtime:
            raise _refused(f"manifest.{path}.target", f"a target of {program.runtime}", program.target)
    if m.reference.precision != "fp32":
        raise _refused("manifest.reference.precision", "fp32, as the user's model", m.reference.precision)
    read_targets(m.study.target)
    for text in (m.study.budget, m.bounds, m.bounds_missed):
        parse_budget(text)
    if not m.plan:
        raise _refused("manifest.plan", "at least one knob", {})


def _files(m: Manifest) -> None:
    """Hold names to paths inside the folder, and the list to what a check needs."""
    for name, entry in m.files.items():
        path = PurePosixPath(name)
        inside = str(path) == name and not path.is_absolute() and ".." not in path.parts and "\\" not in name and name != "."
        if not inside or len(name) > 200:
            raise _refused("manifest.files", "made of paths inside the folder", name)
        if entry.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise _refused(f"manifest.files.{name}", "a size and a SHA-256", f"{entry.bytes} {entry.sha256}")
    programs = [*m.deployable.files, *m.reference.files]
    for needed in (WEIGHTS, PROBE, *programs):
        if needed not in m.files:
            raise _refused("manifest.files", f"listing {needed}, without which nothing can be checked", "nothing")
    if not m.deployable.files or not m.reference.files or len(set(programs)) != len(programs):
        raise _refused("manifest.deployable.files", "the program's own files, each once", programs)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: readers would differ in which one they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _refused("manifest.json", "without a key twice in one object", next(k for k in keys if keys.count(k) > 1))
    return found


def _no_constant(word: str) -> Any:
    raise _refused("manifest.json", "made of finite numbers", word)


def _refused(path: str, constraint: str, value: object) -> ManifestError:
    return ManifestError(str(must_be(path, constraint, _short(value), "Export it again.")))


def _short(value: object) -> str:
    """A value for a message, cut and without what a terminal would act on."""
    text = str(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return "".join(c if c.isprintable() else "?" for c in text[:80])
