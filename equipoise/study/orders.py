"""Orders: what a walker wants done elsewhere. Workers claim them under a lease, and only the last to claim one may finish it.

The lease is written in the transaction of the claim, by the server's clock: a worker that dies at any moment, its first
heartbeat included, holds nothing for longer than its lease, and no clock of another machine matters. Each claim raises the
order's *epoch*; a result under an earlier one, of a worker that was thought dead and was not, is refused. What `TRIES` workers
took and none lived to finish is set aside as `POISON`: one that is short of memory harms no plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.study.postgres import Connection, Db

LEASE_S = 60.0
"""Seconds for which a claim holds without a heartbeat."""
TRIES = 3
"""Claims of an order that no worker lives to finish."""
POISON = f"{TRIES} workers took it and none lived to answer; it is set aside"


@dataclass(frozen=True)
class Order:
    """One job for a worker.

    Attributes:
        id: Its number.
        kind, key, args, expected_s: As of `road.jobs.Job`.
        epoch: Of the claim by which this worker holds it.
    """

    id: int
    kind: str
    key: str
    args: Mapping[str, Any]
    expected_s: float
    epoch: int


class Orders:
    """The orders of one study.

    Args:
        address: Of the study. The connection to its database is used by one thread at a time: another takes orders of its own.
        patience_s: As of `Connection`.
    """

    def __init__(self, address: str, *, patience_s: float = 0.0) -> None:
        self.address, self.study = address, address.partition("#")[2]
        self.connection = Connection(address, patience_s=patience_s)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def open(self, recipe: str) -> None:
        """Say how workers load the workload (a blob); orders that were posted for another recipe are taken away."""
        said = "UPDATE equipoise.studies SET recipe=%s WHERE name=%s AND recipe<>%s RETURNING name"

        def opened(db: Db) -> None:
            if db.execute(said, (recipe, self.study, recipe)).fetchone():
                db.execute("DELETE FROM equipoise.orders WHERE study=%s", (self.study,))

        self.connection.run(opened)

    def recipe(self) -> tuple[str, bool]:
        """Return the recipe of the study, empty before its first walk, and whether it is walked now."""
        said = "SELECT recipe, walking FROM equipoise.studies WHERE name=%s"
        return self.connection.run(lambda db: db.execute(said, (self.study,)).fetchone()) or ("", False)

    def post(self, orders: Sequence[tuple[str, str, Mapping[str, Any], float]]) -> list[int]:
        """Post orders (kind, key, args, expected seconds), return their numbers; one that stands as it is keeps its result."""
        said = """
            INSERT INTO equipoise.orders AS o (study, kind, key, args, expected_s) VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (study, kind, key) DO UPDATE SET
                args=excluded.args, expected_s=excluded.expected_s,
                result=CASE WHEN o.args=excluded.args THEN o.result END,
                until=CASE WHEN o.args=excluded.args THEN o.until END,
                tries=CASE WHEN o.args=excluded.args THEN o.tries ELSE 0 END,
                epoch=o.epoch + (o.args<>excluded.args)::int
            RETURNING id"""

        def post(db: Db) -> list[int]:
            rows = [(self.study, kind, key, json.dumps(args, sort_keys=True), s) for kind, key, args, s in orders]
            return [int(db.execute(said, row).fetchone()[0]) for row in rows]  # type: ignore[index]

        return self.connection.run(post)

    def claim(self, worker: str, recipe: str, *, lease_s: float = LEASE_S) -> Order | None:
        """Take the oldest order that nobody holds; None where there is none, or another recipe is needed."""
        said = """
            UPDATE equipoise.orders
            SET worker=%s, epoch=epoch+1, tries=tries+1, until=clock_timestamp() + make_interval(secs => %s)
            WHERE id = (SELECT id FROM equipoise.orders
                WHERE study=%s AND result IS NULL AND tries<%s AND (until IS NULL OR until<clock_timestamp())
                    AND EXISTS (SELECT 1 FROM equipoise.studies WHERE name=study AND recipe=%s)
                ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
            RETURNING id, kind, key, args, expected_s, epoch"""
        row = self.connection.run(lambda db: db.execute(said, (worker, lease_s, self.study, TRIES, recipe)).fetchone())
        if row is None:
            return None
        number, kind, key, args, expected_s, epoch = row
        return Order(number, kind, key, json.loads(args), expected_s, epoch)

    def beat(self, order: Order, *, lease_s: float = LEASE_S) -> bool:
        """Hold an order for one more lease; False where it is no longer this worker's."""
        said = """
            UPDATE equipoise.orders SET until=clock_timestamp() + make_interval(secs => %s)
            WHERE id=%s AND epoch=%s AND result IS NULL RETURNING id"""
        return self.connection.run(lambda db: db.execute(said, (lease_s, order.id, order.epoch)).fetchone()) is not None

    def finish(self, order: Order, result: Mapping[str, Any]) -> bool:
        """Give an order's result; False where it is refused, as another worker has the order, or it is no longer wanted."""
        said = "UPDATE equipoise.orders SET result=%s WHERE id=%s AND epoch=%s AND (result IS NULL OR result=%s) RETURNING id"
        text = json.dumps(result)
        return self.connection.run(lambda db: db.execute(said, (text, order.id, order.epoch, text)).fetchone()) is not None

    def release(self, order: Order) -> None:
        """Give an order back undone: it is no fault of its own, and the next worker may have it at once."""
        said = (
            "UPDATE equipoise.orders SET until=NULL, tries=tries-1, epoch=epoch+1 WHERE id=%s AND epoch=%s AND result IS NULL"
        )
        self.connection.run(lambda db: db.execute(said, (order.id, order.epoch)))

    def died(self, order: Order, words: str) -> None:
        """Say that the process that did an order did not live: another worker is to try, up to `TRIES` of them."""
        said = "UPDATE equipoise.orders SET until=NULL, epoch=epoch+1, died=%s WHERE id=%s AND epoch=%s AND result IS NULL"
        self.connection.run(lambda db: db.execute(said, (words, order.id, order.epoch)))

    def results(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the results there are, and `POISON` as ``died`` of those set aside."""
        said = """
            SELECT id, result, died FROM equipoise.orders
            WHERE id = ANY(%s) AND (result IS NOT NULL OR (tries>=%s AND (until IS NULL OR until<clock_timestamp())))"""
        rows = self.connection.run(lambda db: db.execute(said, (list(ids), TRIES)).fetchall())
        aside = {number: f"{words}; {POISON}" if words else POISON for number, _, words in rows}
        return {number: {"died": aside[number]} if text is None else json.loads(text) for number, text, _ in rows}

    def held(self) -> int:
        """Return how many orders workers hold now."""
        said = "SELECT count(*) FROM equipoise.orders WHERE study=%s AND result IS NULL AND until>clock_timestamp()"
        row = self.connection.run(lambda db: db.execute(said, (self.study,)).fetchone())
        return int(row[0]) if row else 0

    def clear(self) -> None:
        """Take all orders away: a result that still comes is refused."""
        self.connection.run(lambda db: db.execute("DELETE FROM equipoise.orders WHERE study=%s", (self.study,)))
