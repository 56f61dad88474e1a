"""A maker that posts orders in the study's database: workers on any machine do them, processes of this one among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

from equipoise.errors import StoreError
from equipoise.records import dumps
from equipoise.road.answers import KINDS, Answers
from equipoise.road.bench import Workbench
from equipoise.road.facts import Facts
from equipoise.road.isolated import Child, children, held_of, recipe_of
from equipoise.road.jobs import Job
from equipoise.road.trials import Tell
from equipoise.road.worker import LOOK_S, serve
from equipoise.study.orders import Orders
from equipoise.study.store import Store

PATIENCE_S = 20.0
"""How long nobody may take an order before that is told."""


class Ordered(Answers):
    """Posts what may be done anywhere; gives no result of a group before all are there, so that nothing runs beside a timing.

    Args:
        orders: Of the study that is walked.
        bench: Of this process.
        hands: Children of this machine, which take orders too; none where this machine only times.
        tell: Told where nobody takes them.
    """

    def __init__(self, orders: Orders, bench: Workbench, hands: Sequence[Child], recipe: str, tell: Tell) -> None:
        self._orders, self._bench, self._hands, self._recipe, self._tell = orders, bench, hands, recipe, tell
        self._threads = ThreadPoolExecutor(max(1, len(hands)), thread_name_prefix="equipoise-hand")
        self._posted: dict[tuple[str, str], int] = {}
        self._found: dict[int, dict[str, Any]] = {}

    def facts(self) -> Facts:
        """Return what can be changed in the model."""
        return self._hands[0].facts() if self._hands else self._bench.facts

    def begin(self, jobs: Sequence[Job]) -> None:
        """Post what may be done anywhere of these jobs."""
        mine = [job for job in jobs if job.kind in KINDS]
        ids = self._orders.post([(job.kind, job.key, dict(job.args), job.expected_s) for job in mine])
        self._posted.update({(job.kind, job.key): number for job, number in zip(mine, ids, strict=True)})

    def answer(self, job: Job) -> Mapping[str, Any]:
        """See `Answers.answer`."""
        if (job.kind, job.key) not in self._posted:
            self.begin([job])
        number = self._posted[job.kind, job.key]
        if number not in self._found:
            self._found = self._all()
        del self._posted[job.kind, job.key]
        return self._found.pop(number)

    def _all(self) -> dict[int, dict[str, Any]]:
        """Return the results of all that is posted, when all are there and the hands of this machine rest."""
        ids, stop = [*self._posted.values()], threading.Event()
        found = self._orders.results(ids)
        if len(found) == len(ids):
            return found
        helping = [self._threads.submit(self._help, child, stop) for child in self._hands]
        look = time.monotonic() + PATIENCE_S
        try:
            while len(found) < len(ids):
                time.sleep(LOOK_S)
                if time.monotonic() > look:
                    look += 2 * PATIENCE_S
                    if not self._orders.held():
                        self._tell("workers", "WARNING: nobody takes the orders of this study. Start `equipoise worker`.", 0.0)
                for hand in helping:
                    if hand.done():  # before it was told to
                        hand.result()
                        raise StoreError(f"the study {self._orders.study} was taken over by another process. Stop this one.")
                found = self._orders.results(ids)
        finally:
            stop.set()
            for hand in helping:
                hand.exception()
        return found

    def _help(self, child: Child, stop: threading.Event) -> None:
        with closing(Orders(self._orders.address)) as mine:
            serve(mine, child, self._recipe, told=lambda _: None, stop=stop)

    def close(self) -> None:
        """Let the hands go."""
        self._threads.shutdown()


@contextmanager
def ordered(bench: Workbench, store: Store, *, spec: str, seed: int, tell: Tell, count: int) -> Iterator[Ordered]:
    """Give a maker that posts orders in the database of `store`.

    Args:
        spec: How the command line names the workload, here and on every worker; an object travels through the database.
        count: Processes of this machine that take orders too; 0 where it only times.
    """
    held = held_of(bench, spec)
    said = recipe_of(bench, spec=spec, seed=seed)
    recipe = store.blob(dumps({**said, "held": store.blob(held)}).encode())
    with closing(Orders(store.address)) as orders, children(said, held, store.path, tell, count) as hands:
        orders.open(recipe)
        with closing(Ordered(orders, bench, hands, recipe, tell)) as maker:
            yield maker
        orders.clear()
