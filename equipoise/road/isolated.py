"""The executor of child processes: a candidate is made, trained and scored in a process of its own.

One that segfaults, hangs, eats the memory or calls ``os._exit`` takes that process down and nothing else: it ends as a failed
trial with its reason, the next one gets a fresh process, and the search goes on. What is timed is timed by the parent, alone.
What a child starts is stopped with it: it leads a group of processes, which also keeps the terminal's Ctrl-C from it.

Parent and child speak JSON, a line each, over the child's standard streams; what else the child prints goes to its stderr. The
child loads the workload by its name, or from a file that the parent wrote for it into a folder of this user's alone.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from equipoise import __version__, workloads
from equipoise.built_in import trained_on_loading
from equipoise.compress.trace import Watched
from equipoise.errors import InputError, StoreError, missing_extra, words_of
from equipoise.records import as_data
from equipoise.road.answers import Answers, Died
from equipoise.road.bench import Workbench
from equipoise.road.facts import Facts, facts_from
from equipoise.road.jobs import Job
from equipoise.road.trials import Tell, Trials
from equipoise.runtimes import parse_targets
from equipoise.runtimes.cpu import SHARE, cores
from equipoise.study.files import Files
from equipoise.study.store import files_of
from equipoise.units import show
from equipoise.workloads import Workload
from equipoise.workloads.weights import packed

PATIENCE_S, GENEROUS = 60.0, 10.0
"""A job is given at least so long, and so many times what was expected of it; then its process is stopped."""
PREPARE_S = 1800.0
"""The same for loading and preparing the workload."""
MEMORY_SHARE = 0.8
"""Share of the memory that is free at the start which a child may take."""
LOOK_S = 0.2
"""Seconds between looks at the child's memory."""
COUNT_S = 2.0
"""Seconds between counts of its processes, which take a look at every process of the machine."""
MOST_PROCESSES = 200
"""Processes that a child may have at once: one that starts more without end is stopped before the machine is full of them."""
KEPT = 10_000
"""Bytes that are kept of what a child prints, the last ones: it may print without end."""
FATAL = "a process that tried it did not live"
"""Why a change is left alone that took a process down while the workload was prepared."""
WORDS = 400
"""Characters of a dead child's last words that are told."""


@dataclass
class Child(Answers):
    """A process that does jobs, started when it is first needed and again after each death.

    Attributes:
        recipe: What the process is told of the workload, as JSON data.
        limit_bytes: Resident memory beyond which it is stopped.
    """

    recipe: Mapping[str, Any]
    limit_bytes: float
    tell: Tell
    _process: subprocess.Popen[bytes] | None = None
    _printed: bytearray = field(default_factory=bytearray)
    _reading: threading.Thread | None = None
    _facts: Facts | None = None
    _held: bytearray = field(default_factory=bytearray)
    _trying: list[str] = field(default_factory=list)
    _fatal: list[list[str]] = field(default_factory=list)

    def facts(self) -> Facts:
        """Return what can be changed in the model, as the child found it."""
        if self._facts is None:
            self._ready()
        assert self._facts is not None, "a child that is ready has said what it found"
        return self._facts

    def begin(self, jobs: Sequence[Job]) -> None:
        """One job at a time is done by a child."""

    def answer(self, job: Job) -> Mapping[str, Any]:
        """See `Answers.answer`."""
        try:
            return self._ask(job)
        except Died as error:
            return {"died": str(error)}

    def stop(self) -> None:
        """Kill the process, from another thread: the job that it does ends as one that it did not live through."""
        if process := self._process:
            _kill(process)

    def close(self) -> None:
        """Stop the process and what it started."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # an order that the dead never read
                        pipe.close()
        self._process = None
        self._held.clear()

    def _ask(self, job: Job) -> dict[str, Any]:
        process = self._ready()
        order = {"kind": job.kind, "key": job.key, "args": dict(job.args)}
        self._write(process, order)
        return self._answer(process, max(PATIENCE_S, GENEROUS * job.expected_s))

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return a process that has prepared the workload; what takes it down meanwhile is left whole from then on."""
        while self._process is None or self._process.poll() is not None:
            self.close()
            try:
                self._prepare()
            except Died as error:
                if not self._trying or self._trying in self._fatal:
                    raise Died(f"{error}, while the workload was loaded and prepared in it") from None
                self._fatal.append(self._trying)
                told = ", ".join(self._trying[:3]) + (" and more" if len(self._trying) > 3 else "")
                self.tell("prepare", f"WARNING: {error}, as {told} was tried on a changed copy; prepare again without", 0.0)
        return self._process

    def _prepare(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "equipoise.road.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), SHARE: str(self.recipe["cores"])},
            start_new_session=True,
        )
        self._printed = bytearray()
        self._reading = threading.Thread(target=_heard, args=(self._process.stderr, self._printed), daemon=True)
        self._reading.start()
        self._trying = []
        self._write(self._process, {**self.recipe, "fatal": self._fatal})
        answer = self._answer(self._process, PREPARE_S)
        if "failed" in answer:
            raise InputError(f"the workload must load in a process of its own; there it failed: {answer['failed']}")
        self._facts = facts_from(answer["facts"])

    def _write(self, process: subprocess.Popen[bytes], data: Mapping[str, Any]) -> None:
        assert process.stdin is not None, "it was started with a pipe"
        try:
            process.stdin.write(json.dumps(data).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._dead(process) from None

    def _answer(self, process: subprocess.Popen[bytes], patience_s: float) -> dict[str, Any]:
        """Return the child's answer; pass on what it tells meanwhile, and stop it where it oversteps its limits."""
        assert process.stdout is not None, "it was started with a pipe"
        began = count = time.monotonic()
        until = began + patience_s
        while True:
            line = self._line(process.stdout)
            dead = line is None and process.poll() is not None
            if dead:
                line = self._line(process.stdout)  # what it said before it ended
            if line is not None:
                said: dict[str, Any] = json.loads(line)
                if "trying" in said:
                    self._trying = said["trying"]
                    until = time.monotonic() + PATIENCE_S if self._trying else began + patience_s
                elif "tell" in said:
                    self.tell(*said["tell"])
                else:
                    return said
                continue
            if dead:
                raise self._dead(process)
            if _resident(process.pid) > self.limit_bytes:
                self.close()
                raise Died(f"its process took more than {show(self.limit_bytes, 'B')} of memory and was stopped")
            if time.monotonic() > count + COUNT_S:
                count = time.monotonic()
                if _group(process.pid) > MOST_PROCESSES:
                    self.close()
                    raise Died(f"its process had started more than {MOST_PROCESSES} others and was stopped")
            if time.monotonic() > until:
                self.close()
                patience_s = PATIENCE_S if self._trying else patience_s
                raise Died(f"its process did not end within {show(patience_s, 's')} and was stopped")

    def _line(self, stream: IO[bytes]) -> bytes | None:
        """Return the next whole line that arrives within a moment, or None."""
        while b"\n" not in self._held and _waiting(stream, LOOK_S):
            more = os.read(stream.fileno(), 1 << 20)
            if not more:  # the end of the stream can always be read
                break
            self._held += more
        line, found, rest = bytes(self._held).partition(b"\n")
        if not found:
            return None
        self._held[:] = rest
        return line

    def _dead(self, process: subprocess.Popen[bytes]) -> Died:
        """Say how the child ended."""
        code = process.wait()
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended itself with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as the system does where memory runs out"
        self.close()
        assert self._reading is not None, "it was started with the process"
        self._reading.join(1.0)  # to the end of the stream, unless what it started left its group and still holds it
        lines = self._printed.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:WORDS]}" if lines and code >= 0 else ""
        return Died(f"its process {how}{last}")


@contextmanager
def isolated(bench: Workbench, files: Files, *, spec: str, seed: int, tell: Tell, count: int = 1) -> Iterator[list[Child]]:
    """Give children that make and score the plans of `bench`.

    Args:
        spec: How the command line names the workload; empty for an object, which is then written to a file.
        count: How many; of several each gets its share of the cores and of the memory.
    Raises:
        InputError: The workload has no name, and cannot be written to a file either.
    """
    with children(recipe_of(bench, spec=spec, seed=seed), held_of(bench, spec), files.path, tell, count) as made:
        yield made


def recipe_of(bench: Workbench, *, spec: str, seed: int) -> dict[str, Any]:
    """Return what a process is told of a workbench, beside what `held_of` gives it."""
    return {
        "spec": spec,
        "fingerprint": bench.work.fingerprint,
        "targets": ",".join(map(str, bench.targets)),
        "seed": seed,
        "student": bench.student,
        "version": __version__,
    }


def held_of(bench: Workbench, spec: str) -> bytes:
    """Return the weights of a workload that has a name, else all of it.

    Raises:
        InputError: It cannot be written.
    """
    return packed(bench.work.model) if spec else _pickled(bench)


@contextmanager
def children(recipe: Mapping[str, Any], held: bytes, folder: Path, tell: Tell, count: int = 1) -> Iterator[list[Child]]:
    """Give children of a recipe, which read and write the files of the study in `folder`."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="equipoise-isolated-") as place:
        file = Path(place) / "held"
        file.write_bytes(held)
        share = max(1, count)
        threads = max(1, torch.get_num_threads() // share)
        whole = {**recipe, "store": str(folder.absolute()), "held": str(file), "path": sys.path, "threads": threads}
        whole["cores"] = max(1, cores() // share)
        most = MEMORY_SHARE * psutil.virtual_memory().available / share
        made = [Child(whole, most, tell) for _ in range(count)]
        try:
            yield made
        finally:
            for child in made:
                child.close()


def _pickled(bench: Workbench) -> bytes:
    """The workload as bytes; functions and classes of the user's own travel with it."""
    try:
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise missing_extra("cloudpickle", "isolate") from error
    try:
        found: bytes = cloudpickle.dumps(bench.work)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"work must be something that can be handed to another process (isolate); got {bench.work.name}: {reason}. "
            "Leave isolate out, or keep open files, locks and streams out of the model, its data and its metric."
        ) from error
    return found


def _waiting(stream: IO[bytes], seconds: float) -> bool:
    return bool(select.select([stream], [], [], seconds)[0])


def _heard(stream: IO[bytes], last: bytearray) -> None:
    """Read a stream to its end and keep the last of it."""
    with stream:
        while more := os.read(stream.fileno(), 1 << 16):
            last += more
            del last[:-KEPT]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, those too that outlived it."""
    with suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)


def _group(leader: int) -> int:
    """Return how many processes there are in the group of one, itself included."""
    import psutil

    count = 0
    for pid in psutil.pids():
        with suppress(OSError):
            count += os.getpgid(pid) == leader
    return count


def _resident(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Prepare the workload, then do one job for each line of `orders`: the child's side; it ends with its parent."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        for line in orders:
            lines.put(line)
        if os.getpgrp() == os.getpid():  # the parent is gone: nobody waits for what is being done, here or in what it started
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    def say(data: Mapping[str, Any]) -> None:
        answers.write(json.dumps(data).encode() + b"\n")
        answers.flush()

    threading.Thread(target=read, daemon=True).start()
    recipe = json.loads(lines.get())

    @contextmanager
    def watched(names: frozenset[str]) -> Iterator[str]:
        """Tell what is about to be tried, and that it was lived through; what contains a fatal change is not tried."""
        if any(names.issuperset(fatal) for fatal in recipe["fatal"]):
            yield FATAL
            return
        say({"trying": sorted(names)})
        try:
            yield ""
        finally:
            say({"trying": []})

    try:
        trials = _trials(recipe, lambda *told: say({"tell": told}), watched)
        say({"facts": as_data(trials.facts())})
    except Exception as error:  # noqa: BLE001 - whatever keeps the workload from being prepared is told to the parent
        say({"failed": f"{type(error).__name__}: {words_of(error)}"})
        return
    while True:
        order = json.loads(lines.get())
        job = Job(order["kind"], order["key"], order["args"])
        with warnings.catch_warnings():  # no job may decide for the next one which of them are errors
            if job.kind == "table":
                answer: dict[str, Any] = {"entry": trials.entry(job)}
            elif job.kind == "guess":
                answer = {"estimates": trials.estimates(job)}
            else:
                answer = _scored(trials, job)
        say(answer)


def _scored(trials: Trials, job: Job) -> dict[str, Any]:
    import traceback

    try:
        return {"evaluation": as_data(trials.scored(job))}
    except KeyboardInterrupt:
        raise
    except StoreError as error:
        return {"store": str(error)}
    except BaseException:  # noqa: BLE001 - a failed trial, whatever the user's code raised; the parent records it
        return {"failed": traceback.format_exc(limit=-6)}


def _trials(recipe: Mapping[str, Any], tell: Tell, watched: Watched) -> Trials:
    sys.path[:] = recipe["path"]
    torch.set_num_threads(recipe["threads"])
    held, spec = Path(recipe["held"]).read_bytes(), recipe["spec"]
    work = _by_name(spec, held) if spec else pickle.loads(held)
    if work.fingerprint != recipe["fingerprint"]:
        raise InputError(f"workload {spec or work.name} must be the same each time that it is loaded; it has changed since")
    files = files_of(Path(recipe["store"]))
    bench = Workbench(work, parse_targets(recipe["targets"]), files.blob, watched=watched, student=recipe["student"])
    return Trials(bench, files, int(recipe["seed"]), tell)


def _by_name(spec: str, weights: bytes) -> Workload:
    """Load a workload by its name; one that is trained on loading gets the weights that the parent has."""
    from safetensors.torch import load as tensors

    return workloads.load(spec, state=tensors(weights) if trained_on_loading(spec) else None)


if __name__ == "__main__":
    channel, told = os.fdopen(os.dup(sys.stdout.fileno()), "wb"), os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the model or a library prints is no answer
    nothing = os.open(os.devnull, os.O_RDONLY)  # nor is an order its to read; and a fork closes stdin, for which it would wait
    os.dup2(nothing, sys.stdin.fileno())
    serve(told, channel)
