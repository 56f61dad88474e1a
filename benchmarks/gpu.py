"""Everything that training does on a GPU, held against the same on the CPU, and what a GPU makes of a step.

    python benchmarks/gpu.py                        # on a machine with a GPU, 3 to 5 minutes; without one it says so and ends
    python benchmarks/gpu.py --device cpu           # a rehearsal of the checks: the CPU against itself, in a minute
    python benchmarks/gpu.py --only "nccl" fsdp     # those whose name holds one of the words

*checks*: each trains the same net on the same numbers in this process on the CPU and on the GPU, and asserts that losses and
weights agree: to `FP32` in float32 (with TF32 switched off), to `LOW` in bf16 and fp16. One process; one rank that talks over
NCCL (data parallel with SyncBatchNorm, sharded, pipeline, offloaded); and two ranks that share the GPU over gloo, the least
number at which SyncBatchNorm has something to sum (a control without it must fail). A check that fails does not stop the
others, and the script ends with exit code 1.

*pace*: samples a second of a training step, CPU and GPU in shuffled rounds, and the share of the GPU's peak (`measure.device`).
A round is a run of as many steps as fill `ROUND_S`; the interval is over rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_checks import (
    CLOSE,
    CONV,
    CPU,
    FP32,
    LOW,
    SGD,
    Facts,
    losses_apart,
    one_process,
    pictures,
    speller,
    text,
    trained,
)
from gpu_ranks import of_one_rank, of_two_ranks
from torch import nn

from equipoise.errors import EquipoiseError
from equipoise.measure import device as gpu
from equipoise.measure import machine
from equipoise.measure.counts import count
from equipoise.records import as_data
from equipoise.stats import quantile_interval
from equipoise.training import Samples, fit
from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.launch import launch
from equipoise.workloads.models import ResNet

ROUNDS, ROUND_S = 8, 1.0
RESULT = Path(__file__).parent / "results" / "cuda.json"
PARTS = {"one process": one_process, "nccl": of_one_rank, "two ranks": of_two_ranks}


def checked(part: str, device: torch.device, only: list[str]) -> dict[str, Facts]:
    """Run the checks of a part that are wanted; each gives its facts, or how it failed."""
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Facts] = {}
    for name, check in PARTS[part](device):
        if only and not any(word in f"{part}: {name}" for word in only):
            continue
        began = time.perf_counter()
        try:
            facts = {"ok": True, **check()}
        except Exception as error:  # noqa: BLE001 - the finding of this check
            where = [line.strip() for line in traceback.format_exc().splitlines()[-24:]]
            facts = {"ok": False, "error": f"{type(error).__name__}: {str(error)[:600]}", "where": where}
        found[name] = {**facts, "seconds": round(time.perf_counter() - began, 2)}
        if os.environ.get("RANK", "0") == "0":
            line = {key: value for key, value in found[name].items() if key not in ("where", "ok")}
            print(f"{'ok  ' if facts['ok'] else 'FAIL'} {part}: {name} {json.dumps(line)[:300]}", flush=True)
    return found


def in_ranks(part: str, count: int, device: torch.device, only: list[str]) -> dict[str, Facts]:
    """Run a part in ranks of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["--part", part, "--device", device.type, "--out", str(out), *(["--only", *only] if only else [])]
        try:
            launch([sys.executable, __file__, *words], count)
        except EquipoiseError as error:
            return {"start": {"ok": False, "error": str(error)}}
        return json.loads(out.read_text()) if out.exists() else {"start": {"ok": False, "error": "nothing was written"}}


def too_many_ranks(device: torch.device) -> Facts:
    """More ranks than GPUs are refused by each, in one sentence."""
    program = "from equipoise.errors import InputError\nfrom equipoise.training.distribution.launch import connect\n"
    program += "try:\n    connect('ddp')\nexcept InputError as error:\n    import sys; sys.exit(error.exit_code)\n"
    try:
        code: int | str = launch([sys.executable, "-c", program], torch.cuda.device_count() + 1, grace_s=1.0)
    except EquipoiseError as error:
        code = str(error)
    return {"ok": device.type == "cpu" or code != 0, "said": code}


def by_hand(where: torch.device, how: Facts, steps: int) -> float:
    """Return the seconds of as many steps of a loop in plain torch: what ours is held against."""
    net, recipe, data = copy.deepcopy(how["net"]).to(where).train(), how["recipe"], how["data"]
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, foreach=True)
    order = torch.randperm(len(data)).split(recipe.batch)
    gpu.finish(where)
    began = time.perf_counter()
    for step in range(steps):
        chosen = order[step % len(order)]
        inputs, targets = (part[chosen].to(where, non_blocking=True) for part in (data.inputs, data.targets))
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimizer.step()
    gpu.finish(where)
    return time.perf_counter() - began


def pace(device: torch.device) -> Facts:
    """Samples a second of training, the CPU's and the device's side by side."""
    conv: Facts = {"net": ResNet(20), "data": pictures(1024, side=32), "recipe": replace(SGD, batch=128)}
    gpt: Facts = {"net": speller(256, 4, 128, heads=8), "data": text(256, length=128), "recipe": replace(SGD, batch=32)}
    wide: Facts = {"net": speller(1024, 8, 256, heads=16), "data": text(256, length=256), "recipe": replace(SGD, batch=64)}
    there = Samples(conv["data"].inputs.to(device), conv["data"].targets.to(device))
    runs: dict[str, tuple[torch.device, Facts]] = {}
    for name, how in {"resnet20": conv, "gpt 3 M": gpt}.items():
        runs[f"{name}, CPU"] = CPU, how
        runs[f"{name}, GPU"] = device, how
        runs[f"{name}, GPU, plain torch loop"] = device, {**how, "by_hand": True}
        runs[f"{name}, GPU, bf16"] = device, {**how, "recipe": replace(how["recipe"], precision="bf16")}
    lasting = replace(SGD, batch=128, precision="bf16", channels_last=True)
    runs["resnet20, GPU, bf16, channels last, data there"] = device, {**conv, "data": there, "recipe": lasting}
    runs["resnet20, GPU, bf16, channels last, data there, batch 1024"] = (
        device,
        {**conv, "data": there, "recipe": replace(lasting, batch=1024)},
    )
    runs["gpt 101 M, GPU, bf16"] = device, {**wide, "recipe": replace(wide["recipe"], precision="bf16")}

    def rate(where: torch.device, how: Facts, steps: int) -> float:
        if "by_hand" in how:
            return steps * how["recipe"].batch / by_hand(where, how, steps)
        done = fit(
            how["net"], how["data"], loss=F.cross_entropy, steps=steps, recipe=how["recipe"], distribution=OneProcess(where)
        )
        return steps * how["recipe"].batch / done.seconds

    for run in runs.values():
        rate(*run, 4)  # warm up
    fill = {name: max(2, int(ROUND_S * rate(*run, 10) / run[1]["recipe"].batch)) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS):
        for name in random.Random(round_).sample(sorted(runs), len(runs)):
            samples[name].append(rate(*runs[name], fill[name]))
    peaks = {
        precision: gpu.peak_flops(device, dtype) for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    found: Facts = {"peaks": {name: as_data(peak) for name, peak in peaks.items()}}
    for name, (where, how) in runs.items():
        interval = quantile_interval(samples[name], 0.5)
        counts = count(how["net"], how["data"].inputs[:1].cpu())
        flops = 6 * counts.macs * interval.value
        used = gpu.utilization(flops, 1.0, peaks[how["recipe"].precision]) if where == device else None
        found[name] = {
            "samples_per_s": as_data(interval.reading("1/s")), "steps_a_round": fill[name], "batch": how["recipe"].batch,
            "params": counts.params, "model_flops_per_s": flops, "utilization": used and used.value,
        }  # fmt: skip
        said = f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}] samples/s"
        print(f"pace {name}: {said}; of the peak {used and used.value}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", default=[], help="words, one of which the name of a check must hold; no pace then")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured. --device cpu rehearses the checks.", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if args.device == "cuda" else CPU
    if args.part:
        found = checked(args.part, device, args.only)
        if os.environ["RANK"] == "0":
            args.out.write_text(json.dumps(found))
        return 0
    began = time.perf_counter()
    checks = {"one process": checked("one process", device, args.only)}
    checks |= {part: in_ranks(part, ranks, device, args.only) for part, ranks in (("nccl", 1), ("two ranks", 2))}
    checks["launch"] = {"more ranks than GPUs": too_many_ranks(device)}
    torch.backends.cudnn.allow_tf32 = True  # as torch comes
    as_it_comes = losses_apart(trained(OneProcess(device), **CONV), trained(OneProcess(), **CONV))
    on_gpu = device.type == "cuda"
    found = {
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "nccl": torch.cuda.nccl.version() if on_gpu else None,
        "cpu_threads": torch.get_num_threads(), "machine": machine.describe(),
        "tolerances": {"fp32": FP32, "low": LOW, "close": CLOSE}, "losses_apart_with_tf32_convolutions": as_it_comes,
        "rounds": ROUNDS, "checks": checks, "pace": {},
    }  # fmt: skip
    out = args.out or (RESULT if on_gpu else None)

    def write() -> None:
        found["seconds"] = round(time.perf_counter() - began, 1)
        if out:
            out.write_text(json.dumps(found, indent=1) + "\n")

    write()
    if not args.only:
        found["pace"] = pace(device)
        write()
    every = {f"{part}: {name}": facts for part, some in checks.items() for name, facts in some.items()}
    failed = [name for name, facts in every.items() if not facts["ok"]]
    print(f"{len(every) - len(failed)} of {len(every)} checks hold, {found['seconds']} s; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
