"""Multi30k, English to German: how good two families get, and what a sentence takes before and after the search.

    python benchmarks/translation.py train transformer --data MULTI30K --epochs 18     # or seq2seq; --seed 1; about an hour
    equipoise optimize "translation:MULTI30K?model=...&weights=..." --budget "drop<=0.5" --time 40min --store runs/small
    python benchmarks/translation.py race runs/small                                    # some minutes, on a quiet machine

`train` ends with BLEU (cased, 13a, by sacreBLEU, its signature beside it) and chrF2 on validation and test_2016_flickr, written
by a beam search of width 4. `race` loads the untouched and the picked program many times, side by side, and has each translate
the same sentences of validation one by one, end to end: a source read once, then word by word with the past at hand. Results:
results/translation_FAMILY.json and results/translation_race.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import torch

from equipoise.batch import take
from equipoise.measure import machine
from equipoise.measure.latency import Call
from equipoise.measure.loads import compare_loads
from equipoise.records import program_ref
from equipoise.runtimes import Program
from equipoise.runtimes.decoding import ProgramWriter
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.verbs.train import train
from equipoise.workloads import asked, load, load_task
from equipoise.workloads.bleu import Written
from equipoise.workloads.subwords import BEGIN, END
from equipoise.workloads.translation import translation_task
from equipoise.workloads.writing import beam_search

RESULTS = Path(__file__).parent / "results"
SENTENCES = 12
"""Sentences in a round of the race: short ones and long ones."""
SECONDS = 180.0


def learn(family: str, data: Path, *, epochs: float, seed: int, store: Path, scale: dict[str, float]) -> None:
    """Train one family and keep what its translations are worth."""
    began, cpu = time.perf_counter(), time.process_time()
    task = load_task(f"translation:{data}")
    found = train(family, task, scale, store=store, epochs=epochs, seed=seed, test=True)
    row = {
        "seed": seed,
        "scale": found.header["scale"],
        "params": found.reached["params"].get(),
        "epochs": epochs,
        "train_s": found.reached["train_s"].get(),
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "threads": torch.get_num_threads(),
        "validation_loss": found.reached["validation_loss"].get(),
        "bleu": {"validation": found.reached["quality"].get(), "test": found.reached["test_quality"].get()},
    }
    chrf = translation_task(data, quality="chrf").metric
    row["chrf2"] = {split.name: chrf.score(*asked(chrf, found.model, split)) for split in (task.validation, task.test)}
    path = RESULTS / f"translation_{family}.json"
    held = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    held["runs"] = sorted([*(r for r in held["runs"] if r["seed"] != seed), row], key=lambda r: r["seed"])
    signature = Written(task.metric.ask.__self__.known).signature  # type: ignore[union-attr]
    path.write_text(json.dumps({**held, "signature": signature, **about()}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(row, indent=1))


def race(store: Path, *, beams: int, seconds: float) -> None:
    """Time what a sentence takes, untouched and as picked."""
    study = Study.load(store)
    work = load(study.header.workload)
    rows = take(work.validation.take(400).tensors()[0], slice(None))
    length = (rows["source"] != 0).sum(1)
    chosen = length.argsort()[torch.linspace(0, len(length) - 1, SENTENCES).long()]
    inputs = take(rows, chosen)
    with Store.open(store) as kept:
        programs = {
            name: Program.stored(program_ref(e), kept.read_blob)
            for name, e in (("untouched", study.baseline), ("picked", study.best))
        }

    def loading(program: Program) -> Call:
        writer = ProgramWriter(program, threads=1)

        def once() -> None:
            beam_search(writer, inputs, beams=beams, begin=BEGIN, end=END, at_once=1)

        return once

    torch.set_num_threads(1)
    timed = compare_loads({name: lambda p=p: loading(p) for name, p in programs.items()}, seconds=seconds)  # type: ignore[misc]
    ratio = timed.speedup("untouched", "picked").reading("1")
    sizes = {name: program.size_bytes for name, program in programs.items()}
    row = {
        "workload": Path(study.header.workload).name,
        "beams": beams,
        "sentences": SENTENCES,
        "loads": timed.loads,
        "ms_per_sentence": {name: 1e3 * timed.latency(name).get() / SENTENCES for name in programs},
        "times_faster": [ratio.low, ratio.get(), ratio.high],
        "bytes": sizes,
        "share_of_bytes": sizes["picked"] / sizes["untouched"],
        "drop_validation": [study.best.drop.low, study.best.drop.get(), study.best.drop.high],
        "plan": {k: v for k, v in study.best.plan.choices.items() if v != study.baseline.plan.choices.get(k)},
        **about(),
    }
    path = RESULTS / "translation_race.json"
    held = json.loads(path.read_text()) if path.is_file() else {}
    held[f"{row['workload']}, {beams} beams"] = row
    path.write_text(json.dumps(held, indent=1, sort_keys=True, default=str) + "\n")
    print(json.dumps({k: row[k] for k in ("ms_per_sentence", "times_faster", "share_of_bytes", "drop_validation")}, indent=1))


def about() -> dict[str, object]:
    """The machine and the versions."""
    kept = ("cpu", "cores", "flags", "memory_bytes")
    return {
        "machine": {k: v for k, v in machine.describe().items() if k in kept},
        "load": os.getloadavg(),
        "versions": {p: version(p) for p in ("torch", "numpy", "onnxruntime", "tokenizers", "sacrebleu")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("train")
    one.add_argument("family", choices=("transformer", "seq2seq"))
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--epochs", type=float, default=18.0)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--scale", default="", help="such as width=256,hidden=256")
    one.add_argument("--store", type=Path, default=None)
    two = what.add_parser("race")
    two.add_argument("store", type=Path)
    two.add_argument("--beams", type=int, default=4)
    two.add_argument("--seconds", type=float, default=SECONDS)
    args = parser.parse_args()
    if args.what == "race":
        race(args.store, beams=args.beams, seconds=args.seconds)
        return
    scale = {k: float(v) for k, _, v in (part.partition("=") for part in filter(None, args.scale.split(",")))}
    store = args.store or Path("runs") / f"translation-{args.family}-{args.seed}"
    learn(args.family, args.data, epochs=args.epochs, seed=args.seed, store=store, scale=scale)


if __name__ == "__main__":
    main()
