"""How a question reaches clients: here in one process; over loopback HTTP in `served`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from equipoise.errors import EquipoiseError
from equipoise.federated.client import DiedError
from equipoise.federated.messages import Message, packed, unpacked


@dataclass(frozen=True)
class Reply:
    """What came of asking one client.

    Attributes:
        message: Its answer, read but not yet checked for what it says; None where there is none.
        lost: Why there is none.
        down_bytes, up_bytes: What went to it and what came back.
        seconds: From the question to the answer.
    """

    message: Message | None
    lost: str = ""
    down_bytes: int = 0
    up_bytes: int = 0
    seconds: float = 0.0


class Transport(Protocol):
    """Carries questions to clients."""

    def ask(self, asked: Mapping[int, Message], *, most: int, limit_s: float) -> dict[int, Reply]:
        """Ask clients at once, and return what came of each.

        Args:
            asked: Client -> question.
            most: Bytes that an answer may have.
            limit_s: Seconds after which an answer is late.
        """
        ...

    def close(self) -> None:
        """Let the clients go."""
        ...


Handler = Callable[[Message], Message]


@dataclass(frozen=True)
class InProcess:
    """All clients in this process, one after another; what travels is packed and read as if it went over a wire.

    Attributes:
        clients: Number -> what answers.
    """

    clients: Mapping[int, Handler]
    wire: list[bytes] | None = field(default=None, repr=False)

    def ask(self, asked: Mapping[int, Message], *, most: int, limit_s: float) -> dict[int, Reply]:
        """Ask one client after another; one that takes too long is late, though it is waited for."""
        return {client: self._one(client, question, most, limit_s) for client, question in asked.items()}

    def _one(self, client: int, question: Message, most: int, limit_s: float) -> Reply:
        down, began = packed(question), time.monotonic()
        try:
            up = packed(self.clients[client](unpacked(down)))
        except DiedError as error:
            return Reply(None, str(error), len(down), 0, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - the user's model in training; it costs the client its share of the round
            why = f"it failed: {type(error).__name__}: {error}"
            return Reply(None, why, len(down), 0, time.monotonic() - began)
        seconds = time.monotonic() - began
        if self.wire is not None:
            self.wire.extend([down, up])
        if seconds > limit_s:
            return Reply(None, f"it was late: {seconds:.1f} s of {limit_s:g}", len(down), len(up), seconds)
        try:
            return Reply(unpacked(up, most=most), "", len(down), len(up), seconds)
        except EquipoiseError as error:
            return Reply(None, str(error), len(down), len(up), seconds)

    def close(self) -> None:
        """Do nothing: nothing is held."""
