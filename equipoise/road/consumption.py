"""How much energy a program takes: a request of it over and over, beside an idle machine."""

from __future__ import annotations

from equipoise.batch import Inputs
from equipoise.measure import energy
from equipoise.records import Reading
from equipoise.road.racing import Contender
from equipoise.runtimes.base import Program, Target

WINDOW_S = 0.5
"""Seconds of a busy window, and of an idle one."""


class Consumption:
    """Joules of one request above idle."""

    def missing(self) -> str:
        """Return why no counter can be read here, with the remedy; empty where one can."""
        of = [energy.access(device) for device in ("cpu", "cuda")]
        if any(access.meter for access in of):
            return ""
        return f"{'; '.join(access.reason for access in of)}. Leave the bound out, or run where an energy counter can be read."

    def read(self, program: Program, target: Target, rows: Inputs) -> Reading:
        """Return the joules of one request."""
        return energy.read(Contender(program, target).load(rows)(), energy.access(target.device), window_s=WINDOW_S)
