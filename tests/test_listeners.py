"""What listens to a search can end it, and can do it no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_road import asked, evaluations, walked

import equipoise as eq
from equipoise.errors import InputError
from equipoise.events import Event
from equipoise.listeners import Guarded, TensorBoardListener, figures


def test_one_that_raises_is_told_once_and_the_others_hear_on(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError("mine")

    told = Guarded(broken, heard.append)
    for number in range(3):
        told(Event("search", str(number), 0.0, 1.0))
    assert [event.text for event in heard] == ["0", "1", "2"]
    said = capsys.readouterr().err
    assert said.count("ZeroDivisionError: mine") == 1
    assert "broken" in said
    assert not told.stopped


def test_an_interrupt_is_no_fault_of_a_listener() -> None:
    def pressed(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(pressed)(Event("search", "", 0.0, 1.0))


def test_figures_are_those_that_were_measured() -> None:
    found = evaluations(walked(asked(limit_s=60.0)).record)[0]
    assert figures(Event("evaluate", "", 0.0, 1.0, found))["latency_s"] == found.axis("latency_s").get()
    assert figures(Event("evaluate", "", 0.0, 1.0)) == {}


def test_tensorboard_gets_each_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    listener = TensorBoardListener(tmp_path)
    for found in evaluations(walked(asked(limit_s=60.0)).record)[:3]:
        listener(Event("evaluate", "", 0.0, 1.0, found))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert any(tag.endswith("/latency_s") for tag in read.Tags()["scalars"])


@pytest.mark.slow
def test_stop_ends_a_search_in_order_and_the_same_command_goes_on(tmp_path: Path) -> None:
    scored: list[Event] = []

    def listen(event: Event) -> None:
        if event.evaluation is not None:
            scored.append(event)
            if len(scored) == 4:
                raise eq.Stop

    how = {"budget": "drop<=1", "time": 60, "store": tmp_path / "study", "only": "bits,width"}
    study = eq.optimize("digits", listen=[listen], **how)
    assert len(study.evaluations) == 4
    more = eq.optimize("digits", listen=lambda _: None, **{**how, "time": 30})
    assert len(more.evaluations) > 4
    assert [e.key for e in more.evaluations[:4]] == [e.key for e in study.evaluations]


def test_the_end_before_anything_is_measured_leaves_nothing(tmp_path: Path) -> None:
    def listen(event: Event) -> None:
        raise eq.Stop

    with pytest.raises(InputError, match="listen must let the untouched model be measured"):
        eq.optimize("digits", time=30, store=tmp_path / "study", listen=listen)
    assert not (tmp_path / "study").exists()
