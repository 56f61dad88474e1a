"""Widths: fewer channels of a coupled group, the most needed of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from equipoise.compress.coupling import Group, keeping
from equipoise.compress.cut import sliced
from equipoise.compress.prune import checked
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.ops import Op
from equipoise.records import Choice

LEVELS = (0.75, 0.5, 0.375, 0.25)
"""Fractions of a group's channels that are offered, rounded to what the target likes."""


class Width:
    """Channels kept of each group that was proven to be prunable."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the menu of each group; one that must stay whole says why."""
        for group in subject.groups:
            layers = tuple(dict.fromkeys((*group.producers, *group.consumers)))
            if group.prunable:
                yield Offer(group.name, widths(group.size, group.multiple(subject.likes)), layers)
            else:
                yield Offer(group.name, (group.size,), layers, refused=group.reason)

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Slice every layer of the named groups to their most important channels."""
        cut = checked(subject.groups, {name: int(width) for name, width in chosen.items()})
        kept = {name: sorted(subject.order(subject.group(name))[:width]) for name, width in cut.items()}
        keep = keeping(subject.model, subject.groups, kept)
        damaged = draft.damaged or bool(keep)
        return replace(draft, model=sliced(draft.model, keep), damaged=damaged, keep={**draft.keep, **keep})

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer with its share of the inputs or outputs, or of both."""
        group, share = subject.group(offer.place), int(choice) / int(offer.menu[0])
        return (narrowed(subject.ops[layer], *_shares(group, layer, share)),)


def _shares(group: Group, layer: str, share: float) -> tuple[float, float]:
    """The shares of its inputs and of its outputs that a layer keeps."""
    return (share if layer in group.consumers else 1.0), (share if layer in group.producers else 1.0)


def narrowed(op: Op, into: float, out_of: float) -> Op:
    """Return an operator with these shares of its widths; a depthwise one keeps both equal, a grouped one whole groups."""
    if op.depthwise:
        width = max(1, round(op.cin * min(into, out_of)))
        return replace(op, cin=width, cout=width, groups=width)
    cin, cout = (max(1, round(width * f / op.groups)) * op.groups for width, f in ((op.cin, into), (op.cout, out_of)))
    return replace(op, cin=cin, cout=cout)


def widths(size: int, multiple: int) -> tuple[int, ...]:
    """Return a menu of widths: the whole group first, then smaller multiples of `multiple`.

    A group of less than four such multiples is cut in multiples of 8: what is lost in a register is less than the menu.

    Example:
        >>> widths(64, 8), widths(16, 8), widths(6, 8)
        ((64, 48, 32, 24, 16), (16, 8), (6,))
        >>> widths(64, 16), widths(32, 16)
        ((64, 48, 32, 16), (32, 24, 16, 8))
    """
    multiple = multiple if size >= 4 * multiple else min(multiple, 8)
    rounded = {max(multiple, round(size * level / multiple) * multiple) for level in LEVELS}
    return (size, *sorted((w for w in rounded if w < size), reverse=True))
