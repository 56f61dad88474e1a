"""A study as others show it: a pandas frame, a matplotlib picture of the front. Neither is needed by anything else here."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equipoise.errors import missing_extra, must_be
from equipoise.records import Evaluation, Reading
from equipoise.study.files import write_atomic
from equipoise.units import show


def frame(rows: Sequence[Evaluation], words: Sequence[str], marked: Mapping[str, str]) -> Any:
    """Return evaluations as a `pandas.DataFrame`: a row each, SI units in the names, what was not measured left missing.

    Args:
        rows: The evaluations.
        words: What each is, in a few words.
        marked: Key -> mark, such as ``knee``.
    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise missing_extra("pandas", "pandas") from error
    return pandas.DataFrame(columns_of(rows, words, marked), index=pandas.Index([e.key for e in rows], name="key"))


def columns_of(rows: Sequence[Evaluation], words: Sequence[str], marked: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return evaluations as columns, see `frame`."""
    columns: dict[str, list[Any]] = {"plan": list(words), "mark": [marked.get(e.key, "") for e in rows]}
    columns["fidelity"] = [e.fidelity for e in rows]
    axes = list(dict.fromkeys(axis for e in rows for axis in e.cost))
    for axis, readings in [
        ("quality", [e.quality for e in rows]),
        ("drop", [e.drop for e in rows]),
        *((axis, [e.axis(axis) for e in rows]) for axis in axes),
    ]:
        columns |= _columns(axis, readings)
    return columns


def write_table(path: Path, rows: Sequence[Evaluation], words: Sequence[str], marked: Mapping[str, str]) -> Path:
    """Write evaluations as a table, see `Study.write_table`."""
    if path.suffix == ".csv":
        columns = {"key": [e.key for e in rows], **columns_of(rows, words, marked)}
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(columns)
        out.writerows([["" if cell != cell else cell for cell in row] for row in zip(*columns.values(), strict=True)])
        content = text.getvalue().encode()
    elif path.suffix == ".parquet":
        held = io.BytesIO()
        try:
            frame(rows, words, marked).to_parquet(held)
        except ImportError as error:
            raise missing_extra("pyarrow", "pandas") from error
        content = held.getvalue()
    else:
        raise must_be("path", "a .csv or .parquet file", str(path), "Name it by what it shall hold.")
    write_atomic(path, content)
    return path


def _columns(axis: str, readings: Sequence[Reading]) -> dict[str, list[Any]]:
    """A column of values and, where any of them has an interval, two of its ends."""
    out = {axis: [r.value for r in readings]}
    if any(r.low is not None for r in readings):
        out |= {f"{axis}_low": [r.low for r in readings], f"{axis}_high": [r.high for r in readings]}
    return {name: [float("nan") if value is None else float(value) for value in values] for name, values in out.items()}


def plot(
    front: Sequence[Evaluation], others: Sequence[Evaluation], marked: Mapping[str, str], *, unit: str, axes: Any = None
) -> Any:
    """Draw drop against latency, with intervals, the front joined and the marked points named; return the axes.

    Args:
        front, others: Evaluations whose latency and drop are known.
        marked: Key -> mark.
        unit: What the drop is counted in.
        axes: Matplotlib axes to draw into; None makes a figure.
    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    axes = pyplot.subplots(layout="constrained")[1] if axes is None else axes
    axes.scatter(*_points(others), s=12, color="0.7", label="tried")
    reach = [
        [e.drop.get() - _end(e.drop, e.drop.low) for e in front],
        [_end(e.drop, e.drop.high) - e.drop.get() for e in front],
    ]
    axes.errorbar(*_points(front), yerr=reach, marker="o", capsize=2, label="front")
    for e in {e.key: e for e in (*others, *front)}.values():
        if e.key in marked:
            axes.annotate(marked[e.key], (e.axis("latency_s").get(), e.drop.get()), (6, 6), textcoords="offset points")
    axes.set(xscale="log", xlabel="latency", ylabel=f"drop, {unit}")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda seconds, _: show(seconds, "s"))
    axes.legend()
    return axes


def _end(drop: Reading, end: float | None) -> float:
    """An end of an interval; the value itself where there is none."""
    return drop.get() if end is None else end


def _points(rows: Sequence[Evaluation]) -> tuple[list[float], list[float]]:
    return [e.axis("latency_s").get() for e in rows], [e.drop.get() for e in rows]
