"""Requests in, answers out: a queue, one thread that runs the models, and the dispatcher between them.

The event loop keeps the queue and decides; the models run in a thread of their own, one batch at a time, as they are timed. A
rung that fails is set aside and the same requests go to the next; none is lost for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import joined, leaves, size
from equipoise.serve.dispatch import Cost, Dispatcher
from equipoise.serve.ladder import Ladder, Rung

AROUND_S, AROUND_MOST = 3e-4, 0.2
"""Seconds that an answer takes from the model to the line, until some were seen; and the part of a request's time that is left
to it at most."""
Array = NDArray[Any]
Made = TypeVar("Made")


class Unknown(Exception):
    """A rung that is asked for and does not stand in the ladder."""


class Ended(BaseException):
    """The server is about to stop. No `Exception`, so that whoever goes on after any error of a rung ends too."""


class Turned(Exception):
    """A request that is not taken.

    Attributes:
        after_s: Seconds after which it may be worth asking again.
    """

    def __init__(self, why: str, after_s: float) -> None:
        super().__init__(why)
        self.after_s = after_s


@dataclass(frozen=True)
class Answer:
    """What a request is given.

    Attributes:
        outputs: (N, ...).
        rung: What gave it.
        waited_s, ran_s: Seconds in the queue, and in the model with the requests beside it.
        late: Whether its deadline had passed.
        at: When the model had answered, by the engine's clock.
    """

    outputs: Array
    rung: Rung
    waited_s: float
    ran_s: float
    late: bool
    at: float


@dataclass(eq=False)
class Request:
    """A request that was taken.

    Attributes:
        came, deadline: When it came, and by when it is to be answered.
        pin: Name of the only rung that may answer it.
        inputs: (rows, ...), once they are here.
        alone: Whether it is run by itself: with others beside it a run went wrong.
    """

    rows: int
    came: float
    deadline: float
    answer: asyncio.Future[Answer]
    pin: str | None = None
    inputs: Any = None
    alone: bool = False

    def joins(self, other: Request) -> bool:
        """Whether one run may answer both: by one rung, and sequences must be of one length."""
        pairs = zip(leaves(self.inputs), leaves(other.inputs), strict=True)
        apart = self.alone or other.alone or self.pin != other.pin
        return not apart and all(one.shape[1:] == two.shape[1:] for one, two in pairs)


@dataclass
class Engine:
    """Serves a ladder; use it from one event loop.

    Attributes:
        slo_s: Seconds from arrival within which a request is to be answered, unless it says otherwise.
        most_waiting: Rows that may wait.
        told: Told of each failure, a line each.
        switched: Told of each rung that takes over, and why.
    """

    ladder: Ladder
    slo_s: float
    most_waiting: int
    told: Callable[[str], None] = lambda line: None
    switched: Callable[[Rung, str], None] = lambda rung, why: None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.ladder.costs, self.slo_s)
        self.around = Cost({1: AROUND_S}, {1: 2 * AROUND_S})
        self._next: Ladder | None = None
        self._queue: deque[Request] = deque()
        self._coming: set[Request] = set()  # their inputs are on the way
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="equipoise-serve")
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_until = 0.0

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._serve())

    async def answer(self, inputs: Any, *, within_s: float | None = None, rung: str | None = None) -> Answer:
        """Return the answer to a request of one or more rows; arguments and errors are those of `admit`."""
        return await self.run(self.admit(size(inputs), within_s=within_s, rung=rung), inputs)

    def admit(self, rows: int, *, within_s: float | None = None, rung: str | None = None) -> Request:
        """Return a place among those who wait, kept until the request's time is over: its inputs may still be on their way.

        Whoever is turned away here costs no more than these few words: a burst of large bodies would drown the loop.

        Args:
            within_s: Seconds that it has; None takes the server's.
            rung: Name of the only rung that may answer; None leaves it to the dispatcher.
        Raises:
            Turned: It would be late, too many wait, no rung is left, or the server is about to stop.
            Unknown: No such rung, or it is about to go.
        """
        now = self.clock()
        self.dispatcher.arrivals.seen(now, rows)
        within = self.slo_s if within_s is None else within_s
        due = now + max(0.0, within - min(AROUND_MOST * within, self.around.seconds(1)))
        request = Request(rows, now, due, asyncio.get_running_loop().create_future(), rung)
        self._refuse_closed(request)
        self._refuse_late(request, now)
        self._coming.add(request)
        return request

    def leave(self, request: Request) -> None:
        """Keep its place no longer."""
        self._coming.discard(request)

    async def run(self, request: Request, inputs: Any) -> Answer:
        """Return the answer to a request that was admitted, now that its inputs are here.

        Raises:
            Turned, Unknown: As `admit`; as late only where the inputs took all its time to come, which then begins anew.
        """
        self.leave(request)
        self._refuse_closed(request)
        if (now := self.clock()) > request.deadline:  # a slow line is not for the machine to make up for
            request.came, request.deadline = now, request.deadline + now - request.came
            self._refuse_late(request, now)
        request.inputs = inputs
        self._queue.append(request)
        self._idle.clear()
        self._work.set()
        return await request.answer

    def _refuse_closed(self, request: Request) -> None:
        rung = request.pin
        if self.draining:
            raise Turned("the server is about to stop", 1.0)
        if rung is not None and not all(rung in ladder.places for ladder in (self.ladder, self.latest)):
            raise Unknown(rung)
        able = [self.ladder.rungs[place].name for place in self.dispatcher.able]
        if not able or rung not in (None, *able):
            raise Turned("every rung is set aside" if not able else f"{rung} is set aside", 60.0)

    def _refuse_late(self, request: Request, now: float) -> None:
        counts, within = self._counts(now), request.deadline - now
        counts[self._place(request.pin)] += request.rows
        ahead = max(0.0, self._busy_until - now) + self.dispatcher.wait(counts)
        if ahead > within and self._idle.is_set():  # nothing runs that could teach otherwise
            self.dispatcher.unlearn()
            ahead = self.dispatcher.wait(counts)
        if counts.total() > self.most_waiting or ahead > within:
            raise Turned(
                f"it would be answered in {1e3 * ahead:.3g} ms, and has {1e3 * within:.3g}", max(ahead - within, 0.001)
            )

    def sent(self, answer: Answer) -> None:
        """Hear that an answer is on its way: what that takes is left to the next ones too."""
        now = self.clock()
        self.around.learn(1, now - answer.at, now)

    def swap(self, ladder: Ladder) -> None:
        """Answer by another ladder from the next run on, told from any thread; who waits for a rung that goes comes first.

        Raises:
            Ended: The server is about to stop.
        """
        if self.draining:
            raise Ended
        self._next = ladder
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._work.set)

    @property
    def latest(self) -> Ladder:
        """The ladder that answers, or is about to."""
        return self._next or self.ladder

    def between(self, job: Callable[[], Made]) -> Made:
        """Return what a short job gives, done where the models run and between two of their runs; not for the event loop.

        Raises:
            Ended: The server is about to stop.
        """
        if self.draining:
            raise Ended
        try:
            done = self._pool.submit(job)
        except RuntimeError as error:  # it stopped since, or the interpreter is about to
            raise Ended from error
        return done.result()

    async def drain(self, most_s: float) -> bool:
        """Take no more, answer what waits, and return whether all of it was."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), most_s)
        except TimeoutError:
            return False
        finally:
            if self._task is not None:
                self._task.cancel()
            self._pool.shutdown(wait=False)
        return True

    async def _serve(self) -> None:
        while True:
            self._queue = deque(each for each in self._queue if not each.answer.done())  # whoever hung up waits no more
            if self._next is not None and all(each.pin is None or each.pin in self._next.places for each in self._queue):
                self.ladder, self._next = self._next, None
                arrivals, self.dispatcher = self.dispatcher.arrivals, Dispatcher(self.ladder.costs, self.slo_s)
                self.dispatcher.arrivals = arrivals
            if not self._queue:
                self._idle.set()
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await self._batch()
            except Exception as error:  # noqa: BLE001 - a fault of ours must leave nobody waiting
                self.told(f"WARNING: {len(self._queue)} requests failed: {type(error).__name__}: {str(error)[:200]}")
                self._fail([*self._queue], error)
                self._queue.clear()

    async def _batch(self) -> None:
        """Answer the oldest requests by one run."""
        now = self.clock()
        each_row = [(each.deadline, self._place(each.pin)) for each in self._queue for _ in range(each.rows)]
        turn = self.dispatcher.turn(now, [due for due, _ in each_row], [pin for _, pin in each_row])
        rung = self.ladder.rungs[turn.rung]
        if turn.why:
            self.switched(rung, turn.why)
        taken = [self._queue.popleft()]
        rows = taken[0].rows
        while self._queue and rows + self._queue[0].rows <= turn.batch and taken[0].joins(self._queue[0]):
            taken.append(self._queue.popleft())
            rows += taken[-1].rows
        inputs = joined([each.inputs for each in taken], np.concatenate) if len(taken) > 1 else taken[0].inputs
        cost = self.dispatcher.costs[turn.rung]
        self._busy_until = now + cost.cleared(rows)
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._pool, rung.session.run, inputs)
            if len(outputs) != rows:
                raise ValueError(f"{len(outputs)} answers to {rows} rows")
        except Exception as error:  # noqa: BLE001 - a session may raise anything: the requests go to another rung
            self._broken(turn.rung, error, taken)
            return
        took = self.clock() - now
        self._busy_until = now + took
        if rows in cost.usual:
            cost.learn(rows, took, now + took)
        place = 0
        for each in taken:
            late = now + took > each.deadline
            if not each.answer.done():
                part = outputs[place : place + each.rows]
                each.answer.set_result(Answer(part, rung, now - each.came, took, late, now + took))
            place += each.rows

    def _broken(self, place: int, error: Exception, taken: list[Request]) -> None:
        """Set a rung aside and put its requests back; where no other is left, or the request itself is at fault, fail them."""
        rung = self.ladder.rungs[place]
        try:
            rung.check()
            fault = True  # the rung is well: it was the request
        except Exception:  # noqa: BLE001 - as above
            fault = False
            self.dispatcher.broken.add(place)
            self.told(f"WARNING: {rung.name} is set aside: {type(error).__name__}: {str(error)[:200]}")
        self._queue.extendleft(reversed(taken))
        if fault and len(taken) > 1:
            for each in taken:
                each.alone = True
            return
        left = bool(self.dispatcher.able)
        self._fail(taken if fault else [each for each in self._queue if not left or each.pin == rung.name], error)

    @staticmethod
    def _fail(requests: list[Request], error: Exception) -> None:
        for each in requests:
            if not each.answer.done():
                each.answer.set_exception(error)

    def _place(self, pin: str | None) -> int | None:
        return None if pin is None else self.ladder.places[pin]

    def _counts(self, now: float) -> Counter[int | None]:
        """Rung that is asked for, None for any -> rows that wait, or have a place kept for them."""
        counts: Counter[int | None] = Counter()
        for each in (*self._queue, *(each for each in self._coming if each.deadline > now)):
            counts[self._place(each.pin)] += each.rows
        return counts

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return sum(each.rows for each in self._queue)
