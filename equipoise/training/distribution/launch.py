"""Start the ranks of a run on this machine, and join them: what stands between a command and its `Distribution`."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
import torch.distributed as dist

from equipoise.errors import EXIT_FAILED, EquipoiseError, must_be, unknown
from equipoise.training.distribution.base import Distribution, OneProcess
from equipoise.training.distribution.ranks import LOST_TOUCH, Ranks, in_touch

KINDS = ("single", "ddp", "fsdp", "pipeline")
OFFLOADS = {"activations": ("single", "ddp", "fsdp"), "optimizer": ("single", "ddp"), "parameters": ("fsdp",)}
"""What can be kept in host memory, and in which kinds."""

_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
_LAUNCHER = "EQUIPOISE_LAUNCHER"
_GONE = b"equipoise: the launcher of this rank is gone, and so the rank ends\n"
_TORCHRUN = "torchrun --standalone --nproc-per-node 2 -m equipoise train ..., or by equipoise train --ranks 2."


def launch(command: Sequence[str], ranks: int, *, grace_s: float = 5.0) -> int:
    """Run `command` once per rank on this machine and return the exit code of the run.

    Each process finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its environment, as under ``torchrun``, and
    joins the others by `connect`. Rank 0 keeps this process's stdout and stderr; the others are silent. When a rank ends with
    an error, the others get `grace_s` seconds to notice, and are then ended; when this process itself dies, the ranks that have
    joined end within seconds.

    Args:
        command: The program and its arguments, for example ``[sys.executable, "train.py"]``.
        ranks: Processes to start, 1 or more.
        grace_s: Seconds; all ranks have ended within twice as many after the first failure.
    Returns:
        0, or the exit code of rank 0 when it ended with an error of its own.
    Raises:
        InputError: `ranks` is below 1.
        EquipoiseError: A rank was killed, or one other than rank 0 failed alone.
    """
    if ranks < 1:
        raise must_be("ranks", "at least 1", ranks, "Give the number of processes to start on this machine.")
    with tempfile.TemporaryDirectory(prefix="equipoise-ranks-") as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(ranks)]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            port = _free_port()
            for rank in range(ranks):
                workers.append(_start(command, rank, ranks, port, logs[rank]))
            _await(workers, math.inf, until_failed=True)
            _await(workers, grace_s)
            codes = [worker.poll() for worker in workers]
        finally:
            _end(workers, grace_s)
        return _verdict(codes, [log.read_text(errors="replace") if log.exists() else "" for log in logs])


def connect(
    kind: str = "single",
    *,
    offload: Sequence[str] = (),
    precision: str = "fp32",
    cuts: Sequence[str] = (),
    device: str | None = None,
    timeout_s: float = 45.0,
) -> Distribution:
    """Join the run that this process belongs to, and return how its ranks share the work.

    Ranks talk over NCCL on GPUs (one each) and gloo on CPUs. A rank that finds the others gone, or silent for `timeout_s`
    seconds, ends with one error; so does one whose launcher is gone.

    Args:
        kind: ``single`` (one process), ``ddp`` (each rank holds the model), ``fsdp`` (each holds a share of it) or ``pipeline``
            (each holds a run of its layers).
        offload: What to keep in host memory: ``activations``; ``optimizer`` (single and ddp: master weights and optimizer
            state); ``parameters`` (fsdp: weights, gradients and optimizer state; a block at a time visits the device, and one
            process that was not started as a rank will do).
        precision: In which an fsdp run sends and computes its blocks; the recipe's precision is the natural choice.
        cuts: Where a pipeline is cut: see `Pipeline`.
        device: ``cpu``, or None for this rank's GPU where there is one.
        timeout_s: Longest silence, in seconds; longer than anything that one rank does alone.
    Raises:
        InputError: An unknown name, a combination that does not exist, or a process that was not started as a rank.
        EquipoiseError: The other ranks did not come.
    """
    _check(kind, offload, precision)
    made: Distribution
    if kind == "single":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise must_be("kind", "ddp, fsdp or pipeline when several ranks run", kind, "Name how they share the work.")
        made = OneProcess(_device(device, 0))
    else:
        ranks = _join(kind, device, timeout_s, alone="parameters" in offload)
        made = _shared(kind, ranks, offload, precision, cuts)
    wrapped = [name for name in offload if name != "parameters"]
    if wrapped:
        from equipoise.training.distribution.offload import Offloaded

        made = Offloaded(made, activations="activations" in wrapped, optimizer="optimizer" in wrapped)
    return made


def _check(kind: str, offload: Sequence[str], precision: str) -> None:
    for what, value, valid in (("kind", kind, KINDS), ("precision", precision, ("fp32", "bf16", "fp16"))):
        if value not in valid:
            raise unknown(what, value, valid)
    for name in offload:
        if name not in OFFLOADS:
            raise unknown("offload", name, OFFLOADS)
        if kind not in OFFLOADS[name]:
            raise must_be("offload", f"one of {kind}'s", name, f"{name} can be offloaded in {' and '.join(OFFLOADS[name])}.")


def _shared(kind: str, ranks: Ranks, offload: Sequence[str], precision: str, cuts: Sequence[str]) -> Distribution:
    if kind == "ddp":
        from equipoise.training.distribution.data_parallel import DataParallel

        return DataParallel(ranks)
    if kind == "fsdp":
        from equipoise.training.distribution.sharded import Sharded

        return Sharded(ranks, precision=precision, offload="parameters" in offload)
    from equipoise.training.distribution.pipeline import Pipeline

    return Pipeline(ranks, cuts=cuts)


def _join(kind: str, device: str | None, timeout_s: float, *, alone: bool) -> Ranks:
    """Meet the other ranks where the environment says; `alone` lets a process without one be the only rank."""
    if "RANK" not in os.environ and not alone:
        raise must_be("RANK", f"in the environment of a {kind} run", None, f"Start it by {_TORCHRUN}")
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _PLACE)
    where = _device(device, local)
    backend = "gloo" if where.type == "cpu" else "cpu:gloo,cuda:nccl"
    if not dist.is_initialized():
        if where.type == "cuda":
            torch.cuda.set_device(where)
        started = "RANK" in os.environ
        if started:
            _end_with(int(os.environ.get(_LAUNCHER, os.getppid())))
        store = None if started else dist.HashStore()  # type: ignore[attr-defined]
        with in_touch():
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
    return Ranks(rank, world, where)


def _device(asked: str | None, local: int) -> torch.device:
    """Return the device of the `local`-th rank of this machine."""
    if asked == "cpu" or (asked is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        limit = f"at most {torch.cuda.device_count()}, one for each GPU here"
        raise must_be("ranks", limit, local + 1, "Start fewer, or pass device='cpu'.")
    return torch.device("cuda", local)


def _end_with(parent: int) -> None:
    """End this process, from a thread, soon after the process `parent` has ended: nobody would end it otherwise."""

    def watch() -> None:
        try:
            launcher = psutil.Process(parent)
            while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1.0)
        except psutil.NoSuchProcess:
            pass
        os.write(2, _GONE)  # not by sys.stderr, which torch's hook for uncaught errors replaces while it writes
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, daemon=True, name="end with the launcher").start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(command: Sequence[str], rank: int, ranks: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start one rank; its share of the machine's cores is what its math libraries use."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))} | os.environ
    environment |= {name: str(value) for name, value in place.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", _LAUNCHER: str(os.getpid())}
    if rank == 0:
        return subprocess.Popen(command, env=environment)
    with log.open("wb") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def _await(workers: Sequence[subprocess.Popen[bytes]], seconds: float, *, until_failed: bool = False) -> None:
    """Wait until all have ended, at most so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = [worker.poll() for worker in workers]
        if None not in codes or (until_failed and any(codes)):
            return
        time.sleep(0.1)


def _end(workers: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """End what still runs: politely, then not."""
    for ask in (subprocess.Popen.terminate, subprocess.Popen.kill):
        for worker in workers:
            if worker.poll() is None:
                ask(worker)
        _await(workers, grace_s)


def _verdict(codes: Sequence[int | None], said: Sequence[str]) -> int:
    """Return the run's exit code from its ranks' (None: had to be ended), or raise what befell the rank that began it.

    A rank that was killed explains the others; so does one with an error of its own, before those that lost touch with it.
    """

    def blame(rank: int) -> int:
        killed, own = (codes[rank] or 0) < 0, rank > 0 and LOST_TOUCH not in said[rank]
        return 0 if killed else 1 if own else 2 if rank == 0 else 3

    failed = [rank for rank, code in enumerate(codes) if code]
    if not failed:
        return 0
    first = min(failed, key=blame)
    code, of_rank_0 = codes[first] or 0, codes[0] or 0
    if of_rank_0 > 0 and (first == 0 or code == of_rank_0 != EXIT_FAILED):
        return of_rank_0  # it has said why
    last = said[first].strip().splitlines()[-1:]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = "".join(f" ({line})" for line in last) if code > 0 else ""
    raise EquipoiseError(
        f"every rank must run to the end; rank {first} {how}{why}, and the others were stopped. Mend what can be mended and "
        "start the run again: it goes on from its last checkpoint."
    )
