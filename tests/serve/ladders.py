"""Ladders of rungs that compute little: a sum, as quick and as wrong as a test asks for."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from equipoise.records import measured
from equipoise.runtimes.base import Program
from equipoise.serve.dispatch import Cost
from equipoise.serve.ladder import Ladder, Rung

PROBE = np.arange(12, dtype=np.float32).reshape(4, 3)


class Sums:
    """Answers each row with its sum and the rung's own number; fails while it is told to, and waits until it is `open`."""

    def __init__(self, number: float, seconds: float) -> None:
        self.number, self.seconds, self.fails, self.batches = number, seconds, False, list[int]()
        self.open = threading.Event()
        self.open.set()

    def run(self, inputs: Any) -> Any:
        assert self.open.wait(60)
        time.sleep(self.seconds)
        if self.fails or (inputs < -99).any():
            raise RuntimeError("it broke")
        self.batches.append(len(inputs))
        with np.errstate(over="ignore"):
            return np.stack([inputs.sum(1), np.full(len(inputs), self.number)], 1).astype(np.float32)


def ladder(*seconds: float, batches: tuple[int, ...] = (1, 2, 4)) -> tuple[Ladder, list[Sums]]:
    """Return a ladder of rungs that take so long, a point of drop more each, and what runs in them."""
    sums = [Sums(number, each) for number, each in enumerate(seconds)]
    rungs, costs = [], []
    for number, made in enumerate(sums):
        quality, drop = (measured(value, "points", low=value, high=value + 0.5) for value in (90.0 - number, float(number)))
        rung = Rung(f"rung{number}", Program("onnxruntime", "fp32", {}), quality, drop, 1, PROBE)
        rung.__dict__["session"] = made
        rungs.append(rung)
        costs.append(Cost(dict.fromkeys(batches, made.seconds + 1e-4), dict.fromkeys(batches, 1.2 * made.seconds + 1e-3)))
    return Ladder("sums", tuple(rungs), tuple(costs), "accuracy", (2,)), sums
