"""What the ranks of a run do on a GPU: one that talks over NCCL, and two that share the GPU; checks of `gpu.py`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from gpu_checks import (
    CONV,
    FP32,
    GPT,
    LOW,
    SGD,
    Facts,
    Killed,
    apart,
    conv_net,
    held,
    losses_apart,
    low,
    trained,
)
from torch import nn

from equipoise.errors import InputError
from equipoise.training import Progress
from equipoise.training.distribution import Distribution, OneProcess
from equipoise.training.distribution.data_parallel import DataParallel
from equipoise.training.distribution.launch import connect
from equipoise.training.distribution.offload import Offloaded
from equipoise.training.distribution.pipeline import Pipeline
from equipoise.training.distribution.ranks import Ranks
from equipoise.training.distribution.sharded import Sharded


def of_one_rank(device: torch.device) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """Yield what one rank does with a group of its own: NCCL on a GPU."""
    asked = None if device.type == "cuda" else "cpu"
    backend = "nccl" if device.type == "cuda" else "gloo"
    ranks = Ranks(0, 1, connect("ddp", device=asked).device)

    def talk() -> Facts:
        assert backend in str(dist.get_backend_config()), dist.get_backend_config()
        value = torch.arange(6.0, device=ranks.device).reshape(3, 2)
        assert torch.equal(ranks.sum(value), value)
        assert torch.equal(ranks.gather(value, 3), value)
        assert torch.equal(ranks.tell(value, 0), value)
        assert ranks.agree(2.5) == 2.5
        return {"backend": str(dist.get_backend_config())}

    yield "talk", talk
    norms = {"conv": CONV, "gpt": GPT, "gpt, averaged, accumulated": {**GPT, "recipe": replace(SGD, ema=0.9, accumulate=3)}}
    places: dict[str, Callable[[], Distribution]] = {
        "ddp": lambda: connect("ddp", device=asked),
        "ddp, offloaded": lambda: connect("ddp", offload=("activations", "optimizer"), device=asked),
        "fsdp": lambda: connect("fsdp", device=asked),
        "fsdp, offloaded": lambda: connect("fsdp", offload=("parameters", "activations"), device=asked),
        "pipeline": lambda: connect("pipeline", device=asked),
        "gpipe": lambda: Pipeline(ranks, schedule="gpipe"),
    }
    for kind, where in places.items():
        for name, how in norms.items():
            if not (name == "conv" and kind in ("pipeline", "gpipe")):  # BatchNorm sees micro-batches there
                yield (
                    f"{kind}: {name}",
                    lambda how=how, where=where: held(apart(trained(where(), **how), trained(OneProcess(), **how)), FP32),
                )
        if kind not in ("pipeline", "gpipe"):
            muon = {**GPT, "recipe": replace(SGD, optimizer="muon", lr=0.01)}
            yield (
                f"{kind}: muon",
                lambda where=where, how=muon: held(losses_apart(trained(where(), **how), trained(OneProcess(), **how)), LOW),
            )
        for precision in ("bf16", "fp16"):
            if precision == "bf16" or kind in ("ddp", "fsdp"):
                yield f"{kind}: {precision}", lambda where=where, precision=precision: low(where(), GPT, precision)
    for name, how in {"conv": CONV, "gpt": GPT}.items():
        yield f"fsdp sent in bf16: {name}", lambda how=how: low(Sharded(ranks, precision="bf16"), how, "bf16")
    yield "refused: fp16 in a pipeline", lambda: refused(lambda: low(places["pipeline"](), GPT, "fp16"))
    yield "refused: fp16 with parameters offloaded", lambda: refused(lambda: low(places["fsdp, offloaded"](), GPT, "fp16"))
    yield "relay", lambda: relay(places)
    yield "synchronized norms", lambda: synchronized(ranks)


def refused(call: Callable[[], object]) -> Facts:
    try:
        call()
    except InputError as error:
        return {"told": str(error)}
    raise AssertionError("not refused")


def relay(places: Mapping[str, Callable[[], Distribution]]) -> Facts:
    """Each goes on from the file of the one before."""
    recipe = replace(SGD, ema=0.9)
    with tempfile.TemporaryDirectory() as folder:
        how: Facts = {**GPT, "steps": 100, "validation": None}
        runs = [OneProcess, *places.values(), OneProcess]
        for leg, where in enumerate(runs):
            until = 100 if leg == len(runs) - 1 else 10 + 10 * leg

            def stop(progress: Progress, until: int = until) -> None:
                if progress.step > until:
                    raise Killed

            try:
                found = trained(where(), recipe, **how, checkpoint=Path(folder) / "run", every_s=0.0, on_step=stop)
            except Killed:
                continue
    return {"legs": len(runs), **held(losses_apart(found, trained(OneProcess(), recipe, **how)), LOW)}


def synchronized(ranks: Ranks) -> Facts:
    """Whether BatchNorm is replaced, on a GPU, and frozen ones stay still."""
    placed = DataParallel(ranks).place(conv_net())
    found = sum(isinstance(module, nn.SyncBatchNorm) for module in placed.modules())
    assert found == (7 if ranks.device.type == "cuda" else 0), found
    return {"norms": found}


@contextmanager
def unsynchronized() -> Iterator[None]:
    """Planted: each rank normalizes by its own rows."""
    real = nn.SyncBatchNorm.convert_sync_batchnorm
    nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(lambda cls, module, group=None: module)
    try:
        yield
    finally:
        nn.SyncBatchNorm.convert_sync_batchnorm = real


def of_two_ranks(device: torch.device) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """Yield what two ranks do that share the device: over gloo, as NCCL wants a GPU for each."""
    rank = int(os.environ["RANK"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, device)
    for name, how in {"conv": CONV, "gpt": GPT}.items():
        if name == "gpt" or device.type == "cuda":
            yield (
                f"ddp: {name}",
                lambda how=how: held(apart(trained(DataParallel(ranks), **how), trained(OneProcess(device), **how)), FP32),
            )

    def control() -> Facts:
        with unsynchronized():
            found = apart(trained(DataParallel(ranks), **CONV), trained(OneProcess(device), **CONV))
        assert found > 10 * FP32, found
        return {"apart": found}

    yield "control: norms of own rows differ", control
    twice = {"activations": True, "optimizer": True}
    yield (
        "ddp, offloaded: gpt",
        lambda: held(apart(trained(Offloaded(DataParallel(ranks), **twice), **GPT), trained(OneProcess(device), **GPT)), FP32),
    )
    if device.type == "cpu":  # gloo does not scatter what lies on a GPU: torch 2.11 ends in a segmentation fault
        yield "fsdp: gpt", lambda: held(apart(trained(Sharded(ranks), **GPT), trained(OneProcess(device), **GPT)), FP32)
