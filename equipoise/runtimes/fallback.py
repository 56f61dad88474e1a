"""What a quantizer fails on is found and left in floating point, so that one odd layer never costs the whole program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

WHOLE_MODEL = "the whole model"
"""Stands for a layer's name where no layer can be named."""


def culprits(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """Return the `names` to leave out so that the rest no longer fails, by halving: some 2 log2(n) trials for each.

    Of names that fail only together the last is left out: the rest is what passed when it was tried together.

    Args:
        names: What was tried together and failed.
        fails: Whether these names alone, everything else left out, fail.

    Example:
        >>> culprits("abcdefgh", lambda some: "c" in some or {"a", "h"} <= set(some))
        ('c', 'h')
    """
    return tuple(_bad(names, fails, []))


def _bad(names: Sequence[str], fails: Callable[[Sequence[str]], bool], kept: Sequence[str]) -> list[str]:
    """Return the names that fail on their own or beside `kept`, which pass together."""
    if not names or not fails([*kept, *names]):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    first = _bad(names[:half], fails, kept)
    return [*first, *_bad(names[half:], fails, [*kept, *(name for name in names[:half] if name not in first)])]


def told(error: BaseException) -> str:
    """Return an exception as one short line: its kind and its first words."""
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
