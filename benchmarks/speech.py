"""Spoken digits: a Conformer for one digit, each speaker left out, strings of four by CTC, and what the search makes of it.

    export SPEECH=DATA/spoken-digits.zip              # recordings/<digit>_<speaker>_<take>.wav, 8 kHz
    python benchmarks/speech.py digits                # takes 0-4 are the test; --seed 1
    python benchmarks/speech.py speakers              # leave one speaker out, each of them
    python benchmarks/speech.py strings               # four digits in a row, word error rate
    python benchmarks/speech.py streaming             # the same, read in chunks of 160 ms
    python benchmarks/speech.py chunks                # latency of a chunk and real-time factor; a quiet machine

    equipoise optimize "speech:$SPEECH?model=conformer&weights=runs/speech/digits-0/model.safetensors" \\
        --target onnxruntime:cpu --budget "drop<=0.3" --time 30min --store runs/speech/small
    equipoise export runs/speech/small --out artifact && equipoise verify artifact

Each ends in the result file. Seconds are wall time of one process with one thread, looks at the validation split included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from equipoise import runtimes
from equipoise.compress.fold import fold
from equipoise.measure import machine
from equipoise.runtimes.decoding import Reader
from equipoise.runtimes.export import Exporter
from equipoise.verbs.train import train
from equipoise.workloads import family, load_task
from equipoise.workloads.audio_files import RATE, read_recordings

RESULTS = Path(__file__).parent / "results" / "speech.json"
EPOCHS = {"digits": 15.0, "speakers": 15.0, "strings": 3.0, "streaming": 3.0}
JOINED = 4


def task_of(name: str, speaker: str = "") -> str:
    data = os.environ["SPEECH"]
    if name in ("strings", "streaming"):
        return f"speech:{data}?joined={JOINED}"
    return f"speech:{data}?speaker={speaker}" if speaker else f"speech:{data}"


def run(name: str, *, seed: int, store: Path, speaker: str = "") -> dict[str, float | str]:
    """Train one model, and return what the test split shows."""
    task = load_task(task_of(name, speaker))
    folder = store / "-".join(filter(None, (name, speaker, str(seed))))
    kind = "streaming" if name == "streaming" else "conformer"
    found = train(kind, task, store=folder, epochs=EPOCHS[name], seed=seed, test=True)
    row = {
        "seed": seed,
        "speaker": speaker,
        f"test_{task.metric.name}": found.reached["test_quality"].get(),
        f"validation_{task.metric.name}": found.reached["quality"].get(),
        "n_test": len(task.test),
        "train_s": found.reached["train_s"].get(),
        "epochs": EPOCHS[name],
        "params": found.reached["params"].get(),
        "threads": torch.get_num_threads(),
    }
    keep(name, row)
    print(json.dumps(row, indent=1))
    return row


def chunks(*, seed: int, store: Path, seconds: float = 60.0) -> None:
    """Time each chunk of the streaming model's file, read one after the other, one thread."""
    task = load_task(task_of("streaming"))
    model = family("streaming").model({}, task, generator=torch.Generator().manual_seed(0))
    model.load_state_dict(safetensors.torch.load_file(store / f"streaming-{seed}" / "model.safetensors"))
    program = runtimes.get("onnxruntime").compile(
        Exporter().source(fold(model.eval(), task.example), task.example, topology="")
    )
    reader, step = Reader(program), int(model.read_every)  # type: ignore[arg-type]
    sound = np.concatenate([row[: len(row) - len(row) % step] for row in task.test.take(64).tensors()[0].numpy()])
    spent, until, place = list[float](), time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        chunk = np.ascontiguousarray(sound[None, place : place + step])
        began = time.perf_counter()
        reader.on(chunk)
        spent.append(time.perf_counter() - began)
        place = (place + step) % (len(sound) - step)
    p50, p99 = statistics.median(spent), float(np.quantile(spent, 0.99))
    row = {
        "seed": seed,
        "chunk_s": step / RATE,
        "latency_p50_s": p50,
        "latency_p99_s": p99,
        "real_time_factor": statistics.fmean(spent) / (step / RATE),
        "n": len(spent),
        "threads": 1,
    }
    keep("chunks", row)
    print(json.dumps(row, indent=1))


def keep(name: str, row: dict[str, float | str]) -> None:
    """Put a run into the result file, in place of an earlier one of the same seed and speaker."""
    held = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}

    def key(one: dict[str, float | str]) -> tuple[str, str]:
        return str(one["seed"]), str(one.get("speaker", ""))

    rows = [other for other in held["runs"].get(name, []) if key(other) != key(row)]
    held["runs"][name] = sorted([*rows, row], key=key)
    held["machine"] = {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "flags", "memory_bytes")}
    held["versions"] = {p: version(p) for p in ("torch", "numpy", "scipy", "onnxruntime")} | {
        "python": platform.python_version()
    }
    RESULTS.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*EPOCHS, "chunks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("runs/speech"))
    parser.add_argument("--only", default="", help="one speaker")
    told = parser.parse_args()
    if told.name == "chunks":
        chunks(seed=told.seed, store=told.store)
    elif told.name == "speakers":
        names = sorted({take.speaker for take in read_recordings(Path(os.environ["SPEECH"])).takes})
        rows = [run("speakers", seed=told.seed, store=told.store, speaker=who) for who in names if told.only in ("", who)]
        print("mean", statistics.fmean(float(row["test_accuracy"]) for row in rows))
    else:
        run(told.name, seed=told.seed, store=told.store)
