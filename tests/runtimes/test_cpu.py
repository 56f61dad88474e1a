"""What is asked of the CPU."""

from __future__ import annotations

import os

import pytest

from equipoise.errors import InputError
from equipoise.runtimes.base import check_threads
from equipoise.runtimes.cpu import cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_a_process_that_is_bound_to_a_core_has_one() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
        with pytest.raises(InputError, match="at most 1, the cores that this process may run on"):
            check_threads(2)
    finally:
        os.sched_setaffinity(0, before)
    assert cores() == len(before)
