"""docs/zoo.md, made of the result file alone."""

from __future__ import annotations

import collections
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
KNOBS = {
    "width": "widths",
    "heads": "heads",
    "depth": "blocks",
    "rank": "ranks",
    "bits": "bits",
    "resolution": "resolution",
    "length": "length",
}
"""Kind of knob -> the head of its column."""
FILES = ("untouched", "shrunk", "4 bits")
"""Stages whose file must answer as its model."""

HEAD = """# The zoo

<!-- Written by `python benchmarks/zoo.py`; what is changed here by hand is lost. -->

{count} models of other people's libraries, and of forms that users bring, each built small with random weights, through
everything that compresses: {right} went all the way with every answer compared, {refused} are refused as they must be, each
in one sentence (at the end). {bad}{rest}

What each goes through, in a process of its own:

1. **Survey**: the workload is checked, and every technique says what it offers and what it leaves whole.
2. **By hand**: all groups of channels and heads that are offered are cut at once, in three random patterns, beside the
   whole model whose readers hold zeros for what is gone ({groups:,} groups; largest difference {by_hand:.1g} of the
   answers' spread).
3. **Planted**: wrong maps of some groups, heads first (the channels of a writer or a reader turned by one, half heads as
   heads): the proof rejected all {planted:,}, {of_heads} groups of heads among them.
4. **Untouched**: a plan that changes nothing, and its file, answer as the model that was given.
5. **Repaired**: every width and every group of heads at the middle of its menu; repair must not make it worse.
6. **Shrunk**: the same with a block dropped, a layer in thin ones and a smaller input, exported, written, read back and
   run: it answers as the model that was built, and so does the model with its stored weights.
7. **4 bits**: the shrunk model with all weights in 4 bits; the file answers as torch does on the rounded weights.
8. **int8**: every layer; the noise is at most half of the answers' spread, or 2.5 times what rounding costs in simulation.

Files of steps 4, 6 and 7 are at most {file_off:.1g} of the spread off their models (0.002 is allowed, or what a change of
the inputs by 10⁻⁶ makes of nets that are that unsteady). On {cpu}, {packages}.

The models are listed in `tests/zoo/`. `python benchmarks/zoo.py` runs them and writes this page; `EQUIPOISE_ZOO=all pytest
tests/zoo` holds them to be right; a fixed sample of them is a part of the suite.

## What applies

Of each technique: in how many places it offers a choice. *Left whole*: places where a technique says why it offers none, by
the letters below. *Shrunk*: params that are left. *4 bits*: bytes of that file beside the untouched one. *int8*: noise
(root mean square, of the answers' spread).
"""


REST = " {listed} models are listed; the others wait to be run to the end (`--rest`)."


def page(found: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    models: Mapping[str, Record] = found["models"]
    right = {name: record for name, record in models.items() if record["verdict"] == "right"}
    letters, listed = _letters(right.values()), found["listed"]
    text = HEAD.format(
        count=len(models),
        right=len(right),
        refused=sum(record["verdict"] == "refused" for record in models.values()),
        groups=sum(_of(record, "by hand", "groups", 0) for record in right.values()),
        by_hand=max((_of(record, "by hand", "off", 0.0) for record in right.values()), default=0.0),
        planted=sum(_of(record, "planted", "planted", 0) for record in models.values()),
        of_heads=sum(_of(record, "planted", "of_heads", 0) for record in models.values()),
        bad=_bad(models),
        rest=REST.format(listed=listed) if listed > len(models) else "",
        file_off=max((_of(record, stage, "file_off", 0.0) for record in right.values() for stage in FILES), default=0.0),
        cpu=found["machine"]["cpu"],
        packages=", ".join(f"{name} {number}" for name, number in found["packages"].items()),
    )
    parts = [text]
    for kind in dict.fromkeys(record["kind"] for record in right.values()):
        rows = [_row(name, record, letters) for name, record in right.items() if record["kind"] == kind]
        heads = ["model", "params", *KNOBS.values(), "left whole", "shrunk", "4 bits", "int8"]
        parts.append(f"### {kind[0].upper()}{kind[1:]}\n\n{_table(heads, rows)}")
    reasons = _table(["", "places", "technique", "reason"], _reasons(right.values(), letters))
    parts.append(f"## Why places are left whole\n\n{reasons}")
    refused = [[f"`{name}`", record["why"]] for name, record in models.items() if record["verdict"] != "right"]
    parts.append(f"## Refused as a whole\n\n{_table(['model', 'what is said'], refused)}")
    return "\n".join(parts)


def _bad(models: Mapping[str, Record]) -> str:
    wrong = [f"{name} ({record['verdict']})" for name, record in models.items() if not record["kept"]]
    return f"Not as they must be: {', '.join(wrong)}." if wrong else "None crashed, and no answer was wrong."


def _of(record: Record, stage: str, key: str, otherwise: Any) -> Any:
    return record["stages"].get(stage, {}).get(key, otherwise)


def _row(name: str, record: Record, letters: Mapping[tuple[str, str], str]) -> list[str]:
    survey = record["stages"]["survey"]
    whole = " ".join(f"{count}{letters[kind, why]}" for kind, why, count in survey["refused"])
    before, after = (_of(record, "shrunk", key, 0) for key in ("params_before", "params"))
    bytes_before, bytes_after = _of(record, "untouched", "bytes", 0), _of(record, "4 bits", "bytes", 0)
    return [
        f"`{name}`",
        _counted(survey["params"]),
        *(str(survey["offered"].get(kind, "")) for kind in KNOBS),
        whole,
        f"{100 * after / before:.0f} %" if before else "",
        f"{100 * bytes_after / bytes_before:.0f} %" if bytes_after else "",
        f"{_of(record, 'int8', 'noise', 0.0):.2g}" if "int8" in record["stages"] else "",
    ]


def _letters(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """A letter (or two) for each reason, the commonest first."""
    counts = _counts(records)
    names = [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    ordered = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return {reason: name for name, reason in zip(names, ordered, strict=False)}


def _counts(records: Iterable[Record]) -> dict[tuple[str, str], int]:
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for record in records:
        for kind, why, count in record["stages"]["survey"]["refused"]:
            counts[kind, why] += count
    return dict(counts)


def _reasons(records: Iterable[Record], letters: Mapping[tuple[str, str], str]) -> list[list[str]]:
    counts = _counts(records)
    return [[letter, f"{counts[reason]:,}", reason[0], reason[1]] for reason, letter in letters.items()]


def _counted(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k" if number >= 1e4 else f"{number / 1e3:.1f} k"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
