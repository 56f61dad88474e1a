"""A newer front under load: no request is lost, every answer is of a rung that stood there, and a bad one is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ladders import ladder

from equipoise.errors import EquipoiseError, InputError
from equipoise.serve.engine import Answer, Engine, Unknown
from equipoise.serve.ladder import Alone, Ladder
from equipoise.serve.reload import Reload, same


def renamed(made: Ladder, suffix: str) -> Ladder:
    return dataclasses.replace(made, rungs=tuple(_renamed(rung, suffix) for rung in made.rungs))


def _renamed(rung: Any, suffix: str) -> Any:
    new = dataclasses.replace(rung, name=rung.name + suffix)
    new.__dict__["session"] = rung.session
    return new


def row(value: float) -> Any:
    return np.full((1, 3), value, np.float32)


def under_load(engine: Engine, reload: Reload, *, pin: str | None = None) -> list[Any]:
    """Answer requests, and take over what is newer in the midst of them."""

    async def run() -> list[Any]:
        engine.start()
        tasks = []
        for number in range(200):
            tasks.append(asyncio.ensure_future(engine.answer(row(number), rung=pin)))
            if number == 100:
                reload.begin()
            await asyncio.sleep(0.005)
        found = list(await asyncio.gather(*tasks, return_exceptions=True))
        await engine.drain(5.0)
        return found

    return asyncio.run(run())


def test_a_newer_front_takes_over_and_no_request_is_lost() -> None:
    old, _ = ladder(0.002, 0.001)
    fresh, (best, *_) = ladder(0.001, 0.001, 0.001)
    newer, told, timed = renamed(fresh, "-new"), list[str](), list[float]()

    def read(alone: Alone) -> Ladder:
        timed.extend(alone(lambda: float(best.run(row(1))[0, 0]) / 1e6) for _ in range(3))
        return newer

    engine = Engine(old, 60.0, 1000)
    found = under_load(engine, Reload(engine, read, told.append))
    assert [float(a.outputs[0, 0]) for a in found] == [3.0 * number for number in range(200)]
    names = [a.rung.name for a in found]
    assert set(names) <= {*old.places, *newer.places}
    assert names[0] == "rung0"
    assert names[-1] == "rung0-new"
    assert names == sorted(names, key=lambda name: name.endswith("-new"))  # one after the other, never back
    assert timed == pytest.approx([3e-6] * 3)
    gone, lines = [f"{name} leaves: the newer front does not hold it" for name in old.places], newer.lines
    assert told == [*gone, *lines, "a newer front takes over: rung0-new, rung1-new, rung2-new"]
    assert "rung1-new: accuracy 89" in lines[1]


def test_a_source_that_is_as_it_was_changes_nothing_and_says_so() -> None:
    old, _ = ladder(0.001)
    told: list[str] = []
    engine = Engine(old, 60.0, 1000)
    found = under_load(engine, Reload(engine, lambda _: engine.latest, told.append))
    assert engine.ladder is old
    assert {a.rung.name for a in found} == {"rung0"}
    assert told == ["nothing newer: the source holds what it held"]


def test_who_waits_for_a_rung_that_goes_is_answered_by_it_and_later_ones_are_told() -> None:
    old, (slow,) = ladder(0.01)
    newer, told = renamed(ladder(0.001)[0], "-new"), list[str]()
    engine = Engine(old, 60.0, 1000)
    slow.open.clear()

    async def run() -> tuple[list[Any], list[Any]]:
        engine.start()
        waiting = [asyncio.ensure_future(engine.answer(row(v), rung="rung0")) for v in range(3)]
        await asyncio.sleep(0.05)
        engine.swap(newer)
        gone = await asyncio.gather(engine.answer(row(1), rung="rung0"), return_exceptions=True)
        slow.open.set()
        answers = list(await asyncio.gather(*waiting))
        after = await engine.answer(row(1), rung="rung0-new")
        await engine.drain(5.0)
        return [*answers, after], list(gone)

    answers, gone = asyncio.run(run())
    assert [a.rung.name for a in answers] == ["rung0"] * 3 + ["rung0-new"]
    assert isinstance(gone[0], Unknown)
    assert not told


def _fails(_: Alone) -> Ladder:
    raise EquipoiseError("no rung can serve")


def _damaged(_: Alone) -> Ladder:
    raise ValueError("not a file")


def _other(_: Alone) -> Ladder:
    return dataclasses.replace(ladder(0.001)[0], metric="recall")


@pytest.mark.parametrize(("read", "why"), [(_fails, "no rung"), (_damaged, "not a file"), (_other, "its metric was accuracy")])
def test_a_newer_front_that_is_no_good_is_refused_and_the_old_one_goes_on(read: Callable[[Alone], Ladder], why: str) -> None:
    old, _ = ladder(0.001)
    told: list[str] = []
    engine = Engine(old, 60.0, 1000)
    found = under_load(engine, Reload(engine, read, told.append))
    assert {a.rung.name for a in found if isinstance(a, Answer)} == {"rung0"}
    assert len(found) == 200
    assert len(told) == 1
    assert "the old one goes on" in told[0]
    assert why in told[0]


@pytest.mark.parametrize("idle", [True, False])
def test_at_the_end_a_reload_is_given_up_at_the_next_rung_and_what_was_taken_is_answered(idle: bool) -> None:
    old, (slow,) = ladder(0.001)
    told, tried, ending = list[str](), list[int](), threading.Event()

    def read(alone: Alone) -> Ladder:
        for rung in range(5):
            try:
                tried.append(rung)
                assert ending.wait(30)
                alone(lambda: float(slow.run(row(1))[0, 0]) / 1e6)
            except Exception as error:  # noqa: BLE001 - as the ladder does: another rung may serve
                told.append(f"left out: {error}")
        raise EquipoiseError("no rung can serve")

    engine = Engine(old, 60.0, 1000)
    reload = Reload(engine, read, told.append)

    async def run() -> list[Any]:
        engine.start()
        slow.open.clear()
        tasks = [] if idle else [asyncio.ensure_future(engine.answer(row(v))) for v in range(3)]
        reload.begin()
        await asyncio.sleep(0.05)
        end = asyncio.ensure_future(engine.drain(5.0))
        await asyncio.sleep(0.05)
        ending.set()
        slow.open.set()
        assert await end
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(run())
    under_way = [each for each in threading.enumerate() if each.name == "equipoise-reload"]
    assert not any(each.daemon for each in under_way)  # the interpreter waits for it
    for each in under_way:
        each.join(30)
    reload.begin()
    Reload(engine, lambda _: ladder(0.001)[0], told.append).do()  # ready only once the end had begun
    assert tried == [0]
    assert told == ["the newer front is given up: the server is about to stop"] * 2
    assert [float(a.outputs[0, 0]) for a in answers] == ([] if idle else [0.0, 3.0, 6.0])


def test_other_inputs_or_other_answers_are_told() -> None:
    old, _ = ladder(0.001)
    wider = tuple(dataclasses.replace(rung, probe=np.zeros((4, 5), np.float32)) for rung in old.rungs)
    same(old, ladder(0.5, 0.1)[0])
    with pytest.raises(InputError, match="what it takes was"):
        same(old, dataclasses.replace(old, rungs=wider))
    with pytest.raises(InputError, match="what it answers was"):
        same(old, dataclasses.replace(old, answer=(7,)))
