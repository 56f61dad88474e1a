"""Work for the child process of the memory tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MB = 1_000_000


def allocate(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Hold `before` MB at the baseline, after a peak of `peak` MB; then hold `after` MB more and let them go."""
    peak = bytearray(os.urandom(1) * (options.get("peak", 0) * MB))
    del peak
    held = bytearray(b"x" * (options.get("before", 0) * MB))
    yield
    more = bytearray(b"x") * (options.get("after", 0) * MB)
    del more, held


def read_payload(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Fail unless the payload is there."""
    yield
    if (folder / options["name"]).read_bytes() != b"\0payload":
        sys.exit("wrong payload")


def fail(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Fail while working."""
    yield
    raise ValueError("the model is broken")


def die(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Be killed, as the kernel does when memory is out."""
    yield
    os.kill(os.getpid(), 9)


def hang(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Never end."""
    yield
    time.sleep(3600)
