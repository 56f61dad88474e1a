"""The Open Inference Protocol: tensors in JSON and in bytes, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.serve import protocol
from equipoise.serve.protocol import HEADER, Asked, Taken, head_length, write

ONE = {"input": Taken("float32", (3,))}
TWO = {"ids": Taken("int64", (None,)), "mask": Taken("int64", (None,))}


def read(content: bytes, header: str | None, takes: dict[str, Taken], *, most_rows: int) -> tuple[Asked, dict[str, Any]]:
    """Read a whole body as the server does: its JSON, then what is behind it."""
    length = head_length(header)
    asked = protocol.read(content[:length], length, takes, most_rows=most_rows)
    return asked, asked.inputs(b"" if length is None else content[length:])


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(
    name: str = "input", *, datatype: str = "FP32", shape: Any = (2, 3), data: Any = (0.5,) * 6, **more: Any
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": list(data), **more}


def test_flat_and_nested_data_are_the_same() -> None:
    asked, flat = read(body(tensor(data=range(6)), id="a"), None, ONE, most_rows=8)
    _, nested = read(body(tensor(data=[[0, 1, 2], [3, 4, 5]])), None, ONE, most_rows=8)
    assert flat["input"].tolist() == nested["input"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert flat["input"].dtype == np.float32
    assert (asked.id, asked.rows, asked.binary) == ("a", 2, False)


def test_bytes_behind_the_head_are_the_tensors() -> None:
    ids, mask = np.arange(8, dtype=np.int64).reshape(2, 4), np.ones((2, 4), np.int64)
    rows = [{"name": n, "datatype": "INT64", "shape": [2, 4], "parameters": {"binary_data_size": 64}} for n in ("ids", "mask")]
    head = json.dumps({"inputs": rows, "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}).encode()
    asked, inputs = read(head + ids.tobytes() + mask.tobytes(), str(len(head)), TWO, most_rows=8)
    assert (inputs["ids"] == ids).all()
    assert (inputs["mask"] == mask).all()
    content, headers = write(asked, {"output": np.ones((2, 3), np.float32)}, {"model_name": "m"})
    told = json.loads(content[: int(headers[HEADER])])
    assert told["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}]
    assert np.frombuffer(content[int(headers[HEADER]) :], np.float32).tolist() == [1.0] * 6


def test_an_answer_in_json_gives_the_id_back() -> None:
    asked, _ = read(body(tensor(), id="7"), None, ONE, most_rows=8)
    told = json.loads(write(asked, {"output": np.array([[1.5], [2.5]], np.float32)}, {"model_name": "m"})[0])
    assert told == {
        "model_name": "m", "id": "7",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 1], "data": [1.5, 2.5]}],
    }  # fmt: skip


WRONG: list[tuple[bytes, str]] = [
    (b"", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"[]", "JSON object"),
    (b"{}", "list of tensors"),
    (body(1), "list of tensors"),  # type: ignore[arg-type]
    (body(), "all of input"),
    (body(tensor("other")), "input once"),
    (body(tensor(), tensor()), "input once"),
    (body(tensor(datatype="FP64")), "FP32"),
    (body(tensor(shape=[2, 4])), "-1 for any"),
    (body(tensor(shape=[6])), "-1 for any"),
    (body(tensor(shape=[-2, 3])), "whole numbers, none negative"),
    (body(tensor()).replace(b"0.5", b"1" * 10_000), "JSON; a whole number in it has thousands of digits."),
    (body(tensor(shape=[2.0, 3])), "whole numbers"),
    (body(tensor(shape=[True, 3])), "whole numbers"),
    (body(tensor(shape=[0, 3], data=())), "1 to 8 rows"),
    (body(tensor(shape=[9, 3], data=(1,) * 27)), "1 to 8 rows"),
    (body(tensor(shape=[10**18, 3])), "1 to 8 rows"),
    (body(tensor(data=(1,) * 5)), "6 numbers"),
    (body(tensor(data=["a"] * 6)), "6 numbers"),
    (body(tensor(data=[[1], [2, 3]])), "6 numbers"),
    (body(tensor(data=[float("nan")] * 6)), "finite"),
    (body(tensor(data=[1e39] * 6)), "finite"),
    (body(tensor(parameters={"binary_data_size": 24})), "24 bytes"),
    (body(tensor(parameters={"binary_data_size": -1})), "24 bytes"),
    (body(tensor(), id=7), "id must be text"),
    (body(tensor(), parameters=[]), "parameters must be"),
    (body(tensor(), outputs={}), "outputs must be"),
]


@pytest.mark.parametrize(("content", "told"), WRONG)
def test_what_is_wrong_is_told_in_one_sentence(content: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told) as found:
        read(content, None, ONE, most_rows=8)
    assert len(str(found.value)) < 800
    assert not re.search("Error|dict|NoneType", str(found.value))


@pytest.mark.parametrize("header", ["-1", "0", "x", "1e3", "9" * 30, "100000"])
def test_a_header_that_lies_is_told(header: str) -> None:
    with pytest.raises(InputError, match=HEADER):
        read(body(tensor()), header, ONE, most_rows=8)


def test_bytes_that_belong_to_nothing_are_told() -> None:
    head = body(tensor())
    with pytest.raises(InputError, match="3 bytes more"):
        read(head + b"abc", str(len(head)), ONE, most_rows=8)


def test_inputs_of_one_request_are_of_one_batch() -> None:
    rows = [tensor(n, datatype="INT64", shape=(k, 2), data=range(2 * k)) for n, k in (("ids", 2), ("mask", 3))]
    with pytest.raises(InputError, match="one batch"):
        read(body(*rows), None, TWO, most_rows=8)


@pytest.mark.parametrize("count", [0, 23])
def test_fewer_bytes_than_a_tensor_has_are_told(count: int) -> None:
    head = body(tensor(parameters={"binary_data_size": 24}))
    with pytest.raises(InputError, match=f"the 24 bytes of its shape; got {count}"):
        read(head + bytes(count), str(len(head)), ONE, most_rows=8)


def test_rows_are_known_before_the_bytes_have_come() -> None:
    head = body(tensor(parameters={"binary_data_size": 24}))
    assert protocol.read(head, len(head), ONE, most_rows=8).rows == 2
