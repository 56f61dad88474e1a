"""Peak memory of a child that allocates known amounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.errors import InputError
from equipoise.measure.memory import peak_memory

MB = 1_000_000


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.parametrize("after", [0, 100, 200])
def test_what_the_work_adds_is_counted_and_the_baseline_is_not(after: int) -> None:
    found = peak_memory("entries:allocate", options={"before": 80, "after": after})
    assert found.added.get() == pytest.approx(after * MB, abs=12 * MB)
    assert found.process.get() > (80 + after) * MB


def test_a_peak_of_the_imports_is_forgotten() -> None:
    found = peak_memory("entries:allocate", options={"peak": 300, "after": 50})
    assert found.added.get() == pytest.approx(50 * MB, abs=12 * MB)


def test_the_parents_own_peak_does_not_reach_the_child() -> None:
    """Negative control of the source: ``ru_maxrss`` survives exec and would show these 300 MB."""
    held = bytearray(b"x") * (300 * MB)
    found = peak_memory("entries:allocate")
    assert found.process.get() < 150 * MB < len(held)


def test_the_payload_travels_as_files() -> None:
    assert peak_memory("entries:read_payload", {"model.bin": b"\0payload"}, options={"name": "model.bin"}).added.known
    assert not peak_memory("entries:read_payload", {"model.bin": b"other"}, options={"name": "model.bin"}).added.known


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("fail", "ValueError: the model is broken"),
        ("die", "killed by signal 9"),
        ("absent", "AttributeError"),
        ("hang", "stopped"),
    ],
)
def test_a_child_that_fails_is_unavailable_with_its_last_words(entry: str, told: str) -> None:
    found = peak_memory(f"entries:{entry}", timeout_s=1.5 if entry == "hang" else 600)
    assert not found.added.known
    assert not found.process.known
    assert told in found.added.note


def test_an_entry_without_a_function_is_refused() -> None:
    with pytest.raises(InputError, match="module:function"):
        peak_memory("entries")
