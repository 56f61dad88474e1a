"""A fair load: requests go out when they are due, whether or not earlier ones came back, and are timed from when they were due.

A client that waits for an answer before it asks again slows down with the server and hides what its users would feel
("coordinated omission"). Here a late start counts as latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import json
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.serve import interpreter
from equipoise.serve.protocol import HEADER, TYPES

ARRIVAL = "arrival_ms"
"""Column of a trace."""
LOST = (OSError, asyncio.IncompleteReadError, ValueError)
"""What is raised where no answer comes, or none that can be read."""
PATH = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
IDLE = 64
"""Connections that are kept for the next request."""
MOST = 10_000_000
"""Requests of a load at random."""


@dataclass(frozen=True)
class Body:
    """What a request sends: JSON, and the bytes of its tensors behind it.

    Attributes:
        head: Bytes of the JSON.
    """

    content: bytes
    head: int


@dataclass(frozen=True)
class Sent:
    """One request.

    Attributes:
        due_s: When it was to go out, from the beginning.
        latency_s: From then to its answer.
        status: HTTP's; 0 where no answer came that can be read.
        rung, quality: Of the answer.
    """

    due_s: float
    latency_s: float
    status: int
    rung: str = ""
    quality: float = math.nan


@dataclass(frozen=True)
class Load:
    """What a load test found.

    Attributes:
        slo_s: Seconds within which an answer counts.
        sent: The requests, in the order in which they were due.
        behind_s: By how much the slowest request went out after it was due: large, the client itself was too slow.
    """

    slo_s: float
    sent: tuple[Sent, ...]
    behind_s: float

    @property
    def attainment(self) -> float:
        """Share of the requests that were answered in time."""
        return sum(self._timely(each) for each in self.sent) / len(self.sent)

    @property
    def quality(self) -> float:
        """Mean quality of the answers that came in time."""
        return float(np.mean([each.quality for each in self.sent if self._timely(each)] or [math.nan]))

    @property
    def rungs(self) -> dict[str, float]:
        """Rung -> share of the answers."""
        names = [each.rung for each in self.sent if each.status == 200]
        return {name: names.count(name) / len(names) for name in sorted(set(names))}

    @property
    def statuses(self) -> dict[int, int]:
        """Status -> how many."""
        found = [each.status for each in self.sent]
        return {status: found.count(status) for status in sorted(set(found))}

    def latency_s(self, share: float) -> float:
        """Return the latency that this share of the answers did not exceed."""
        times = [each.latency_s for each in self.sent if each.status == 200]
        return float(np.quantile(times, share)) if times else math.nan

    def _timely(self, each: Sent) -> bool:
        return each.status == 200 and each.latency_s <= self.slo_s


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Return arrivals of so many a second on average, independent of one another.

    Raises:
        InputError: There are none in that time, or too many to send.
    """
    if rate * seconds > MOST:
        raise must_be("--rate", f"{MOST / seconds:.3g} at most over {seconds:g} s", rate, f"Send {MOST:,} requests at most.")
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, max(16, int(2 * rate * seconds + 10 * math.sqrt(rate * seconds))))
    times = np.cumsum(gaps)
    if times[0] >= seconds:
        raise must_be("--time", f"longer for a request to fall into it at {rate:g} a second", f"{seconds:g} s", "Allow more.")
    return [float(t) for t in times[times < seconds]]


def trace(file: Path, rate: float, seconds: float) -> list[float]:
    """Return recorded arrivals, sped up or slowed down to so many a second on average, of the first `seconds`.

    Args:
        file: CSV (``.gz`` too) with a column ``arrival_ms``.
    Raises:
        InputError: No such file or column, fewer than two arrivals, or no time between them.
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", newline="") as text:
            rows = [float(row[ARRIVAL]) / 1e3 for row in csv.DictReader(text)]
    except (OSError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise must_be("--trace", f"a CSV with a column {ARRIVAL}", str(file), f"{type(error).__name__}: {error}.") from error
    if wrong := [number for number, row in enumerate(rows, 1) if not math.isfinite(row)]:
        raise must_be("--trace", "times that are finite numbers", f"{rows[wrong[0] - 1]} in row {wrong[0]}", "Leave it out.")
    if len(rows) < 2:
        raise must_be("--trace", "two arrivals at least", f"{len(rows)} of them", "Take a longer one.")
    if rows != sorted(rows):
        raise must_be("--trace", "arrivals in ascending order", f"{len(rows)} rows that are not", "Sort it.")
    if rows[-1] <= rows[0]:
        raise must_be("--trace", "arrivals with time between them", f"{len(rows)} at one time", "Take a longer one.")
    factor = (len(rows) - 1) / (rows[-1] - rows[0]) / rate
    return [at for row in rows if (at := factor * (row - rows[0])) < seconds]


async def run(url: str, arrivals: Sequence[float], bodies: Sequence[Body], *, slo_s: float, token: str = "") -> Load:
    """Send a request at each arrival and return what became of them.

    Args:
        url: ``http://HOST:PORT/v2/models/NAME/infer``, or https.
        arrivals: Seconds from now, ascending.
        bodies: What is sent, in turn.
    """
    to, loop, began, behind = Client(url, token), asyncio.get_running_loop(), time.perf_counter() + 0.2, 0.0
    tasks: list[asyncio.Task[Sent]] = []
    stopped = threading.Event()

    def go(due: float) -> None:
        nonlocal behind
        behind = max(behind, time.perf_counter() - began - due)
        tasks.append(loop.create_task(to.send(bodies[len(tasks) % len(bodies)], due, began)))

    def pace() -> None:
        """Wait for each arrival in a thread: the loop's own timers are up to two milliseconds late."""
        for due in arrivals:
            while (wait := began + due - time.perf_counter()) > 0:
                if stopped.wait(min(wait, 1.0)):
                    return
            loop.call_soon_threadsafe(go, due)

    with interpreter.shared():
        try:
            await asyncio.to_thread(pace)
        finally:
            stopped.set()
        await asyncio.sleep(0)  # the last of them has been told to go
        sent = await asyncio.gather(*tasks)
    await to.close()
    return Load(slo_s, tuple(sent), behind)


def _parted(url: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        InputError: It is not of the form that a server prints.
    """
    with contextlib.suppress(ValueError):
        at = urlsplit(url)
        if at.scheme in ("http", "https") and at.hostname and at.port and PATH.fullmatch(at.path):
            return at
    raise must_be("URL", "http(s)://HOST:PORT/v2/models/NAME/infer", url, "Take it from what `equipoise serve` printed.")


class Client:
    """HTTP/1.1 with kept connections; one request at a time on each.

    Attributes:
        path: Of the address that it was given.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._at = _parted(url)
        self.path = self._at.path
        shown = f"Authorization: Bearer {token}\r\n" if token else ""
        self._head = f"Host: {self._at.netloc}\r\n{shown}Content-Type: application/json\r\nContent-Length: "
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, body: Body | None = None) -> tuple[int, bytes]:
        """Return status and JSON of an answer, on a kept connection if there is one; raises one of `LOST`."""
        while self._idle and self._idle[-1][0].at_eof():  # the server closed it since
            self._idle.pop()[1].close()
        reader, writer = self._idle.pop() if self._idle else await self._connected()
        length, content = (f"\r\n{HEADER}: {body.head}", body.content) if body else ("", b"")
        writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{len(content)}{length}\r\n\r\n".encode() + content)
        try:
            status, content, stays = await _answered(reader)
        except LOST:
            writer.close()
            raise
        if stays and len(self._idle) < IDLE:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return status, content

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._at.hostname, self._at.port, ssl=self._at.scheme == "https" or None)

    async def send(self, body: Body, due: float, began: float) -> Sent:
        """Send a body when it is due; what goes wrong is an answer too."""
        try:
            status, content = await self.ask("POST", self.path, body)
        except LOST:
            status, content = 0, b""
        latency = time.perf_counter() - began - due
        if status != 200:
            return Sent(due, latency, status)
        told = json.loads(content)["parameters"]
        return Sent(due, latency, status, told["rung"], float(told["quality"]))

    async def close(self) -> None:
        """Close the connections that are kept."""
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):  # over TLS there is a last word to be said
                await writer.wait_closed()


async def _answered(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Return status and JSON of an answer, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    first, *rest = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest if ": " in line)
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    told = content[: int(headers.get(HEADER.lower(), len(content)))]
    return int(first.split(" ")[1]), told, headers.get("connection", "") != "close"


async def metadata(url: str, token: str = "") -> Mapping[str, Any]:
    """Return what a server says of the model at an address that ends in ``/infer``.

    Raises:
        InputError: It is no such address.
        EquipoiseError: Nobody answers there, or not as the protocol says.
    """
    to = Client(url, token)
    try:
        status, content = await to.ask("GET", to.path.removesuffix("/infer"))
    except LOST as error:
        raise EquipoiseError(_why_none(url, error)) from error
    await to.close()
    told = None
    with contextlib.suppress(ValueError):
        told = json.loads(content)
    said = told if isinstance(told, dict) else {}
    if status == 401:
        raise EquipoiseError(f"{url} answers 401: {said.get('error', 'no')}. Give --token-file the file that the server has.")
    if status != 200:
        raise EquipoiseError(f"{url} answers {status}: {str(said.get('error', 'without a reason'))[:200]}.")
    if "inputs" not in said:
        raise EquipoiseError(f"{url} does not say what its model takes: is it a server of the Open Inference Protocol?")
    return said


def _why_none(url: str, error: Exception) -> str:
    """Return in words why no answer came from an address."""
    if isinstance(error, (socket.gaierror, UnicodeError)):  # the latter of a name that is none, as a..b
        return f"nobody serves at {url}: the name of its host leads to no address."
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{url} shows a certificate that is not trusted: {error.verify_message}. Name its file in SSL_CERT_FILE."
    if isinstance(error, ssl.SSLError):
        return f"{url} does not speak HTTPS: is it http://...?"
    if isinstance(error, OSError) and error.strerror:
        return f"nobody serves at {url}: {error.strerror}."
    return f"what serves at {url} closed the connection or answered something else than HTTP: is it https://...?"


def bodies(about: Mapping[str, Any], *, seed: int, length: int = 16, count: int = 8, rows: int = 1) -> list[Body]:
    """Return requests of random inputs, as the server's metadata asks for them; free axes are `length` long."""
    return [body(about, _drawn(about, np.random.default_rng(seed + number), length, rows)) for number in range(count)]


def body(about: Mapping[str, Any], inputs: Mapping[str, NDArray[Any]]) -> Body:
    """Return the request of some inputs, name -> (rows, ...), tensors as bytes."""
    raw = [inputs[given["name"]].astype(TYPES[given["datatype"]]).tobytes() for given in about["inputs"]]
    told = [
        {**given, "shape": list(inputs[given["name"]].shape), "parameters": {"binary_data_size": len(content)}}
        for given, content in zip(about["inputs"], raw, strict=True)
    ]
    if not told:
        raise InputError("the server says of no input what it takes.")
    head = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    return Body(b"".join([head, *raw]), len(head))


def _drawn(about: Mapping[str, Any], generator: np.random.Generator, length: int, rows: int) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for given in about["inputs"]:
        shape = [rows, *(length if axis == -1 else axis for axis in given["shape"][1:])]
        whole = given["datatype"].startswith(("INT", "UINT", "BOOL"))
        found[given["name"]] = generator.integers(0, 2, shape) if whole else generator.random(shape)
    return found
