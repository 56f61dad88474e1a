"""What stands for the child of a worker: it takes its time, and may be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from equipoise.road.answers import Answers
from equipoise.road.facts import Facts
from equipoise.road.jobs import Job


class Slow(Answers):
    """A child that answers after some seconds what a function says of the job."""

    def __init__(self, seconds: float, says: Callable[[Job], dict[str, Any]]) -> None:
        self.seconds, self.says, self.stopped = seconds, says, threading.Event()

    def facts(self) -> Facts:
        raise AssertionError("a worker's orders do not ask for them")

    def answer(self, job: Job) -> dict[str, Any]:
        self.stopped.clear()
        return {"died": "stopped"} if self.stopped.wait(self.seconds) else self.says(job)

    def stop(self) -> None:
        self.stopped.set()
