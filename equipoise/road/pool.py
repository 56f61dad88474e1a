"""Several makers side by side: what may be done anywhere is done at once, and nothing while something is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any

from equipoise.road.answers import KINDS, Answers
from equipoise.road.facts import Facts
from equipoise.road.jobs import Job


class Pool(Answers):
    """A maker of several, each with a model of its own.

    A group of jobs is begun at once, and none of its results is given before all of them are there: the process that asks for
    them times candidates on the same cores.
    """

    def __init__(self, makers: Sequence[Answers]) -> None:
        self._makers = makers
        self._threads = ThreadPoolExecutor(len(makers), thread_name_prefix="equipoise-pool")
        self._begun: dict[tuple[str, str], Future[Mapping[str, Any]]] = {}
        self._free: SimpleQueue[Answers] = SimpleQueue()
        for maker in makers:
            self._free.put(maker)

    def facts(self) -> Facts:
        """Return what can be changed in the model, once every maker has prepared it."""
        found: list[Facts] = [*self._threads.map(lambda maker: maker.facts(), self._makers)]
        return found[0]

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin what may be done anywhere of these jobs."""
        for job in jobs:
            if job.kind in KINDS:
                self._begun[job.kind, job.key] = self._threads.submit(self._done, job)

    def answer(self, job: Job) -> Mapping[str, Any]:
        """See `Answers.answer`."""
        found = self._begun.pop((job.kind, job.key), None) or self._threads.submit(self._done, job)
        wait([found, *self._begun.values()])
        return found.result()

    def close(self) -> None:
        """Begin nothing more: what was begun and not asked for is of no use to anyone."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, job: Job) -> Mapping[str, Any]:
        maker = self._free.get()
        try:
            return maker.answer(job)
        finally:
            self._free.put(maker)
