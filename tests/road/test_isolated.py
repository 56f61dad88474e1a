"""The executor of child processes: a candidate that takes its process down is a failed reading, and the next one is read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from dead_ends import MODULE

from equipoise import workloads
from equipoise.road import isolated as room
from equipoise.road import pool
from equipoise.road.bench import Workbench
from equipoise.road.jobs import Job
from equipoise.runtimes import parse_targets
from equipoise.study.store import Store

WAYS = {
    "ctypes.string_at(0)": "SIGSEGV",
    "os.abort()": "SIGABRT",
    "os.kill(os.getpid(), 9)": "SIGKILL, as the system does where memory runs out",
    "os._exit(3)": "exit code 3",
    "time.sleep(600)": "did not end within",
    "self.held = torch.ones(1 << 29); time.sleep(5)": "of memory",
}


@pytest.mark.slow
def test_a_candidate_that_takes_its_process_down_is_a_failed_reading_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "work.py"
    file.write_text(MODULE.format(width=8))
    spec = f"{file}:make"
    with Store.open(tmp_path / "store") as store:
        bench = Workbench(workloads.load(spec), parse_targets("onnxruntime"), store.blob)
        with room.isolated(bench, store.files, spec=spec, seed=0, tell=lambda *told: None) as (child,):
            (knob,) = (k.name for k in child.facts().space.knobs if k.kind == "width" and k.name.endswith("a"))
            child.limit_bytes = 1.5e9
            for ends, told in WAYS.items():
                file.with_suffix(".end").write_text(ends)
                monkeypatch.setattr(room, "PATIENCE_S", 8.0 if "sleep(600)" in ends else 300.0)
                bad = child.entry(Job("table", f"{knob}=8", {"knob": knob, "choice": 8, "samples": 64}))
                assert told in bad["error"]
                assert bad["loss"] is None
            assert child.entry(Job("table", f"{knob}=16", {"knob": knob, "choice": 16, "samples": 64}))["loss"] > 0


@pytest.mark.slow
def test_a_group_that_takes_the_preparation_down_is_left_whole_and_the_others_are_offered(tmp_path: Path) -> None:
    """Half the width is tried while all groups are proven at once: the one at fault is found by halving, over new processes."""
    file, said = tmp_path / "work.py", []
    file.write_text(MODULE.format(width=16))
    file.with_suffix(".end").write_text("os._exit(3)")
    spec = f"{file}:make"
    with Store.open(tmp_path / "store") as store:
        bench = Workbench(workloads.load(spec), parse_targets("onnxruntime"), store.blob)
        with room.isolated(bench, store.files, spec=spec, seed=0, tell=lambda *told: said.append(told[1])) as (child,):
            facts = child.facts()
    widths = {row.knob.name for row in facts.offered if row.knob.kind == "width"}
    assert widths == {"width.b"}
    assert facts.left_whole["a"] == room.FATAL
    assert 1 <= len([text for text in said if "exit code 3" in text]) <= 3


class Busy:
    """A child that notes when it works."""

    def __init__(self, name: str, done: list[tuple[str, str, float, float]]) -> None:
        self.name, self.done = name, done

    def facts(self) -> str:
        return "facts"

    def answer(self, job: Job) -> dict[str, Any]:
        began = time.monotonic()
        time.sleep(0.1)
        if job.key == "bad":
            raise ValueError("it broke")
        self.done.append((self.name, job.key, began, time.monotonic()))
        return {"entry": {"loss": job.args["loss"]}}


def test_children_work_at_once_and_nothing_runs_when_a_result_is_given() -> None:
    done: list[tuple[str, str, float, float]] = []
    made = pool.Pool([Busy("a", done), Busy("b", done)])  # type: ignore[list-item]
    jobs = [Job("table", str(number), {"loss": number}) for number in range(6)]
    made.begin([*jobs, Job("proposal", "0")])
    first = made.entry(jobs[0])
    assert len(done) == 6  # all of them
    assert [first["loss"], *(made.entry(job)["loss"] for job in jobs[1:])] == list(range(6))
    assert {name for name, *_ in done} == {"a", "b"}
    spans = {name: [(began, ended) for who, _, began, ended in done if who == name] for name in "ab"}
    assert any(a < d and c < b for a, b in spans["a"] for c, d in spans["b"])  # at once
    bad = Job("table", "bad", {"loss": 0})
    made.begin([bad, jobs[1]])
    with pytest.raises(ValueError, match="it broke"):
        made.entry(bad)
    assert made.entry(jobs[1])["loss"] == 1
    assert made.facts() == "facts"
