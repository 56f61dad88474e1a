"""What travels is read back as it was sent, and nothing that was not is believed."""

from __future__ import annotations

import contextlib
import pickle
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.federated.messages import MAGIC, Message, check_tensors, packed, unpacked

SENT = Message("update", {"round": 3, "nonce": "ab"}, {"w": torch.randn(2, 3), "n": torch.tensor([1, -2], dtype=torch.int8)})


def test_a_message_arrives_as_it_was_sent() -> None:
    found = unpacked(packed(SENT))
    assert (found.kind, found.facts) == ("update", {"round": 3, "nonce": "ab"})
    assert all(torch.equal(found.tensors[name], value) for name, value in SENT.tensors.items())
    assert found.tensors["n"].dtype == torch.int8


@given(st.binary(max_size=80))
def test_other_bytes_are_refused(data: bytes) -> None:
    for tried in (data, MAGIC + data, MAGIC + struct.pack(">I", len(data)) + data):
        with pytest.raises(InputError):
            unpacked(tried)


@given(st.data())
def test_a_message_that_was_cut_or_changed_is_refused_or_still_a_message(data: st.DataObject) -> None:
    whole = bytearray(packed(SENT))
    place = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InputError):
        unpacked(bytes(whole[:place]))
    whole[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InputError):
        assert isinstance(unpacked(bytes(whole)), Message)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_is_not_run() -> None:
    for data in (pickle.dumps(Runs()), MAGIC + struct.pack(">I", 0) + pickle.dumps(Runs())):
        with pytest.raises(InputError):
            unpacked(data)


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"kind":1,"facts":{}}', b'{"kind":"a","facts":[]}', b"[" * 100_000])
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(InputError):
        unpacked(MAGIC + struct.pack(">I", len(header)) + header + packed(Message("a"))[8 + 23 :])


def test_a_message_that_is_too_long_is_not_read() -> None:
    data = packed(SENT)
    assert unpacked(data, most=len(data)).kind == "update"
    with pytest.raises(InputError, match=f"at most {len(data) - 1} bytes"):
        unpacked(data, most=len(data) - 1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "tensor w must be there"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, "tensor x must be among those"),
        ({"w": torch.zeros(3)}, r"tensor w must be torch.float32 of shape \(2,\)"),
        ({"w": torch.zeros(2).double()}, "tensor w must be torch.float32"),
        ({"w": torch.tensor([0.0, float("nan")])}, "tensor w must be finite"),
        ({"w": torch.tensor([0.0, float("inf")])}, "tensor w must be finite"),
    ],
)
def test_tensors_that_were_not_asked_for_are_told(found: dict[str, torch.Tensor], words: str) -> None:
    expected = {"w": (torch.float32, (2,))}
    check_tensors({"w": torch.ones(2)}, expected)
    with pytest.raises(InputError, match=words):
        check_tensors(found, expected)
