"""Every error Equipoise raises on purpose.

The message formula is ``{name} must be {constraint}; got {value!r}. {remedy}``. Each class carries the exit code that the
command line returns for it, so that scripts can tell bad input from a missed budget or a broken promise.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Set

LONGEST = 120
"""Characters of a value that a message shows; of a text, which may be a path, three times as many."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_MISSING_EXTRA = 3
EXIT_BROKEN_PROMISE = 4


class EquipoiseError(Exception):
    """Root of the tree: a run failed for a reason that is told in the message."""

    exit_code = EXIT_FAILED


class InputError(EquipoiseError, ValueError):
    """The user's input cannot be used; nothing was started and nothing was changed."""

    exit_code = EXIT_BAD_INPUT


class UnavailableError(EquipoiseError, ArithmeticError):
    """A number that was never measured was used as if it had been."""


class MissingExtraError(EquipoiseError, ImportError):
    """An optional package is needed for what was asked."""

    exit_code = EXIT_MISSING_EXTRA


class StoreError(EquipoiseError, OSError):
    """The study on disk cannot be read or written."""


def must_be(name: str, constraint: str, value: object, remedy: str) -> InputError:
    """Return (not raise) the standard bad-input error for argument `name`; a long value is shown in part."""
    return InputError(f"{name} must be {constraint}; got {shown(value)}. {remedy}")


def shown(value: object) -> str:
    """Return a value as a message shows it: short, on few lines, and without touching more of it than is shown.

    Example:
        >>> shown("a.pt"), shown({"a": 1}), shown(list(range(1000)))
        ("'a.pt'", "{'a': 1}", '[0, 1, 2, 3, 4, 5, ...] (list of 1000)')
    """
    if isinstance(value, (Mapping, list, tuple, Set)) and len(value) > 12:
        first = ", ".join(_cut(repr(item), 20) for item, _ in zip(value, range(6), strict=False))
        left, right = "()" if isinstance(value, tuple) else "[]" if isinstance(value, list) else "{}"
        return f"{left}{first}, ...{right} ({type(value).__name__} of {len(value)})"
    return _cut(repr(value), 3 * LONGEST if isinstance(value, str) else LONGEST)


def _cut(text: str, longest: int) -> str:
    """Return `text` on one line, its middle left out where it is too long."""
    if len(text) <= longest:
        return text
    text = " ".join(text.split())
    kept = longest - 5
    return text if len(text) <= longest else f"{text[: 2 * kept // 3]} ... {text[-(kept // 3) :]}"


def words_of(error: BaseException) -> str:
    """Return what an exception says, on one line; of one of the user's own that cannot say it, that it cannot.

    Example:
        >>> words_of(ValueError("two   words"))
        'two words'
    """
    try:
        return " ".join(str(error).split())
    except Exception as failed:  # noqa: BLE001 - others' code, while what it raised is told
        return f"(its words cannot be read: {type(failed).__name__})"


def unknown(kind: str, value: str, valid: Iterable[str]) -> InputError:
    """Return the error for an unknown name, with the valid ones and the nearest."""
    names = sorted(valid)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Use one of these names."
    return InputError(f"{kind} must be one of {', '.join(names)}; got {value!r}. {hint}")


def listed(argument: str, names: object, valid: Iterable[str], *, kind: str = "layer") -> tuple[str, ...]:
    """Return the names of a list that a user gave, each of which is valid.

    Raises:
        InputError: A text in place of a list, an empty list, or an unknown name.

    Example:
        >>> listed("layers", ["a"], ["a", "b"])
        ('a',)
    """
    known, given = list(valid), several(argument, names)
    if not given:
        raise must_be(argument, "left out, or to name at least one", names, f"There are {', '.join(known) or 'none'}.")
    for name in given:
        if name not in known:
            raise unknown(kind, str(name), known)
    return given


def several(argument: str, names: object) -> tuple[str, ...]:
    """Return the names of a list that a user gave, of which there may be none.

    Raises:
        InputError: A text in place of a list, or nothing that holds names.
    """
    if isinstance(names, str) or not isinstance(names, Collection):
        raise must_be(argument, "a list of names", names, f"Write a single one as {argument}=[{names!r}].")
    return tuple(names)


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error for an optional package that is not installed."""
    return MissingExtraError(f'{package} is not installed. needs: pip install "equipoise[{extra}]"')
