"""How a model is run where only its answers are wanted: in batches and on threads that cost least on a shared machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from equipoise.batch import Inputs, leaves

HELD = 2**19
"""Numbers of input that a model is given at once. With more, a layer's activations pass the size that the allocator keeps and
every layer maps fresh pages: photographs of 160 pixels take a third of the time 6 at a time that they take 64 at a time."""


def at_once(inputs: Inputs, most: int) -> int:
    """Return how many of `inputs` (N, ...) to run together, `most` at the most.

    Example:
        >>> at_once(torch.zeros(2, 3, 160, 160), 64), at_once(torch.zeros(2, 1, 8, 8), 64)
        (6, 64)
    """
    numbers: int = sum(value[:1].numel() for value in leaves(inputs))
    return max(1, min(most, HELD // max(1, numbers)))


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Keep torch to one thread: many small products run 2 to 5 times slower on two contended cores than on one."""
    return threads(1)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch use so many threads. The count is the process's; it is put back on leaving."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
