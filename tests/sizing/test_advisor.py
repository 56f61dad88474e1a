"""The scale advisor as its user runs it: on real digits, resumed, refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK
from equipoise.sizing.advice import Advice
from equipoise.study.store import Store

COMMAND = [sys.executable, "-m", "equipoise", "scale"]
LIMITS = ["--limits", "train<=20s", "--quiet"]


def advise(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words, "--store", str(store)], capture_output=True, text=True, timeout=1800)


def enough(store: Path, *words: str, more: float = 1.25) -> list[str]:
    """Return the command with the time that it names itself, refused for too little, as enough on this machine, `more` times.

    What it timed to tell so is in the record, so that the next call has not to time it again and plans by it.
    """
    refused = advise(store, "mlp", "digits", *words, "--time", "6s")
    assert refused.returncode == EXIT_BAD_INPUT, refused.stderr
    found = re.search(r"time must be at least ([\d.]+) (s|min):", refused.stderr)
    assert found, refused.stderr
    return ["mlp", "digits", *words, "--time", f"{more * float(found[1]):g}{found[2]}"]


@dataclass(frozen=True)
class Finished:
    store: Path
    words: list[str]
    code: int
    found: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = tmp_path_factory.mktemp("advice") / "study"
    words = enough(store, *LIMITS)
    done = advise(store, *words, "--json")
    assert done.returncode in (EXIT_OK, EXIT_FAILED), done.stderr[-3000:]
    return Finished(store, words, done.returncode, json.loads(done.stdout))


@pytest.mark.slow
def test_a_dozen_annealed_runs_and_a_law_behind_the_answer(finished: Finished) -> None:
    found = finished.found
    assert 12 <= len(found["runs"]) <= 16
    assert all(run["annealed"] for run in found["runs"])
    assert len({run["params"] for run in found["runs"]}) >= 3
    assert math.isfinite(found["law"]["E"])
    assert (finished.store / "report.html").is_file()
    versions = [(str(row["scale"]), row["label"]) for row in found["candidates"]]
    assert len(versions) <= len(set(versions)) + 1  # one of a kind, and the answer
    for row in found["candidates"]:
        assert row["latency_s"]["provenance"] in ("measured", "estimated")
        assert row["loss"]["low"] <= row["loss"]["value"] <= row["loss"]["high"]
        assert row["train_cost"]["provenance"] == "unavailable"  # no price was given
        assert not any(what.startswith("train") for what in row["breaks"])  # each is trained for just so long


@pytest.mark.slow
def test_the_answer_is_what_the_law_and_the_rules_say(finished: Finished) -> None:
    """Which of the two it is depends on what the runs showed; that it follows from them does not."""
    answer, rows = finished.found["answer"], finished.found["candidates"]
    least = min(row["loss"]["value"] for row in rows if not row["breaks"])
    if answer["status"] == "recommended":
        assert finished.code == EXIT_OK
        chosen = answer["recommended"]
        assert chosen["breaks"] == []
        assert chosen["regret"]["value"] <= 0.005
        assert chosen["loss"]["value"] <= 1.0051 * least
        assert answer["add_runs"] == []
        assert "cost of serving" in answer["reason"]
    else:
        assert (finished.code, answer["status"], answer["recommended"]) == (EXIT_FAILED, "refused", None)
        assert answer["binding"] == ""  # trained for as long as the limit allows, every size keeps it
        assert re.search(r"holds to 4×|spans more than 8×", answer["reason"])  # there are runs enough for the third reason


@pytest.mark.slow
def test_the_same_command_again_runs_nothing(finished: Finished) -> None:
    store = finished.store
    with Store.open(store, create=False, readonly=True) as opened:
        before = len(opened.all("run")), opened.spent()
    again = advise(store, *finished.words, "--json")
    with Store.open(store, create=False, readonly=True) as opened:
        assert (len(opened.all("run")), opened.spent()) == before
    assert json.loads(again.stdout)["answer"] == finished.found["answer"]


@pytest.mark.slow
def test_other_limits_are_answered_from_the_same_runs(finished: Finished) -> None:
    store = finished.store
    with Store.open(store, create=False, readonly=True) as opened:
        before = len(opened.all("run"))
    words = [w if w != "train<=20s" else "train<=20s, size<=100B" for w in finished.words]
    refused = advise(store, *words, "--json")
    assert refused.returncode == EXIT_FAILED
    answer = json.loads(refused.stdout)["answer"]
    assert answer["status"] == "refused"
    assert answer["binding"] == "size_bytes"
    assert answer["nearest"]
    again = advise(store, *finished.words, "--json")  # and the first question once more
    assert json.loads(again.stdout)["answer"] == finished.found["answer"]
    with Store.open(store, create=False, readonly=True) as opened:
        assert len(opened.all("run")) == before


@pytest.mark.slow
def test_the_record_reads_without_torch(finished: Finished) -> None:
    store, found = finished.store, finished.found
    code = (
        "import sys; from equipoise.sizing.advice import Advice; "
        f"a = Advice.load({str(store)!r}); print(len(a.fit.runs), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(found["runs"])), "False"]
    assert Advice.load(store).header["family"] == "mlp"


@pytest.mark.slow
def test_a_killed_advisor_goes_on_and_doubles_nothing(tmp_path) -> None:
    store = tmp_path / "study"
    words = [*enough(store, "--no-shape", "--no-compress"), "--store", str(store)]
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "] train" in line:
            break
    time.sleep(3.0)  # into the next run
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with Store.open(store, create=False, readonly=True) as opened:
        seen = [row["run"] for row in opened.all("run")]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=1800)
    assert done.returncode in (EXIT_OK, EXIT_FAILED), done.stderr[-3000:]
    with Store.open(store, create=False, readonly=True) as opened:
        rows = [row["run"] for row in opened.all("run")]
    assert all(row in rows for row in seen)
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mlp"], "FAMILY TASK"),
        (["mpl", "digits"], "mlp"),
        (["mlp", "digitz"], "digits"),
        (["mlp", "digits", "--limits", "trian<=2h"], "train"),
        (["mlp", "digits", "--limits", "cost<=5$"], "--price-per-hour"),
        (["mlp", "digits", "--time", "soon"], "--time"),
        (["mlp", "digits", "--recipe", "schedule=cosine"], "wsd"),
        (["gpt", "digits"], "gpt"),
        (["fit", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_run(tmp_path, words, told) -> None:
    done = advise(tmp_path / "study", *words)
    assert done.returncode == EXIT_BAD_INPUT
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study" / "study.db").exists() or "gpt" in words


@pytest.mark.slow
def test_a_time_in_which_no_three_sizes_can_be_trained_is_refused_for_what_it_is(tmp_path) -> None:
    done = advise(tmp_path / "study", "cnn", "digits", "--time", "4s")
    assert done.returncode == EXIT_BAD_INPUT
    assert "time must be" in done.stderr
    assert "got '4 s'" in done.stderr
    assert "widths" not in done.stderr  # more sizes would not help
    assert re.search(r"at least [\d.]+ (s|min)", done.stderr)  # and how much would be enough


@pytest.mark.slow
def test_too_little_time_is_refused_with_a_time_that_is_enough(tmp_path) -> None:
    """Enough by the record that the refusal leaves, whatever else the machine does meanwhile."""
    words = [*enough(tmp_path / "study", "--no-shape", "--no-compress", more=1.0), "--store", str(tmp_path / "study")]
    again = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    said = ""
    for line in again.stderr:  # no need to wait for the end: once a run begins, the plan stands
        said += line
        if "] train" in line:
            break
    again.kill()
    again.wait()
    again.stderr.close()
    with Store.open(tmp_path / "study", create=False, readonly=True) as opened:
        assert [len(row["runs"]) >= 12 for row in opened.all("plan")] == [True], said


@pytest.mark.slow
def test_fit_of_a_csv_tells_the_law_and_refuses_to_reach_too_far(tmp_path) -> None:
    rows = ["params,samples,loss"]
    for n in (1e5, 2e5, 4e5, 8e5):
        for d in (1e6, 3e6, 9e6):
            rows.append(f"{n},{d},{1.5 + 80 / n**0.4 + 300 / d**0.4}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows))
    near = subprocess.run([*COMMAND, "fit", str(path), "--flops", "1e14"], capture_output=True, text=True)
    assert near.returncode == EXIT_OK, near.stderr
    assert "loss = " in near.stdout
    assert "best for 1e+14" in near.stdout
    far = subprocess.run([*COMMAND, "fit", str(path), "--flops", "1e20"], capture_output=True, text=True)
    assert far.returncode == EXIT_FAILED
    assert "REFUSED" in far.stdout
    told = subprocess.run([*COMMAND, "fit", str(path), "--flops", "1e20", "--json"], capture_output=True, text=True)
    assert (told.returncode, "largest run" in json.loads(told.stdout)["refused"]) == (EXIT_FAILED, True)
