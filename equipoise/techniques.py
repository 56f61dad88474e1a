"""Every technique of compression in one row: where it is, when it is applied, and in which words it is told.

Words only, so that a report, a card and a study read them without torch. A new technique is a row here and a file with a class
that `testing.check_technique` accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from equipoise.errors import unknown
from equipoise.records import Choice
from equipoise.schemes import scheme
from equipoise.units import counted

Changed = Sequence[tuple[Choice, Choice]]
"""What was untouched and what was chosen instead, for each place that a plan changes."""


class Stage(IntEnum):
    """When a technique is applied: what a later one works on is what the earlier ones left."""

    SCALE = 0
    """Which model it is, and what it takes in."""
    CUT = 1
    """Parts of it are removed."""
    FACTORIZE = 2
    """Layers are put in another form. After this the weights that are left are repaired, and trained."""
    ROUND = 3
    """What the runtime is asked to compute in."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One technique.

    Attributes:
        maker: ``module:class``, imported when it is first used.
        stage: When it is applied.
        noun: What a knob of it sets, for a page.
        says: What it did to a whole model, in a few words; empty where another column says it.
        why: What it did to one layer, given what was untouched and what was chosen.
        upstream: The same of a layer that only reads what another one lost; empty where there is none.
        replaces: Whether no layer is left: one of the same name is another model's.
    """

    maker: str
    stage: Stage
    noun: str
    says: Callable[[Changed, Changed], str]
    why: Callable[[Choice, Choice], str]
    upstream: str = ""
    replaces: bool = False


def _channels(changed: Changed, every: Changed) -> str:
    """Share of the channels of all groups that is gone."""
    before = sum(int(old) for old, _ in every)
    after = sum(int(new) for _, new in every)
    return f"{100 * (1 - after / before):.0f}% channels cut" if after < before else ""


def _named(choice: Choice) -> str:
    """A student without its scheme, which is told elsewhere."""
    return str(choice).partition("@")[0]


TECHNIQUES: dict[str, Kind] = {
    "student": Kind(
        "equipoise.compress.student:Student",
        Stage.SCALE,
        "student",
        lambda changed, _: f"a new {_named(changed[0][1])}" if changed else "",
        lambda _old, new: f"a new {_named(new)} stands in its place, taught by the model",
        replaces=True,
    ),
    "resolution": Kind(
        "equipoise.compress.resolution:Resolution",
        Stage.SCALE,
        "resolution",
        lambda changed, _: f"{changed[0][1]} rows of {changed[0][0]}" if changed else "",
        lambda old, new: f"sees images of {new} rows in place of {old}",
    ),
    "length": Kind(
        "equipoise.compress.length:Length",
        Stage.SCALE,
        "length",
        lambda changed, _: f"{changed[0][1]} tokens of {changed[0][0]}" if changed else "",
        lambda old, new: f"reads the first {new} tokens in place of {old}",
    ),
    "width": Kind(
        "equipoise.compress.width:Width",
        Stage.CUT,
        "channels",
        _channels,
        lambda old, new: f"{int(old) - int(new)} of {old} channels cut: the least needed by the layers that read them",
        upstream="reads fewer channels",
    ),
    "depth": Kind(
        "equipoise.compress.depth:Depth",
        Stage.CUT,
        "depth",
        lambda changed, _: f"{counted(len(changed), 'block')} dropped" if changed else "",
        lambda _old, _new: "its block was dropped",
    ),
    "rank": Kind(
        "equipoise.compress.rank:Rank",
        Stage.FACTORIZE,
        "rank",
        lambda changed, _: f"{counted(len(changed), 'layer')} factorized" if changed else "",
        lambda _old, new: f"thin layers that hold {new}% of its weights",
    ),
    "bits": Kind(
        "equipoise.compress.bits:Bits", Stage.ROUND, "bits", lambda _changed, _: "", lambda _old, new: scheme(new).says
    ),
}
"""Kind of a knob -> its technique; the order is that of the knobs in a space."""


def named(text: str | Sequence[str], what: str = "only") -> tuple[str, ...]:
    """Return the techniques that a text names with commas between, each once, in the order of their rows; none for none.

    Raises:
        InputError: One that is unknown.

    Example:
        >>> named("bits, width")
        ('width', 'bits')
    """
    found = [word.strip() for word in (text.split(",") if isinstance(text, str) else text)] if text else []
    for word in found:
        if word not in TECHNIQUES:
            raise unknown(what, word, TECHNIQUES)
    return tuple(name for name in TECHNIQUES if name in found)
