"""The queue and the thread that runs: nobody's answer is another's, none is lost, and what would be late is turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ladders import ladder

from equipoise.serve.engine import Answer, Engine, Turned


def row(value: float) -> Any:
    return np.full((1, 3), value, np.float32)


def within(engine: Engine, use: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        engine.start()
        try:
            return await use()
        finally:
            await engine.drain(5.0)

    return asyncio.run(run())


def test_many_at_once_share_runs_and_each_gets_its_own() -> None:
    made, (sums,) = ladder(0.01)
    engine = Engine(made, 5.0, 1000)

    async def use() -> list[Answer]:
        return list(await asyncio.gather(*(engine.answer(row(value)) for value in range(40))))

    answers = within(engine, use)
    assert [float(a.outputs[0, 0]) for a in answers] == [3.0 * value for value in range(40)]
    assert sum(sums.batches) == 40
    assert max(sums.batches) == 4
    assert not any(a.late for a in answers)


def test_requests_of_several_rows_stay_whole() -> None:
    made, _ = ladder(0.005)
    engine = Engine(made, 5.0, 1000)

    async def use() -> list[Answer]:
        return list(
            await asyncio.gather(*(engine.answer(np.repeat(row(v), n, 0)) for v, n in ((1, 3), (2, 1), (3, 2), (4, 6))))
        )

    answers = within(engine, use)
    assert [a.outputs[:, 0].tolist() for a in answers] == [[3.0] * 3, [6.0], [9.0] * 2, [12.0] * 6]


def test_sequences_of_different_lengths_are_run_apart() -> None:
    made, (sums,) = ladder(0.01)
    engine = Engine(made, 60.0, 1000)

    async def use() -> list[Answer]:
        asked = [np.ones((1, length), np.float32) for length in (3, 3, 5, 5, 5, 3)]
        return list(await asyncio.gather(*(engine.answer(each) for each in asked)))

    assert [float(a.outputs[0, 0]) for a in within(engine, use)] == [3, 3, 5, 5, 5, 3]
    assert sum(sums.batches) == 6


def test_a_fault_of_the_dispatcher_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = ladder(0.01)
    told: list[str] = []
    engine = Engine(made, 60.0, 1000, told=told.append)

    async def use() -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(engine.dispatcher, "turn", None)
            broken = await asyncio.wait_for(asyncio.gather(engine.answer(row(1)), return_exceptions=True), 30)
        return [*broken, await engine.answer(row(2))]

    found = within(engine, use)
    assert isinstance(found[0], TypeError)
    assert float(found[1].outputs[0, 0]) == 6.0
    assert "1 requests failed" in told[0]


def test_a_quick_rung_answers_those_in_a_hurry() -> None:
    made, _ = ladder(1.0, 0.002)
    engine = Engine(made, 30.0, 1000)

    async def use() -> tuple[Answer, Answer]:
        return await engine.answer(row(1)), await engine.answer(row(1), within_s=0.5)

    slow, quick = within(engine, use)
    assert (slow.rung.name, quick.rung.name) == ("rung0", "rung1")
    assert (slow.outputs[0, 1], quick.outputs[0, 1]) == (0.0, 1.0)


def test_what_would_be_late_is_turned_away_at_once() -> None:
    made, _ = ladder(0.02)
    engine = Engine(made, 0.1, 1000)

    async def use() -> list[Any]:
        return list(await asyncio.gather(*(engine.answer(row(v)) for v in range(200)), return_exceptions=True))

    found = within(engine, use)
    turned = [each for each in found if isinstance(each, Turned)]
    assert len(turned) > 100
    assert all(each.after_s > 0 for each in turned)
    answered = [each for each in found if isinstance(each, Answer)]
    assert len(answered) + len(turned) == 200
    assert len(answered) >= 4


def test_a_rung_that_breaks_is_set_aside_and_its_requests_go_to_the_next() -> None:
    made, (best, _) = ladder(0.005, 0.005)
    told: list[str] = []
    engine = Engine(made, 5.0, 1000, told=told.append)

    async def use() -> list[Answer]:
        best.fails = True
        return list(await asyncio.gather(*(engine.answer(row(v)) for v in range(10))))

    answers = within(engine, use)
    assert [float(a.outputs[0, 0]) for a in answers] == [3.0 * v for v in range(10)]
    assert {a.rung.name for a in answers} == {"rung1"}
    assert len(told) == 1
    assert "rung0 is set aside: RuntimeError: it broke" in told[0]


def test_where_the_last_rung_breaks_nobody_waits_for_ever() -> None:
    made, (only,) = ladder(0.001)
    engine = Engine(made, 60.0, 1000)

    async def use() -> tuple[list[Any], list[Any]]:
        only.fails = True
        asked = asyncio.gather(*(engine.answer(row(v)) for v in range(10)), return_exceptions=True)
        found = list(await asyncio.wait_for(asked, 30))
        return found, list(await asyncio.gather(engine.answer(row(1)), return_exceptions=True))

    found, after = within(engine, use)
    assert {type(each) for each in found} == {RuntimeError}
    assert isinstance(after[0], Turned)
    assert "every rung is set aside" in str(after[0])


def test_a_request_that_breaks_a_sound_rung_fails_alone() -> None:
    made, _ = ladder(0.005)
    engine = Engine(made, 5.0, 1000)

    async def use() -> list[Any]:
        return list(await asyncio.gather(*(engine.answer(row(v)) for v in (1, -100, 2, 3)), return_exceptions=True))

    found = within(engine, use)
    assert isinstance(found[1], RuntimeError)
    assert [float(found[i].outputs[0, 0]) for i in (0, 2, 3)] == [3.0, 6.0, 9.0]
    assert engine.dispatcher.able == [0]


def test_at_the_end_what_was_taken_is_answered_and_nothing_more_is_taken() -> None:
    made, _ = ladder(0.02)
    engine = Engine(made, 5.0, 1000)

    async def run() -> tuple[list[Answer], bool, Any]:
        engine.start()
        tasks = [asyncio.ensure_future(engine.answer(row(v))) for v in range(12)]
        await asyncio.sleep(0.01)
        drained = await engine.drain(5.0)
        late = await asyncio.gather(engine.answer(row(1)), return_exceptions=True)
        return list(await asyncio.gather(*tasks)), drained, late[0]

    answers, drained, late = asyncio.run(run())
    assert drained
    assert [float(a.outputs[0, 0]) for a in answers] == [3.0 * v for v in range(12)]
    assert isinstance(late, Turned)


def test_whoever_hangs_up_is_not_run_for() -> None:
    made, (sums,) = ladder(0.001)
    engine = Engine(made, 60.0, 1000)

    async def use() -> None:
        sums.open.clear()
        first = asyncio.ensure_future(engine.answer(row(1)))
        await asyncio.sleep(0.05)
        rest = [asyncio.ensure_future(engine.answer(row(v))) for v in range(8)]
        await asyncio.sleep(0.05)
        for task in rest:
            task.cancel()
        sums.open.set()
        await first

    within(engine, use)
    assert sum(sums.batches) == 1


def test_a_place_is_kept_while_the_inputs_are_on_their_way() -> None:
    made, _ = ladder(0.2, batches=(1,))
    engine = Engine(made, 0.5, 1000)

    async def use() -> tuple[Answer, Answer]:
        first, second = engine.admit(1), engine.admit(1)
        with pytest.raises(Turned, match="would be answered"):
            engine.admit(1)
        engine.leave(second)  # whoever hung up
        second = engine.admit(1)
        engine.admit(1, within_s=9.0)
        return tuple(await asyncio.gather(engine.run(first, row(1)), engine.run(second, row(2))))  # type: ignore[return-value]

    assert [float(a.outputs[0, 0]) for a in within(engine, use)] == [3.0, 6.0]


def test_inputs_that_took_all_their_time_keep_no_place_and_begin_anew() -> None:
    now = 0.0
    made, _ = ladder(0.01, batches=(1,))
    engine = Engine(made, 0.05, 2, clock=lambda: now)

    async def use() -> None:
        nonlocal now
        slow = [engine.admit(1), engine.admit(1)]
        with pytest.raises(Turned):
            engine.admit(1)
        now = 7.0  # a slow line
        assert not (await engine.run(slow[0], row(1))).late
        engine.admit(1), engine.admit(1)
        with pytest.raises(Turned, match="and has 4"):
            await engine.run(slow[1], row(1))

    within(engine, use)


def test_what_an_answer_takes_to_the_line_is_left_to_those_who_come() -> None:
    now = 0.0
    made, _ = ladder(0.01, batches=(1,))
    engine = Engine(made, 0.05, 1000, clock=lambda: now)

    async def use() -> tuple[float, float, float]:
        nonlocal now
        given = [engine.admit(1)]
        now = 1.0
        for _ in range(50):
            engine.sent(Answer(np.zeros((1, 2)), made.rungs[0], 0.0, 0.0, late=False, at=now - 0.008))
        for within_s in (None, 0.02):
            given.append(engine.admit(1, within_s=within_s))
            engine.leave(given[-1])
        first, later, hurried = (each.deadline - each.came for each in given)
        return first, later, hurried

    first, later, hurried = within(engine, use)
    assert 0.049 < first < 0.05
    assert later == pytest.approx(0.042, abs=0.001)
    assert hurried == pytest.approx(0.016)  # a fifth of its time at most


def test_a_place_is_worth_nothing_once_the_server_is_about_to_stop() -> None:
    made, _ = ladder(0.01)
    engine = Engine(made, 5.0, 1000)

    async def use() -> None:
        coming = engine.admit(1)
        await engine.drain(5.0)
        with pytest.raises(Turned, match="about to stop"):
            await engine.run(coming, row(1))

    within(engine, use)


@pytest.mark.parametrize("rows", [1, 5])
def test_no_more_wait_than_may(rows: int) -> None:
    made, _ = ladder(0.05)
    engine = Engine(made, 100.0, 10)

    async def use() -> list[Any]:
        asked = [np.repeat(row(v), rows, 0) for v in range(30)]
        return list(await asyncio.gather(*(engine.answer(each) for each in asked), return_exceptions=True))

    found = within(engine, use)
    assert sum(isinstance(each, Turned) for each in found) >= 30 - 11 / rows - 2


def test_a_rung_that_is_asked_for_answers_alone_and_in_batches_of_its_own() -> None:
    made, (best, quick) = ladder(0.01, 0.002)
    engine = Engine(made, 60.0, 1000)

    async def use() -> list[Answer]:
        pins = [None, "rung1", "rung1", "rung0", None, "rung1"]
        return list(await asyncio.gather(*(engine.answer(row(v), rung=pin) for v, pin in enumerate(pins))))

    answers = within(engine, use)
    assert [a.rung.name for a in answers] == ["rung0", "rung1", "rung1", "rung0", "rung0", "rung1"]
    assert [float(a.outputs[0, 0]) for a in answers] == [3.0 * v for v in range(6)]
    assert quick.batches == [2, 1]
    assert sum(best.batches) == 3


def test_a_rung_that_is_asked_for_keeps_its_deadlines_too() -> None:
    made, _ = ladder(0.1, 0.001)
    engine = Engine(made, 30.0, 1000)

    async def use() -> list[Any]:
        asked = [engine.answer(row(v), within_s=0.25, rung="rung0") for v in range(10)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    found = within(engine, use)
    assert sum(isinstance(each, Turned) for each in found) >= 2
    assert {a.rung.name for a in found if isinstance(a, Answer)} == {"rung0"}


def test_where_the_rung_that_is_asked_for_breaks_the_others_are_answered() -> None:
    made, (best, _) = ladder(0.005, 0.005)
    engine = Engine(made, 30.0, 1000)

    async def use() -> tuple[list[Any], list[Any]]:
        best.fails = True
        pins = ["rung0", "rung0", "rung1", None]
        asked = asyncio.gather(*(engine.answer(row(1), rung=pin) for pin in pins), return_exceptions=True)
        found = list(await asyncio.wait_for(asked, 30))
        return found, list(await asyncio.gather(engine.answer(row(1), rung="rung0"), return_exceptions=True))

    found, after = within(engine, use)
    assert [type(each) for each in found] == [RuntimeError, RuntimeError, Answer, Answer]
    assert isinstance(after[0], Turned)
    assert "rung0 is set aside" in str(after[0])


def test_a_server_that_is_idle_tries_again_what_it_thinks_too_slow() -> None:
    made, _ = ladder(0.001)
    engine = Engine(made, 0.1, 1000)

    async def use() -> Answer:
        for _ in range(30):  # a busy machine, a moment ago
            for cost in engine.dispatcher.costs:
                for batch in cost.usual:
                    cost.learn(batch, 10.0, engine.clock())
        assert engine.dispatcher.wait({None: 1}) > engine.slo_s
        return await engine.answer(row(1.0))

    assert not within(engine, use).late
