"""Student: a new model for the same inputs and outputs stands in the place of the one that was trained, and is taught by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from equipoise.compress.fold import folded
from equipoise.compress.operators import operators
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import must_be, unknown
from equipoise.ops import Op
from equipoise.records import Choice

ITSELF = "teacher"
"""The untouched choice: the model stays."""
EIGHT = "@8"
"""Ends the choice of a student whose layers are all computed in 8 bits. Which layers a student has depends on its scale, so its
scheme is no knob of its own; and weights that were trained from the start have no layer that must be spared."""


class Student:
    """Which model it is: the one that was trained, or one of the subject's students."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the students, in floats and in 8 bits; under each of them the model's own layers are gone."""
        if subject.students:
            menu = [name + way for name in subject.students for way in (EIGHT, "")]
            needs: dict[Choice, Choice] = {choice: 8 for choice in menu if choice.endswith(EIGHT)}
            every = tuple(name for name, _ in subject.model.named_modules() if name)
            removes: dict[Choice, tuple[str, ...]] = dict.fromkeys(menu, every)
            yield Offer("", (ITSELF, *menu), tuple(subject.ops), removes=removes, needs=needs, untrained=tuple(menu))

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Return the draft of a student as it was drawn, its BatchNorm folded."""
        for place in chosen:
            if place:
                raise unknown("place", place, [""])
        choice = str(chosen[""])
        name = choice.removesuffix(EIGHT)
        if name not in subject.students:
            raise must_be("student", f"one of {list(subject.students)}", choice, "Choose from the menu.")
        drawn = subject.students[name]()
        model = folded(drawn, subject.example, data=subject.example).model
        request: dict[str, Choice] = dict.fromkeys(operators(model, subject.example), 8) if choice.endswith(EIGHT) else {}
        return replace(draft, model=model, request=request, drawn=drawn)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer itself, which is gone under every other choice."""
        return (subject.ops[layer],) if choice == offer.menu[0] else ()
