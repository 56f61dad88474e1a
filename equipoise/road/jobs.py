"""Jobs, what decides on them and what does them: the three protocols of a road.

A road decides: `Decisions.next` looks at the record and names the jobs to do now. An executor does them, and the record keeps
what they gave. So the same decisions drive a laptop, a child process or many machines, and a test drives a road with an
executor that answers from a formula.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from equipoise.events import Event, Listener
from equipoise.records import Evaluation
from equipoise.road.watchdog import watched
from equipoise.study.store import Store

TOGETHER = 8
"""Jobs that are decided on at once at most: however many machines there are, so that all decide the same."""
Where = Literal["anywhere", "measuring host"]


@dataclass(frozen=True)
class Job:
    """One step, as plain data.

    Attributes:
        kind, key: Its name in the record, where its result is kept and found again.
        args: What it needs, JSON alone.
        where: ``anywhere``, or only on the machine whose times are compared, and alone there.
        expected_s: Seconds that it ought to take; 0 where nothing is known.
        says: The step, as its user knows it.
    """

    kind: str
    key: str
    args: Mapping[str, Any] = field(default_factory=dict)
    where: Where = "anywhere"
    expected_s: float = 0.0
    says: str = ""

    @property
    def name(self) -> str:
        """The step in words."""
        return self.says or f"{self.kind} {self.key}"


T = TypeVar("T")
Steps = Generator[Job | list[Job], Any, T]
"""What yields a job and is sent its result, or several that may be done together and is sent theirs, and returns `T`."""


class Record(Protocol):
    """What is known: results by kind and key."""

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return a result, with the ``seconds`` that it took, or None."""
        ...

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return every result of one kind, oldest first."""
        ...


class Decisions(Protocol):
    """A road: pure, so that the same record is always answered by the same jobs."""

    def next(self, record: Record) -> list[Job]:
        """Return the jobs to do now, none of which is recorded; none at all at the end of the road."""
        ...

    def heard(self, job: Job, data: Mapping[str, Any]) -> None:
        """Hear a result as soon as it is recorded, before the others that are done with it."""
        ...


class Executor(Protocol):
    """Does jobs."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs will be asked for next, all of them: what can be done at once may be begun."""
        ...

    def run(self, job: Job) -> Mapping[str, Any]:
        """Return a job's result as plain JSON data."""
        ...


def drive(
    decisions: Decisions,
    store: Store,
    executor: Executor,
    *,
    mark: float | None = None,
    around: Callable[[Job], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> None:
    """Walk a road to its end: each job that it names is done and recorded, with all the time that passed since the one before.

    Args:
        decisions: The road.
        store: Where results are kept; what it holds already is not done again.
        executor: Does the jobs.
        mark: ``time.perf_counter()`` from which the first job counts; None for now.
        around: Gives a context manager in which a job is done, such as one that tells of a job that takes too long.
    """
    mark = clock.perf_counter() if mark is None else mark
    while jobs := decisions.next(store):
        executor.begin(jobs)
        for job in jobs:

            def compute(job: Job = job, since: float = mark) -> Mapping[str, Any]:
                with around(job):
                    data = executor.run(job)
                return {**data, "seconds": clock.perf_counter() - since}

            decisions.heard(job, store.once(job.kind, job.key, compute))
            mark = clock.perf_counter()


class Walk:
    """Decisions written as a generator of jobs that is sent their results: the straight line that a road is.

    What `walk` does may depend on nothing but what was asked and what it is sent, so it can be walked again from any record.

    Args:
        limit_s: The time that was asked for.
        listen: Told about progress.
    """

    def __init__(self, limit_s: float, listen: Listener) -> None:
        self.limit_s, self.listen = limit_s, listen
        self.spent_s = 0.0
        self.waiting: Job | list[Job] | None = None
        self._walked: set[tuple[str, str]] = set()
        self._ahead_s = 0.0  # of what was heard and not walked by yet
        self._walking: Steps[None] | None = None

    def walk(self, record: Record) -> Steps[None]:
        """Yield the jobs of the road in their order; each is answered by its result."""
        raise NotImplementedError

    def next(self, record: Record) -> list[Job]:
        """Return the next jobs, those of them that are not recorded; see `Decisions.next`."""
        if self._walking is None:
            self._walking = self.walk(record)
            self.waiting = next(self._walking, None)
        while self.waiting is not None:
            jobs = self.waiting if isinstance(self.waiting, list) else [self.waiting]
            found = [record.get(job.kind, job.key) for job in jobs]
            if missing := [job for job, data in zip(jobs, found, strict=True) if data is None]:
                return missing
            self._ahead_s = 0.0
            try:
                self.waiting = self._walking.send(found if isinstance(self.waiting, list) else found[0])
            except StopIteration:
                self.waiting = None
        return []

    def heard(self, job: Job, data: Mapping[str, Any]) -> None:
        """See `Decisions.heard`."""
        self._ahead_s += data["seconds"]

    def together(self, walks: Sequence[Steps[T]]) -> Steps[list[T]]:
        """Take several walks at once, so that their next jobs may be done together; return what each of them returned."""
        ended: dict[int, T] = {}
        sent: dict[int, Any] = dict.fromkeys(range(len(walks)))
        while True:
            jobs: dict[int, Any] = {}  # a job each: what is walked together takes nothing together itself
            for number, data in sent.items():
                try:
                    jobs[number] = walks[number].send(data)
                except StopIteration as end:
                    ended[number] = end.value
            if not jobs:
                return [ended[number] for number in range(len(walks))]
            sent = dict(zip(jobs, (yield list(jobs.values())), strict=True))

    def step(self, job: Job) -> Steps[dict[str, Any]]:
        """Have a job done, and count its recorded time; one that the walk comes by again has cost its time once."""
        data: dict[str, Any] = yield job
        if not self.walked(job):
            self._walked.add((job.kind, job.key))
            self.spent_s += data["seconds"]
        return data

    def walked(self, job: Job) -> bool:
        """Whether the walk has come by this job already."""
        return (job.kind, job.key) in self._walked

    def left(self, share: float = 1.0) -> float:
        """Seconds until `share` of the time is spent; from recorded times only, so that a replay decides the same."""
        return share * self.limit_s - self.spent_s

    def tell(self, stage: str, text: str, extra_s: float = 0.0, evaluation: Evaluation | None = None) -> None:
        """Report progress; `extra_s` is the time of a step that is still going on."""
        self.listen(Event(stage, text, self.spent_s + self._ahead_s + extra_s, self.limit_s, evaluation))

    def watched(self, job: Job) -> AbstractContextManager[None]:
        """Give the block in which a job is done: it tells when the job takes far longer than it should."""
        return watched(job.name, lambda text: self.tell("stuck", text), expected_s=job.expected_s)
