"""What the verbs accept on the command line, judged before anything slow is imported.

Each reader takes the text of an argument and gives its value, or raises the one sentence that names argument, value and remedy.
`Parser` is argparse with its complaints in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from equipoise.built_in import BuiltIn, forms
from equipoise.errors import InputError, must_be, unknown
from equipoise.units import LARGEST, parse


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where the usage is told; a value such as ``-5s`` is one, and no option."""

    def __init__(self, *args: Any, **details: Any) -> None:
        super().__init__(*args, **details)
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as the error that every other bad input is."""
        if " must be " in message:  # one of our own readers: argparse puts the argument's name in front
            raise InputError(re.sub(r"^argument \S+: ", "", message))
        raise InputError(f"{message}. usage: {self.prog} --help")

    def spelled(self, error: InputError) -> InputError:
        """Return an error about an argument of a Python verb, as in ``out must be``, with the name that it has here."""
        name, _, rest = str(error).partition(" must ")
        option = f"--{name.replace('_', '-')}"
        if rest and option in self._option_string_actions:
            error.args = (f"{option} must {rest}",)
        return error

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Raise for arguments that this verb does not have."""
        near = difflib.get_close_matches(words[0].partition("=")[0], self._option_string_actions, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(words)}.{hint}".removesuffix("."))


Reader = Callable[[str, str], Any]
"""Takes the name of an argument and its text; gives its value."""


def option(parser: argparse.ArgumentParser, name: str, read: Reader, **details: Any) -> None:
    """Add the option `name`, whose text `read` turns into its value; `details` are argparse's."""

    def call(text: str) -> Any:
        try:
            return read(name, text)
        except InputError as error:
            told = " ".join(str(error).splitlines())
            raise argparse.ArgumentTypeError(told if name in told else f"{name}: {told}") from error

    parser.add_argument(name, type=call, **details)


def whole(*, least: int = 0, most: int = LARGEST) -> Reader:
    """Return a reader of a whole number between `least` and `most`."""

    def read(name: str, text: str) -> int:
        value = int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,4000}\s*", text, re.ASCII) else None
        if value is None or not least <= value <= most:
            told = most < LARGEST or (value is not None and value > most)
            bounds = f"a whole number of at least {least}" + (f" and at most {most}" if told else "")
            raise must_be(name, bounds, text, f"Write for example {name} {max(least, min(most, 2))}.")
        return value

    return read


def positive(example: str, *, zero: bool = False) -> Reader:
    """Return a reader of a finite number above 0 (or 0 itself)."""

    def read(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        vanished = value == 0 and re.search(r"[1-9]", text.lower().partition("e")[0])  # 1e-400 is below every float
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero) or vanished:
            wanted = "a finite number, zero or more" if zero else "a finite number above 0"
            raise must_be(name, wanted, text, f"Write for example {name} {example}.")
        return value

    return read


def duration(*, zero: bool = False) -> Reader:
    """Return a reader of a wall time, which stays as it was written."""

    def read(name: str, text: str) -> str:
        try:
            seconds = parse(text, "s", name=name)
        except InputError:
            seconds = math.nan
        if not (seconds > 0 or (seconds == 0 and zero)):
            wanted = f"a time {'of zero or more' if zero else 'above 0'} with its unit (s, min, h)"
            raise must_be(name, wanted, text, f"Write for example {name} 20min.")
        return text

    return read


def slo(name: str, text: str) -> tuple[float, float]:
    """Read ``p99<=20ms``: the share of requests, and the seconds."""
    found = re.fullmatch(r"\s*p(\d{1,2}(?:\.\d+)?)\s*<=\s*(.+)", text)
    remedy = f'Write for example {name} "p99<=20ms".'
    if found is None or not 50 <= float(found[1]) < 100:
        raise must_be(name, "pN<=TIME, N from 50 to 99.9", text, remedy)
    seconds = parse(found[2], "s", name=name)
    if not 0 < seconds <= 3600:
        raise must_be(name, "pN<=TIME, the time above 0 and an hour at most", text, remedy)
    return float(found[1]) / 100, seconds


def token_in(file: Path | None) -> str:
    """Return the word in a file."""
    if file is None:
        return ""
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise must_be("--token-file", "a text file that can be read", str(file), f"{type(error).__name__}.") from error
    if not token.isascii() or not token.isprintable():
        raise must_be("--token-file", "one line of printable ASCII characters", str(file), "Take letters and digits.")
    if len(token) < 16:
        raise must_be("--token-file", "a file with 16 characters or more", f"{len(token)} of them", "Lengthen it.")
    return token


def one_of(*names: str) -> Reader:
    """Return a reader of a name of a list."""

    def read(name: str, text: str) -> str:
        if text not in names:
            raise unknown(name, text, names)
        return text

    return read


def watts() -> Reader:
    """Return a reader of ``6`` or ``4..9``."""

    def read(name: str, text: str) -> float | tuple[float, float]:
        try:
            values = [float(part) for part in text.split("..")]
        except ValueError:
            values = []
        if len(values) not in (1, 2) or not all(0 < value < math.inf for value in values) or values != sorted(values):
            raise must_be(name, "positive watts, or LOW..HIGH", text, "Write for example 6, or 4..9.")
        return values[0] if len(values) == 1 else (values[0], values[1])

    return read


def targets(*, one: bool = False) -> Reader:
    """Return a reader of targets that can be used here; with `one`, of a single one, which stays as it was written."""

    def read(name: str, text: str) -> Any:
        from equipoise.runtimes.base import check_usable, parse_targets

        found = parse_targets(text)
        if one and len(found) > 1:
            raise must_be(name, "one target", text, f"Write for example {found[0]}.")
        for target in found:
            check_usable(target, name=name)
        return text if one else found

    return read


def budget(*, scale: bool = False) -> Reader:
    """Return a reader of bounds, which stay as they were written; with `scale`, those of a model that is not trained yet."""

    def read(name: str, text: str) -> str:
        from equipoise.axes import AXES, SCALE_AXES
        from equipoise.budget import parse_budget

        parse_budget(text, axes=SCALE_AXES if scale else AXES)
        return text

    return read


def numbers(example: str) -> Reader:
    """Return a reader of ``width=32,depth=20``."""

    def read(name: str, text: str) -> dict[str, float]:
        out: dict[str, float] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = (word.strip() for word in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not key or not math.isfinite(number) or key in out:
                raise must_be(name, "written as name=number,..., each name once", part, f"Write for example {name} {example}.")
            out[key] = number
        return out

    return read


def place(name: str, text: str) -> Path | str:
    """Read where a study is: a folder, or the address of a database with the study's name."""
    from equipoise.study.place import checked_address, is_address

    if not is_address(text):
        return Path(text)
    try:
        checked_address(text)
    except InputError as error:
        raise InputError(str(error).replace("store must", f"{name} must", 1)) from error
    return text


def check_store(path: Path, *, name: str = "--store", study: bool = True) -> None:
    """Raise unless `path` is a folder that can be written, or could be made: nothing is left of the trial.

    Args:
        path: Where the run will be recorded.
        name: Of the argument.
        study: Whether it must be a study, or a place for one.
    Raises:
        InputError: A file stands there or on the way there, or the system refuses.
    """
    try:
        if path.exists() and not path.is_dir():
            raise must_be("store", "a folder", str(path), "A file stands there: name another folder.")
        if study:
            from equipoise.study.store import check_place

            check_place(path, create=True)
        with _made(path):
            tempfile.TemporaryFile(dir=path).close()
    except InputError as error:
        raise InputError(str(error).replace("store must", f"{name} must", 1)) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise must_be(name, "a folder that can be written", str(path), f"{reason}: name another folder.") from error


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """Make a folder and what is missing above it; take it all away again at the end."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        yield
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                os.rmdir(folder)


def check_named(what: str, spec: str, table: Mapping[str, BuiltIn]) -> None:
    """Raise unless `spec` is a name of `table`, or ``FILE.py:FUNCTION`` or ``NAME:PATH?options`` of a file that is there.

    What loading it would find wrong beyond that, loading tells: here nothing is imported and nothing is read.
    """
    place = spec.rpartition(":")[0]
    kind, _, rest = spec.partition(":")
    from_data = kind in table and bool(table[kind].data)
    path = rest.partition("?")[0] if from_data else place if place.endswith(".py") else ""
    on_disk = not from_data or table[kind].file
    if path and on_disk and not Path(path).exists():
        raise must_be(f"{what} file", "an existing file", path, "Paths are relative to the current folder.")
    if from_data and not path:
        raise must_be(what, f"{kind}:PATH", spec, f"Write {kind}:{table[kind].data}.")
    if not path and spec not in table and not spec.endswith(".py") and not Path(spec).suffix:
        raise unknown(what, spec, forms(table))
