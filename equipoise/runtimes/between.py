"""What of a graph int8 is for: its layers, and what lies between two of them.

Before the first and after the last, rounding is a loss without a gain: an addition that puts degrees beside fractions at the
end would round the fractions away. Nothing but Python is imported here: `litert_convert` reads it in another environment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def between(
    nodes: Sequence[tuple[str, Collection[str], Collection[str]]], layers: Collection[str]
) -> tuple[set[str], set[str]]:
    """Return the nodes that lie between two `layers`, and the layers that no other follows.

    Args:
        nodes: Of each its name, what it reads and what it makes, in an order in which all is made before it is read.

    Example:
        >>> chain = [("pad", "a", "b"), ("conv", "b", "c"), ("relu", "c", "d"), ("fc", "d", "e"), ("sum", "e", "f")]
        >>> between(chain, ("conv", "fc"))
        ({'relu'}, {'fc'})
    """
    after: set[str] = set()
    made: set[str] = set()
    for name, takes, gives in nodes:
        if not made.isdisjoint(takes):
            after.add(name)
        if name in layers or name in after:
            made.update(gives)
    before: set[str] = set()
    read: set[str] = set()
    for name, takes, gives in reversed(nodes):
        if not read.isdisjoint(gives):
            before.add(name)
        if name in layers or name in before:
            read.update(takes)
    return (after & before) - set(layers), set(layers) - before
