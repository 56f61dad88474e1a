"""How soon a thread that waits for Python's interpreter gets it, in the server and in the load test."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

SWITCH_S = 1e-4
"""Seconds. By Python's own 5 ms a run of a model ends so much later while requests are read, and requests go out so late."""


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Have threads hand the interpreter over after `SWITCH_S`; what was there is put back on leaving."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
