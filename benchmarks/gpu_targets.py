"""Programs on a GPU: whether each runtime keeps the contract there, how fast each is, and what the road makes of a model.

    python benchmarks/gpu_targets.py contract pace road --cifar CIFAR.zip --weights W.safetensors    # 7 minutes; 8 with gpt

*contract*: `equipoise.testing.check_runtime` for each GPU runtime that can be used, the reason for each that cannot.
*pace*: ResNet-20 and a GPT (width 512, 8 blocks, 128 tokens; weights drawn) at two batches: each runtime in float32 and half
precision, and what a user writes by hand (``model.half()``, channels last, ``torch.compile(mode="reduce-overhead")``). Each is
loaded several times, in shuffled rounds, and timed from array to array; also joules a request, by NVML, and the board's clocks
before and after.
*road*: `optimize` of ResNet-20 for ``torch:cuda`` at batch 512, `drop<=1`; then the pick as it is and under torch's compiler,
beside the untouched model in half precision under that compiler, each loaded anew up to ten times in shuffled rounds.
*gpt*: the same of a GPT (width 384, 6 blocks) trained here for 30 s on Python's help (`pydoc_data/topics.py`), batch 64.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise import runtimes, workloads
from equipoise.compress.fold import fold
from equipoise.measure import energy, machine
from equipoise.measure.loads import compare_loads
from equipoise.records import Plan, as_data, program_ref
from equipoise.road.racing import Contender
from equipoise.road.walk import optimize
from equipoise.runtimes import Program, Target, cuda
from equipoise.runtimes.base import RUNTIMES
from equipoise.runtimes.export import Exporter
from equipoise.stats import Interval
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.testing import check_runtime
from equipoise.training.distribution.base import OneProcess
from equipoise.verbs.train import train
from equipoise.workloads import Workload, family, load_task
from equipoise.workloads.models import ResNet

RESULT = Path(__file__).parent / "results" / "gpu_targets.json"
OURS, RIVAL = "untouched, fp16", "untouched, fp16, torch.compile"
ROWS = [row for row in RUNTIMES if ":" in row]
Facts = dict[str, Any]


def usable() -> list[str]:
    return [row for row in ROWS if not runtimes.get(row).unavailable()]


def contract() -> Facts:
    """Each runtime held to its contract on the card."""
    found: Facts = {}
    for row in ROWS:
        began, why = time.perf_counter(), runtimes.get(row).unavailable()
        try:
            if not why:
                check_runtime(runtimes.get(row))
        except Exception as error:  # noqa: BLE001 - the finding
            why = f"FAILED: {type(error).__name__}: {str(error)[:500]}"
        found[row] = {"keeps": not why, "why": why, "seconds": round(time.perf_counter() - began, 1)}
        print(row, found[row], flush=True)
    return found


def products(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]


def programs(model: nn.Module, example: torch.Tensor) -> dict[str, Program]:
    """The model for each runtime, in floats and in half precision."""
    source, held = Exporter().source(model, example, topology="whole"), products(model)
    found = {}
    for row in usable():
        for way in runtimes.get(row).precisions:
            if way != "bf16":
                schemes = None if way == 32 else dict.fromkeys(held, way)
                found[f"{row} {'fp32' if way == 32 else way}"] = runtimes.get(row).compile(source, schemes=schemes)
    return found


def by_hand(model: nn.Module, rows: np.ndarray[Any, Any], *, compiled: bool) -> Callable[[], Callable[[], object]]:
    """What a user writes: half precision, channels last, torch's compiler with its own CUDA graphs."""

    def load() -> Callable[[], object]:
        low = copy.deepcopy(model).eval().half().to(cuda.card.device).to(memory_format=torch.channels_last)
        call = torch.compile(low, mode="reduce-overhead") if compiled else low

        def answer() -> object:
            given = torch.from_numpy(rows).to(cuda.card.device)
            with torch.inference_mode():
                return call(given.half() if given.is_floating_point() else given).float().cpu().numpy()

        return answer

    return load


def clocks() -> Facts:
    """What the boards say of their clocks and of what holds them back."""
    try:
        import pynvml

        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(board, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(board, pynvml.NVML_CLOCK_MEM),
            "held_back_by": pynvml.nvmlDeviceGetCurrentClocksEventReasons(board),
            "celsius": pynvml.nvmlDeviceGetTemperature(board, pynvml.NVML_TEMPERATURE_GPU),
        }
    except Exception as error:  # noqa: BLE001 - a board may tell none of it
        return {"unavailable": str(error)[:200]}


def pace(seconds: float, batches: Sequence[int], keep: Callable[[Facts], None]) -> Facts:
    """Milliseconds a request and how many times faster than plain torch in half precision."""
    gpt = family("gpt").scale() | {"width": 512, "depth": 8, "heads": 8}
    shape = load_task(f"text:{topics()}?context=128")
    subjects: dict[str, tuple[nn.Module, torch.Tensor]] = {
        "resnet20": (ResNet(20).eval(), torch.randn(512, 3, 32, 32)),
        "gpt": (
            family("gpt").model(gpt, shape, generator=torch.Generator().manual_seed(0)).eval(),
            torch.randint(0, 64, (512, 128)),
        ),
    }
    found: Facts = {}
    for name, (model, example) in subjects.items():
        model = fold(model, example[:2])
        made = programs(model, example[:2])
        for batch in batches:
            rows = example[:batch].numpy()
            contenders = {
                "by hand, fp16, eager": by_hand(model, rows, compiled=False),
                "by hand, fp16, torch.compile": by_hand(model, rows, compiled=True),
                **{key: Contender(p, target_of(p, batch)).load(rows) for key, p in made.items()},
            }
            before = clocks()
            timed = compare_loads(contenders, seconds=seconds, most=3)
            row: Facts = {"loads": timed.loads, "clocks_before": before, "clocks_after": clocks()}
            for key in contenders:
                faster = timed.speedup("by hand, fp16, torch.compile", key)
                row[key] = {"ms": 1e3 * timed.latency(key).get(), "times_torch_compile_fp16": told(faster)}
                print(f"{name} batch {batch} {key}: {row[key]}", flush=True)
            if batch == batches[-1]:
                for key in [key for key in made if key.startswith("inductor")]:
                    call = contenders[key]()
                    row[key]["joules"] = as_data(energy.read(call, energy.nvml(), windows=6, window_s=0.3))
                    print(f"{name} batch {batch} {key}: {row[key]['joules']}", flush=True)
            found[f"{name}, batch {batch}"] = row
            keep({"pace": found})
    return found


def target_of(program: Program, batch: int) -> Target:
    return replace(Target.parse(program.runtime), batch=batch)


def told(ratio: Interval) -> list[float | None]:
    return [ratio.value, *((ratio.low, ratio.high) if ratio.bounded else (None, None))]


def road(work: Workload, *, target: str, budget: str, limit: str, race: float) -> Facts:
    """Optimize, then race the pick beside the untouched model in half precision."""
    with tempfile.TemporaryDirectory() as folder:
        study = optimize(
            work, target=target, budget=budget, time=limit, store=Path(folder) / "study",
            listen=lambda event: print(f"[{event.spent_s:6.0f} s] {event.stage:9s}{event.text}", flush=True),
        )  # fmt: skip
        print(study.verdict(), study.sentence(study.best), sep="\n", flush=True)
        best, where = study.best, Target.parse(target.split(",")[0])
        with Store.open(Path(folder) / "study", create=False, readonly=True) as store:
            pick = Program.stored(program_ref(best), store.read_blob)
            fastest = Target.parse(program_ref(best).target)
    model = fold(work.model, work.example)
    source, held = Exporter().source(model, work.example, topology="whole"), products(model)
    whole = runtimes.get(where.row).compile(source, schemes=dict.fromkeys(held, "fp16"))
    rows = work.validation.take(where.batch).tensors()[0].numpy()
    contenders = {
        OURS: Contender(whole, where),
        RIVAL: compiled(whole, where),
        f"{RIVAL}, again": compiled(whole, where),
        "pick": Contender(pick, fastest),
        "pick, compiled": compiled(pick, fastest),
    }
    loads = {name: contender.load(rows) for name, contender in contenders.items()}
    timed = compare_loads(loads, seconds=race, most=10)
    return {
        "target": target, "budget": budget, "limit": limit, "plan": changes(study, best.plan),
        "evaluations": len(study.evaluations),
        "quality": as_data(best.quality), "drop": as_data(best.drop), "cost": as_data(best.cost), "loads": timed.loads,
        "times_torch_compile_fp16": {name: told(timed.speedup(RIVAL, name)) for name in contenders},
        "ms": {name: 1e3 * timed.latency(name).get() for name in contenders},
    }  # fmt: skip


def changes(study: Study, plan: Plan) -> dict[str, Any]:
    """What a plan does not leave as it is."""
    whole = study.baseline.plan.choices
    return {name: choice for name, choice in plan.choices.items() if choice != whole.get(name)}


def compiled(program: Program, target: Target) -> Contender:
    """The same file, by torch's compiler."""
    return Contender(replace(program, runtime="inductor:cuda"), replace(target, runtime="inductor"))


def topics() -> Path:
    import pydoc_data.topics

    return Path(pydoc_data.topics.__file__)


def trained_gpt(seconds: float) -> Workload:
    """A GPT trained here, as a workload."""
    text = Path(tempfile.mkdtemp()) / "topics.txt"
    text.write_text(topics().read_text(encoding="utf-8"), encoding="utf-8")
    task = load_task(f"text:{text}?context=128")
    scale = family("gpt").scale() | {"width": 384, "depth": 6, "heads": 6}
    made = train("gpt", task, scale, store=text.parent / "gpt", seconds=seconds, distribution=OneProcess(cuda.card.device))
    print(made.sentence(), flush=True)
    splits: Mapping[str, Any] = {"train": task.train, "validation": task.validation, "test": task.test}
    return Workload(model=made.model.cpu(), **splits, metric=task.metric, name="gpt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("contract", "pace", "road", "gpt"))
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--holdout", type=int, default=2000)
    parser.add_argument("--target", default="torch:cuda?batch=512")
    parser.add_argument("--time", default="150s", help="of *road* and *gpt* (%(default)s)")
    parser.add_argument("--race", type=float, default=60.0, help="seconds of their last comparison (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of *pace*, for each model and batch (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 512), help="of *pace* (1 512)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not usable():
        print("no GPU that a runtime can use: nothing was measured.", file=sys.stderr)
        return 2
    cifar = f"cifar10:{args.cifar}?weights={args.weights}&holdout={args.holdout}&shift=2"
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}

    def keep(more: Facts) -> None:
        found.update(more)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    parts: dict[str, Callable[[], Facts]] = {
        "contract": contract,
        "pace": lambda: pace(args.seconds, args.batches, keep),
        "road": lambda: road(workloads.load(cifar), target=args.target, budget="drop<=1", limit=args.time, race=args.race),
        "gpt": lambda: road(
            trained_gpt(30.0), target=args.target.replace("512", "64"), budget="drop<=0.02", limit=args.time, race=args.race
        ),
    }
    bad = []
    for name in args.parts:
        began = time.perf_counter()
        try:
            found[name] = parts[name]()
        except Exception as error:  # noqa: BLE001 - what the other parts find is kept
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
            bad.append(name)
        found[name]["seconds"] = round(time.perf_counter() - began, 1)
        found["machine"] = {
            **machine.describe(), "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
        keep({})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
