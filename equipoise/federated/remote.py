"""The other end of the wire: a process that holds data, comes for questions and brings answers."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from equipoise.errors import must_be
from equipoise.federated.client import DiedError
from equipoise.federated.messages import Message, packed, unpacked

PATIENCE_S = 20.0
"""Seconds for which a server that does not answer is asked again."""
DIED = 86
"""Exit code of a client that was to die."""


@dataclass(frozen=True)
class Link:
    """A client's way to its server.

    Attributes:
        url: Such as ``https://127.0.0.1:8443``.
        token: The client's secret word.
        authority: File of the certificate that the server must have, for https; None takes the system's.
    """

    url: str
    token: str
    authority: str | None = None

    def call(self, path: str, data: bytes | None = None, *, timeout_s: float = 60.0) -> tuple[int, bytes]:
        """Return (status, body) of one request."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.url + path, data, headers)
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.authority)))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as found:
                return int(found.status), bytes(found.read())
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code), bytes(error.read())


def work(link: Link, handle: Callable[[Message], Message]) -> None:
    """Answer questions until the server says that it is over, or is gone.

    Raises:
        DiedError: The client was to die.
        InputError: The server does not know the token.
    """
    silent_since: float | None = None
    while True:
        try:
            status, data = link.call("/question")
        except (OSError, http.client.HTTPException) as error:  # not there: perhaps it is being started again
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLError):
                raise must_be(
                    "server", "one with a certificate that is trusted", str(error.reason), "See authority."
                ) from error
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                return
            time.sleep(0.2)
            continue
        silent_since = None
        if status == 410:
            return
        if status == 401:
            raise must_be("token", "one that the server knows", "another", "Ask for the token of this client.")
        if status != 200:
            continue
        question = unpacked(data)
        try:
            answer = handle(question)
        except DiedError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's model in training: the server is told, and the client stays
            facts = {name: question.facts[name] for name in ("round", "nonce", "client")}
            answer = Message("failed", {**facts, "why": f"{type(error).__name__}: {error}"[:500]})
        try:
            link.call("/answer", packed(answer))
        except (OSError, http.client.HTTPException):
            continue  # what did not arrive is late; the next question says what counted


def main() -> int:
    """Be the client that the JSON on stdin describes."""
    given: Mapping[str, Any] = json.load(sys.stdin)
    import torch

    from equipoise.federated.launch import client_of

    torch.set_num_threads(1)
    try:
        work(Link(given["url"], given["token"], given.get("authority")), client_of(given).handle)
    except DiedError:
        os._exit(DIED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
