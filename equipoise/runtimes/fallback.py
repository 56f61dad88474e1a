"""What a quantizer fails on is found and left in floating point, so that one odd layer never costs the whole program."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def culprits(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """Return the `names` to leave out so that the rest no longer fails, by halving: some 2 log2(n) trials for each.

    Args:
        names: What was tried together and failed.
        fails: Whether these names alone, everything else left out, fail.

    Example:
        >>> culprits("abcdefgh", lambda some: "c" in some or "h" in some)
        ('c', 'h')
    """
    found = tuple(_bad(names, fails))
    rest = [name for name in names if name not in found]
    return tuple(names) if rest and fails(rest) else found  # they fail only together: nothing can be kept


def _bad(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return the names that fail on their own."""
    if not names or not fails(names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return [*_bad(names[:half], fails), *_bad(names[half:], fails)]


def told(error: BaseException) -> str:
    """Return an exception as one short line: its kind and its first words."""
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
