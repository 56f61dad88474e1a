"""Frames over TCP between a device and a server, and a link that is shaped to a rate and a delay.

A frame is a head of fixed size (a word, a kind, the number of the cut, the length) and its body. Whatever else arrives is
refused; nothing is evaluated. Loopback unless told otherwise: it is a private protocol of two halves of one export, without
encryption or names. Across an open network, put it through a tunnel.

The link is shaped where the frame is sent: each piece leaves when its last bit would have arrived at the far end. Downwards
only the delay counts, as an answer is some bytes. What TCP adds on a real line (heads of packets, slow start, losses) is not
in it.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from equipoise.errors import EquipoiseError, must_be
from equipoise.units import parse, show

MOST_BODY = 2**26
"""Bytes of a frame's body at most."""
PATIENCE_S = 60.0
"""A connection that says nothing, or does not read, for so long is closed."""
AT_ONCE = 2**18
"""Bytes that are taken from a connection in one call at most."""
PIECE = 1448
"""Bytes that leave at once: what a packet holds. A frame leaves in `PIECES` at most, as each costs a call."""
PIECES = 32
SPIN_S = 0.0003
"""A sleep wakes up late by a tenth of a millisecond or two; what is left of a wait below this is spent looking at the clock."""
REQUEST, ANSWER, REFUSAL, ECHO = 1, 2, 3, 4
_HEAD = struct.Struct("!4sBHI")
_WORD = b"EqSp"


@dataclass(frozen=True, slots=True)
class Link:
    """A link: how many bits pass upwards each second, and the time there and back of a bit.

    Example:
        >>> Link.parse("10Mbit/s", "20ms")
        Link(uplink=10000000.0, rtt=0.02)
        >>> Link.parse("10Mbit/s", "20ms").seconds(10_000)
        0.028
    """

    uplink: float
    rtt: float

    @classmethod
    def parse(cls, uplink: str, rtt: str) -> Link:
        """Read ``10Mbit/s`` and ``20ms``.

        Raises:
            InputError: An uplink that is not above 0, a time below 0, or other units.
        """
        rate, delay = parse(uplink, "bit/s", name="uplink"), parse(rtt, "s", name="rtt")
        if rate <= 0:
            raise must_be("uplink", "above 0", uplink, "Write for example 10Mbit/s.")
        if not 0 <= delay <= 60:
            raise must_be("rtt", "from 0 to a minute", rtt, "Write for example 20ms.")
        return cls(rate, delay)

    def seconds(self, size: int | float) -> float:
        """Return how long `size` bytes take to arrive, and an answer of no bytes to come back."""
        return 8 * size / self.uplink + self.rtt

    def __str__(self) -> str:
        return f"{show(self.uplink, 'bit/s')}, {show(self.rtt, 's')} there and back"


def connect(address: tuple[str, int]) -> socket.socket:
    """Return a connection to a server's half.

    Raises:
        EquipoiseError: Nobody listens there.
    """
    try:
        connection = socket.create_connection(address, timeout=PATIENCE_S)
    except OSError as error:
        raise EquipoiseError(f"no server's half listens at {address[0]}:{address[1]}: {error}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(connection: socket.socket, kind: int, number: int, body: bytes, link: Link | None = None) -> None:
    """Send a frame, shaped where there is a link."""
    frame = _HEAD.pack(_WORD, kind, number, len(body)) + body
    if link is None:
        connection.sendall(frame)
        return
    began = time.perf_counter() + link.rtt / 2
    piece = max(PIECE, -(-len(frame) // PIECES))
    for start in range(0, len(frame), piece):
        some = frame[start : start + piece]
        until(began + 8 * (start + len(some)) / link.uplink)
        connection.sendall(some)


def receive(connection: socket.socket) -> tuple[int, int, bytes] | None:
    """Return kind, number and body of the next frame; None where the other end has closed.

    Raises:
        EquipoiseError: What arrives is no frame, is too long, or ends within one.
    """
    head = _exactly(connection, _HEAD.size, end=True)
    if head is None:
        return None
    word, kind, number, length = _HEAD.unpack(head)
    if word != _WORD or kind not in (REQUEST, ANSWER, REFUSAL, ECHO) or length > MOST_BODY:
        raise EquipoiseError(f"what arrived is no frame of at most {MOST_BODY} bytes: {head!r}")
    return kind, number, _exactly(connection, length) or b""


def _exactly(connection: socket.socket, size: int, *, end: bool = False) -> bytes | None:
    """Return `size` bytes; None where there are none at all and that is an `end`. Room is taken as they arrive."""
    found = bytearray()
    while len(found) < size:
        some = connection.recv(min(size - len(found), AT_ONCE))
        if not some:
            if end and not found:
                return None
            raise EquipoiseError(f"the connection ended after {len(found)} of {size} bytes")
        found += some
    return bytes(found)


def until(moment: float) -> None:
    """Wait for a moment of `time.perf_counter`, to some microseconds."""
    left = moment - time.perf_counter()
    if left > SPIN_S:
        time.sleep(left - SPIN_S)
    while time.perf_counter() < moment:
        pass
