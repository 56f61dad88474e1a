"""What passes between the halves comes out as it went in, and anything else is refused."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError, InputError
from equipoise.halves.coding import Field, packed, shortest, unpacked
from equipoise.halves.wire import ECHO, MOST_BODY, REQUEST, Link, receive, send, until

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("field", "array"),
    [
        (Field("x", "uint8", 256), RNG.integers(0, 256, (2, 3, 4, 5))),
        (Field("x", "uint8", 256, differences=True), RNG.integers(0, 256, (2, 3, 4, 5))),
        (Field("x", "uint8", 12, differences=True), RNG.integers(0, 12, (2, 70))),
        (Field("x", "float32"), RNG.normal(size=(4, 7))),
        (Field("x", "int64"), RNG.integers(-(2**40), 2**40, (1, 9))),
        (Field("x", "bool"), RNG.integers(0, 2, (3, 3))),
    ],
)
def test_arrays_come_out_as_they_went_in(field, array) -> None:
    array = array.astype(field.type)
    found = unpacked((field,), packed((field,), {"x": array}))["x"]
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_few_levels_take_less_than_their_bits() -> None:
    field = Field("x", "uint8", 16)
    array = np.clip(RNG.normal(7, 1.2, (1, 16_000)).round(), 0, 15).astype(np.uint8)
    assert len(packed((field,), {"x": array})) < 0.35 * array.size  # below the 0.5 that four bits would take


def test_a_smooth_image_passes_as_differences_and_noise_does_not() -> None:
    field = Field("x", "uint8", 256)
    smooth = (np.linspace(0, 255, 64)[None, None] + np.arange(64)[None, :, None]).astype(np.uint8)
    assert shortest(field, [smooth]).differences
    assert not shortest(Field("x", "uint8", 16), [np.clip(RNG.normal(3, 1, (1, 99, 99)), 0, 15).astype(np.uint8)]).differences


FIELDS = (Field("x", "uint8", 16), Field("mask", "int64"))


def pair_of(value: int, masks: int) -> dict[str, np.ndarray]:
    return {"x": np.full((2, 5), value, np.uint8), "mask": np.ones((masks, 4), np.int64)}


GOOD = packed(FIELDS, pair_of(3, 2))


def damaged() -> dict[str, bytes]:
    bomb = packed((Field("x", "uint8", 256),), {"x": np.zeros((1, 10_000_000), np.uint8)})
    return {
        "empty": b"",
        "cut short": GOOD[:-1],
        "too long": GOOD + b"\0",
        "no axes": b"\0" + GOOD[1:],
        "many axes": b"\xff" + GOOD[1:],
        "a huge shape": b"\x01" + b"\xff\xff\xff\xff" + b"\0\0\0\1" + b"x",
        "more than announced": bomb[:1] + b"\0\0\0\1\0\0\0\5" + bomb[9:],
        "levels that there are not": packed((Field("x", "uint8", 256), FIELDS[1]), pair_of(200, 2)),
        "unlike batches": packed(FIELDS, pair_of(3, 3)),
    }


@pytest.mark.parametrize("name", damaged())
def test_what_is_damaged_is_refused(name) -> None:
    assert unpacked(FIELDS, GOOD)["x"].shape == (2, 5)
    with pytest.raises(InputError, match="a message must be"):
        unpacked(FIELDS, damaged()[name])


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_nothing_but_refusals_comes_of_noise(noise, place) -> None:
    for content in (noise, GOOD[:place] + noise + GOOD[place + len(noise) :]):
        try:
            found = unpacked(FIELDS, content)
        except InputError:
            continue
        assert set(found) == {"x", "mask"}


def test_frames_arrive_whole_and_strangers_are_refused() -> None:
    one, other = socket.socketpair()
    with one, other:
        send(one, REQUEST, 300, b"body")
        send(one, ECHO, 0, b"")
        assert receive(other) == (REQUEST, 300, b"body")
        assert receive(other) == (ECHO, 0, b"")
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(EquipoiseError, match="no frame"):
            receive(other)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"EqSp\x01\x00\x00" + (MOST_BODY + 1).to_bytes(4, "big"))
        with pytest.raises(EquipoiseError, match="no frame"):
            receive(other)
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall(b"EqSp\x01\x00\x00" + (10).to_bytes(4, "big") + b"half")
        with pytest.raises(EquipoiseError, match="ended after 4 of 10 bytes"):
            receive(other)
    one, other = socket.socketpair()
    with other:
        one.close()
        assert receive(other) is None


def test_a_shaped_frame_is_never_early() -> None:
    one, other = socket.socketpair()
    link = Link.parse("2Mbit/s", "8ms")
    with one, other:
        began = time.perf_counter()
        sender = threading.Thread(target=send, args=(one, REQUEST, 0, bytes(5000), link))
        sender.start()
        assert receive(other) == (REQUEST, 0, bytes(5000))
        took = time.perf_counter() - began
        sender.join()
    assert took >= 8 * 5011 / 2e6 + 0.004


def test_waiting_ends_at_the_moment_and_not_before() -> None:
    moment = time.perf_counter() + 0.002
    until(moment)
    assert time.perf_counter() >= moment


NO_LINKS = [("10", "1ms"), ("0Mbit/s", "1ms"), ("-1Mbit/s", "1ms"), ("1MB/s", "1ms"), ("1Mbit/s", "-1ms"), ("1Mbit/s", "2h")]


@pytest.mark.parametrize(("uplink", "rtt"), NO_LINKS)
def test_a_link_is_a_rate_and_a_time(uplink, rtt) -> None:
    assert str(Link.parse("10Mbit/s", "20ms")) == "10 Mbit/s, 20 ms there and back"
    with pytest.raises(InputError, match=r"uplink|rtt"):
        Link.parse(uplink, rtt)
