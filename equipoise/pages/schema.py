"""What a page demands of a summary: one clear error for a wrong field, and nothing that is not a number drawn as one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from equipoise.errors import InputError, must_be, unknown
from equipoise.records import SCHEMA, Reading, reading_from, unavailable
from equipoise.units import SCALES

WRONG_VERSION = "Read it with the version that wrote it."


def demand(data: Any, where: str, *, needs: Collection[str], takes: Collection[str] | None = ()) -> Mapping[str, Any]:
    """Return `data`, a mapping with the fields that it needs and none that it does not take.

    Args:
        data: Of a summary.
        where: Its place in the summary, for the error.
        needs: Fields that must be there.
        takes: Fields that may be there; None takes any.
    Raises:
        InputError: Not a mapping, a field missing, or one that is not known.
    """
    if not isinstance(data, Mapping):
        raise must_be(where, "a mapping", data, f"Give the fields {', '.join(needs)}.")
    missing = [name for name in needs if name not in data]
    if missing:
        raise InputError(f"{where} must have {', '.join(needs)}; {', '.join(missing)} missing. Use None for what is not known.")
    if takes is not None:
        for name in data:
            if name not in needs and name not in takes:
                raise unknown(f"{where} field", str(name), [*needs, *takes])
    return data


def versioned(summary: Any, where: str, *, needs: Collection[str], takes: Collection[str] = ()) -> Mapping[str, Any]:
    """Return `summary` if it is of this schema and has the fields of its kind.

    Raises:
        InputError: Another schema, or as `demand`.
    """
    if not isinstance(summary, Mapping) or summary.get("schema") != SCHEMA:
        got = summary.get("schema") if isinstance(summary, Mapping) else summary
        raise must_be(f"{where} schema", str(SCHEMA), got, WRONG_VERSION)
    return demand(summary, where, needs=["schema", *needs], takes=takes)


def metric(header: Mapping[str, Any]) -> str:
    """Return the user's word for quality, as the header of a summary tells it."""
    return str((header.get("metric") or {}).get("name") or "quality")


def reading(data: Any, where: str, *, own: str = "") -> Reading:
    """Return the `Reading` that ``records.as_data`` wrote; a value that is not finite is unavailable.

    Args:
        own: A unit that is taken beside those of `units.SCALES`: a metric may have one of its own.
    Raises:
        InputError: Not a reading: a bare number does not say where it came from.
    """
    remedy = "Pass records.measured(...), estimated(...) or unavailable(...)."
    if not isinstance(data, Mapping):
        raise must_be(where, "a reading with its provenance", data, remedy)
    try:
        found = reading_from(data)
    except TypeError:
        raise must_be(where, "a reading with value, unit and provenance", dict(data), remedy) from None
    if found.unit not in SCALES and not (own and found.unit == own):
        raise unknown(f"{where} unit", str(found.unit), SCALES)
    if found.value is None:
        return unavailable(found.unit, found.note or "no reason was recorded")
    if number(found.value) is None:
        return unavailable(found.unit, "the value is not a finite number")
    return replace(found, low=number(found.low), high=number(found.high))


def number(value: Any) -> float | None:
    """Return a finite number as it is, anything else as None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def columns(data: Mapping[str, Any], where: str, names: Sequence[str]) -> list[dict[str, float | None]]:
    """Return equally long lists of numbers as rows, those without a finite number in the first two columns left out.

    Raises:
        InputError: Lists of unequal lengths.
    """
    lengths = {name: len(data[name]) for name in names}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise must_be(where, "lists of one length", told, "Give one entry for each point.")
    rows = [dict(zip(names, map(number, values), strict=True)) for values in zip(*(data[name] for name in names), strict=True)]
    return [row for row in rows if row[names[0]] is not None and row[names[1]] is not None]
