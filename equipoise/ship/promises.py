"""A promise and what was found of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.measure.machine import describe

State = Literal["kept", "broken", "cannot tell"]
"""What may be said of a promise: the third where this machine or this many samples cannot decide."""

SAMPLES = "samples of the workload"
"""The check that a workload fails which is of something else altogether."""

FP32_SLACK = 1e-3
"""Largest difference of fp32 outputs, relative to the largest output."""
ROUNDED_SLACK = 0.5
"""The same of programs that round, on another CPU or other versions: an 8-bit kernel of another instruction set may round, or
saturate, each value otherwise, and so may every layer behind it."""


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


def at_home(recorded: Mapping[str, Any], *used: str) -> bool:
    """Whether this is the CPU and these are the versions that a manifest records, those of the runtimes `used` among them."""
    here, then = describe(), recorded.get("versions")
    packages = ("equipoise", "torch", "numpy", *used)
    versions = isinstance(then, dict) and all(here["versions"].get(p) == then.get(p) for p in packages)
    return versions and all(here.get(key) == recorded.get(key) for key in ("cpu", "architecture", "flags"))


def slack(precision: str, *, home: bool) -> float:
    """Return how far answers may be from those recorded, relative to the largest, and still be of the same program."""
    return FP32_SLACK if home or precision == "fp32" else ROUNDED_SLACK
