"""Messages stay short, whatever was passed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from equipoise.errors import must_be, shown

LONG: dict[str, tuple[Any, str]] = {
    "state dict": (OrderedDict((f"layer{i}.weight", torch.randn(50, 50)) for i in range(99)), "(OrderedDict of 99)"),
    "list": (list(range(10_000)), "[0, 1, 2, 3, 4, 5, ...] (list of 10000)"),
    "tuple": (tuple("abcdefghijklmnop"), "('a', 'b', 'c', 'd', 'e', 'f', ...) (tuple of 16)"),
    "tensor": (torch.randn(40, 40), " ... "),
    "array of words": ("word " * 500, " ... "),
    "nested": ([["x" * 900]] * 3, " ... "),
}


@pytest.mark.parametrize("case", LONG)
def test_long_values_are_shown_in_part(case: str) -> None:
    value, found = LONG[case]
    text = str(must_be("model", "small", value, "Do so."))
    assert found in text
    assert len(text) < 420
    assert "\n" not in text
    assert text.endswith(". Do so.")


def test_short_values_stand_as_they_are() -> None:
    for value in (3, "a\nb", None, (1, 2), {"a": 1}, "/a/rather/long/path" * 8, [1, 2, 3]):
        assert shown(value) == repr(value)
