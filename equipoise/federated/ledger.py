"""What a federation has done, in a folder that a killed server goes on from: a checkpoint after every round, and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.errors import StoreError
from equipoise.federated.rounds import Share
from equipoise.federated.state import Server
from equipoise.records import as_data
from equipoise.study.files import write_atomic
from equipoise.training import checkpoint

COLUMNS = ("round", "quality", "validation_loss", "asked", "counted", "down_bytes", "up_bytes", "seconds", "epsilon")


@dataclass(frozen=True)
class Round:
    """One round, as it is recorded.

    Attributes:
        number: From 1.
        quality: Of the server's model on the validation split, in points of the metric.
        validation_loss: On the same samples.
        seconds: Of the round, the look at the validation split included.
        epsilon: What has been spent by now; None where there is no noise, and so no guarantee.
        shares: What each client had of it.
    """

    number: int
    quality: float
    validation_loss: float
    seconds: float
    epsilon: float | None
    shares: tuple[Share, ...]

    @property
    def counted(self) -> tuple[int, ...]:
        """The clients whose answers count."""
        return tuple(share.client for share in self.shares if not share.lost)

    @property
    def down_bytes(self) -> int:
        """What went to the clients."""
        return sum(share.down_bytes for share in self.shares)

    @property
    def up_bytes(self) -> int:
        """What came from the clients."""
        return sum(share.up_bytes for share in self.shares)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Round:
        """Return the round that `as_data` wrote."""
        return cls(**{**data, "shares": tuple(Share(**share) for share in data["shares"])})


@dataclass(frozen=True)
class Ledger:
    """The record of a federation in `folder`."""

    folder: Path

    def load(self) -> tuple[Server, tuple[Round, ...]] | None:
        """Return the server after its last round, and all rounds; None before the first.

        Raises:
            StoreError: What is there cannot be read.
        """
        found = checkpoint.read(self._path)
        if found is None:
            return None
        tensors, facts = found
        parts: dict[str, dict[str, Any]] = {"weights": {}, "memory": {}}
        for name, value in tensors.items():
            part, _, own = name.partition(".")
            parts[part][own] = value
        try:
            rounds = tuple(map(Round.read, facts["rounds"]))
            accepted = {int(client): int(made) for client, made in facts["accepted"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"checkpoint {self._path} must be of this version; got {error}. Delete it to start over."
            ) from error
        return Server(len(rounds), parts["weights"], parts["memory"], accepted), rounds

    def keep(self, server: Server, rounds: Sequence[Round]) -> None:
        """Write a round down: from here the run goes on, whatever happens.

        Raises:
            StoreError: The disk is full or refuses.
        """
        tensors = {f"{part}.{name}": v for part in ("weights", "memory") for name, v in getattr(server, part).items()}
        accepted = {str(client): made for client, made in server.accepted.items()}
        checkpoint.write(self._path, tensors, {"rounds": as_data(list(rounds)), "accepted": accepted})
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_row, rounds))
        write_atomic(self.folder / "rounds.csv", table.getvalue().encode())

    @property
    def _path(self) -> Path:
        return self.folder / "checkpoint.safetensors"


def _row(one: Round) -> list[Any]:
    asked, counted = len(one.shares), len(one.counted)
    spent = "" if one.epsilon is None else one.epsilon
    return [one.number, one.quality, one.validation_loss, asked, counted, one.down_bytes, one.up_bytes, one.seconds, spent]
