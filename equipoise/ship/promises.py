"""A promise and what was found of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["kept", "broken", "cannot tell"]
"""What may be said of a promise: the third where this machine or this many samples cannot decide."""

SAMPLES = "samples of the workload"
"""The check that a workload fails which is of something else altogether."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what was found.

    Attributes:
        name: What was looked at.
        promised: In words; empty where nothing was promised and the figure is for information.
        found: In words.
        state: Whether the promise is kept, broken, or cannot be told from here.
        note: How it was judged, and where it cannot be told the reason.
    """

    name: str
    promised: str
    found: str
    state: State
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the promise is not broken."""
        return self.state != "broken"


def judged(name: str, promised: str, found: str, kept: bool, note: str = "") -> Check:
    """Return a check that can only be kept or broken."""
    return Check(name, promised, found, "kept" if kept else "broken", note)
