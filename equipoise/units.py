"""Quantities as people write them, in SI as we store them.

The only place that multiplies by 1e3. Inside Equipoise every number is in base units (s, B, J, $), and the unit is in the name.
"""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import SupportsFloat, cast

from equipoise.errors import InputError, must_be

SCALES: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "B": {
        "B": 1.0,
        "KB": 1e3,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 1024.0,
        "MiB": 1024.0**2,
        "GiB": 1024.0**3,
    },
    "J": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "kJ": 1e3},
    "g": {"g": 1.0, "mg": 1e-3, "ug": 1e-6, "µg": 1e-6, "kg": 1e3},
    "$": {"$": 1.0, "USD": 1.0, "c": 0.01},
    "points": {"": 1.0, "points": 1.0, "point": 1.0, "pt": 1.0, "%": 1.0},
    "1": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
    "1/s": {"": 1.0, "/s": 1.0, "1/s": 1.0},
    "bit/s": {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9},
}
"""Unit dimension -> written unit -> factor to the base unit. KB is 1000 bytes, KiB 1024."""

_QUANTITY = re.compile(r"^\s*(\$?)\s*([+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([^\s0-9]*)\s*$")


def parse(text: str, unit: str, *, name: str) -> float:
    """Read a quantity such as ``"1.5ms"`` and return it in base `unit`.

    Args:
        text: The number with its unit. A dimension without an empty entry in `SCALES` needs its unit written out.
        unit: Base unit, a key of `SCALES`.
        name: What the quantity is, for the error.
    Raises:
        InputError: No number, an unknown unit, or not finite.
    """
    scales = SCALES[unit]
    match = _QUANTITY.match(text)
    written = (match.group(3) or match.group(1)) if match else ""
    value = float(match.group(2)) * scales[written] if match and written in scales else math.nan
    if match is None or not math.isfinite(value) or (value == 0 and _some(match.group(2))):
        units = ", ".join(u or "(none)" for u in scales)
        raise must_be(name, f"a finite number with one of the units {units}", text, _example(unit))
    return value


LARGEST = 2**63 - 1
"""Counts and seeds beyond this fit no random generator and no machine."""


def is_real(value: object) -> bool:
    """Return whether an argument is a number: what compares with one, unlike a text, a tensor or a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Return whether an argument is a whole number, of Python's or numpy's; 2.0 and True are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_seed(seed: object) -> None:
    """Raise `InputError` unless `seed` can start every generator of random numbers."""
    if type(seed) is not int or not 0 <= seed <= LARGEST:
        most = f" and at most {LARGEST}" if type(seed) is int and seed > LARGEST else ""
        raise must_be("seed", f"a whole number of at least 0{most}", seed, "Write for example 0.")


def duration(value: object, *, name: str = "time", zero: bool = False) -> float:
    """Return a wall time in seconds.

    Args:
        value: A number of seconds, or text with its unit such as ``20min``.
        name: Of the argument, for the error.
        zero: Whether 0 is one.
    Raises:
        InputError: No time, negative, or not finite.
    Example:
        >>> duration("20min"), duration(90)
        (1200.0, 90.0)
    """
    try:
        seconds = parse(value, "s", name=name) if isinstance(value, str) else float(cast(SupportsFloat, value))
    except (InputError, TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf or (seconds == 0 and not zero):
        wanted = f"finite and {'zero or more' if zero else 'above 0'}, in seconds or as text with its unit (s, min, h)"
        raise must_be(name, wanted, value, "Write for example 20min.")
    return seconds


def _some(number: str) -> bool:
    """Whether a number is written as one that is not 0: 1e-400 is below every float."""
    return any(digit in "123456789" for digit in number.lower().partition("e")[0])


def _example(unit: str) -> str:
    examples = {"s": "1.5ms", "B": "300KB", "J": "2mJ", "g": "5ug", "$": "0.4$", "points": "1"}
    examples |= {"1": "250k", "1/s": "100/s", "bit/s": "10Mbit/s"}
    return f"Write for example {examples[unit]}."


def show(value: float, unit: str) -> str:
    """Print a quantity in base `unit` with three figures and the unit a reader expects.

    Example:
        >>> show(0.00113, "s"), show(1_094_288, "B"), show(0.42, "points")
        ('1.13 ms', '1.09 MB', '0.42')
    """
    if unit == "points":
        return f"{value:.2f}"
    if unit == "$":
        return f"${value:.3g}"
    if unit == "1/s":
        return f"{_three(value)}/s"
    steps = {
        "s": [(3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
        "B": [(1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B")],
        "J": [(1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")],
        "g": [(1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg")],
        "bit/s": [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1.0, "bit/s")],
        "1": [(1e9, "G"), (1e6, "M"), (1e4, "k")],
    }.get(unit, [])
    if unit == "1":  # counts up to 10,000 are read better in full
        steps = [(1e9, "G"), (1e6, "M"), (1e3, "k")] if abs(value) >= 1e4 else []
    for factor, written in steps:
        if abs(value) >= factor:
            return f"{_three(value / factor)} {written}"
    if not steps:
        return _three(value) + ("" if unit == "1" else f" {unit}")
    factor, written = steps[-1]
    return f"{_three(value / factor)} {written}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "trial"), counted(3, "trial")
        ('1 trial', '3 trials')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _three(value: float) -> str:
    """Three significant figures, never scientific below a million."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
