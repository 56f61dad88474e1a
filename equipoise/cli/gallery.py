"""``equipoise gallery``: the fields, and one of them from data to a verified file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.built_in import workload_of
from equipoise.cli.arguments import duration, option
from equipoise.cli.terminal import visible
from equipoise.errors import EXIT_FAILED, EXIT_OK, must_be, unknown
from equipoise.fields import FIELDS, Field
from equipoise.records import as_data

if TYPE_CHECKING:
    from equipoise.study.record import Study
    from equipoise.study.tested import Verified

STORE = Path("runs/gallery")
RESULT, ASKED = "gallery.json", "asked.json"
TIME, SAMPLE_TIME = "20min", "60s"
TRAIN, SEARCH = 0.35, 0.45
"""Shares of the time: of training and of the search; the rest is for loading, scoring and verification."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "gallery",
        help="the fields, and one of them from data to a verified file",
        description="Without a name: the fields, with their data, how each is run, and what came out last. With one: train a "
        "model of the field's family, search its best balance, export the pick, verify the file and write the reports. The "
        "same command again goes on where the last one stopped.",
    )
    parser.add_argument("field", metavar="FIELD", nargs="?", default="", help=" | ".join(FIELDS))
    parser.add_argument(
        "--data", type=Path, default=None, help="of the field (default: a small made-up set, written to the store)"
    )
    option(parser, "--time", duration(), help=f"wall time in all (default: {TIME}, of the made-up set {SAMPLE_TIME})")
    parser.add_argument("--store", type=Path, default=STORE, help="folder that holds one for each field (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace) -> int:
    """List the fields, or run one."""
    if not args.field:
        if args.data is not None:
            raise must_be("FIELD", "given with --data", "", f"Name one of {', '.join(FIELDS)}.")
        return _list(args.store, as_json=args.json)
    if args.field not in FIELDS:
        raise unknown("field", args.field, FIELDS)
    if args.data is not None and not args.data.exists():
        raise must_be("--data", "an existing file or folder", str(args.data), f"It takes {FIELDS[args.field].data}.")
    return _walk(args.field, args)


def _list(store: Path, *, as_json: bool) -> int:
    """Print each field with its data, its command and what came out last."""
    last = {name: _last(store, name) for name in FIELDS}
    if as_json:
        print(json.dumps({"schema_version": 1, "fields": last}, indent=1))
        return EXIT_OK
    for name, row in FIELDS.items():
        found = last[name]
        print(f"{name}: {row.says}")
        print(f"  data: {row.data}; without --data a small made-up set, {SAMPLE_TIME}")
        print(f"  equipoise gallery {name} --data PATH --time {TIME}")
        print(f"  last: {found['sentence'] if found else 'never run here'}")
    return EXIT_OK


def _last(store: Path, name: str) -> dict[str, Any] | None:
    """Return what the last run of a field left that got to its end, of whatever data."""
    found = [_read(folder / RESULT) for folder in (store / name, *sorted(store.glob(f"{name}-*")))]
    ended = [result for result in found if "sentence" in result]
    return max(ended, key=lambda result: str(result.get("when", "")), default=None)


def _read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; nothing where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raise where a folder holds a walk of other data or another time; make it this one's."""
    from equipoise.study.files import write_atomic

    held = _read(folder / ASKED)
    for name, value in asked.items():
        if held.get(name, value) != value:
            remedy = f"Name another --store, or delete {folder}."
            raise must_be(f"--{name}", f"{held[name]!r}, of which {folder} is", value, remedy)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / ASKED, json.dumps(asked).encode())


def _walk(name: str, args: argparse.Namespace) -> int:
    """Train, optimize, export, verify and report; end with where the reports are and one sentence."""
    from equipoise.cli import main
    from equipoise.study.files import write_atomic
    from equipoise.study.record import Study
    from equipoise.study.tested import verified
    from equipoise.units import parse

    row, began, data = FIELDS[name], time.perf_counter(), args.data
    folder = args.store / (name if data is None else f"{name}-{data.resolve().name.partition('.')[0]}")
    seconds = parse(args.time or (TIME if data is not None else SAMPLE_TIME), "s", name="--time")
    _claim(folder, {"data": str(data.resolve()) if data is not None else "made up", "time": f"{seconds:g}s"})
    task, scale = _asked(row, data, folder)
    trained, searched, artifact = (str(folder / part) for part in ("train", "search", "artifact"))
    options = [*(["--scale", scale] if scale else []), *(["--recipe", row.recipe] if row.recipe else [])]
    code = main(["train", row.family, task, *options, "--time", _share(TRAIN, seconds), "--test", "--store", trained])
    if code != EXIT_OK:
        return code
    figures = json.loads((folder / "train" / "run.json").read_text())
    work = workload_of(row.family, task, figures["header"]["scale"], folder / "train")
    code = main(["optimize", work, "--budget", row.budget, "--time", _share(SEARCH, seconds), "--store", searched])
    if code not in (EXIT_OK, EXIT_FAILED):
        return code
    if code == EXIT_FAILED:
        print(f"of --time {seconds:g}s the search had {_share(SEARCH, seconds)}: with more, in another --store, it finds more")
    shipped = main(["export", searched, "--pick", "best", "--out", artifact, "--overwrite"]) or main(["verify", artifact])
    main(["report", searched])
    study = Study.load(folder / "search")
    result = _result(name, task, figures, study, verified(folder / "search"), time.perf_counter() - began)
    write_atomic(folder / RESULT, json.dumps(result, indent=1).encode())
    if args.json:
        print(json.dumps({"schema_version": 1, **result}, indent=1))
    else:
        print(f"reports: {folder / 'train' / 'report.html'} {folder / 'search' / 'report.html'}")
        print(visible(f"{name}: {result['sentence']}"))
    return EXIT_FAILED if code or shipped else EXIT_OK


def _share(share: float, seconds: float) -> str:
    """A share of the time, as the other verbs take it: always the same, so that a run that was stopped goes on."""
    return f"{max(1.0, share * seconds):.0f}s"


def _asked(row: Field, data: Path | None, folder: Path) -> tuple[str, str]:
    """Return how the task and the scale are written, for the user's data or for a made-up set that is written now."""
    made_up = data is None
    place = row.written(folder / "data") if data is None else data
    task = (row.sampled if made_up and row.sampled else row.task).format(data=place)
    scale = row.small if made_up and row.small else row.scale
    return task, ",".join(f"{key}={value:g}" for key, value in scale.items())


def _result(
    name: str, task: str, figures: Mapping[str, Any], study: Study, tested: Sequence[Verified], seconds: float
) -> dict[str, Any]:
    """Return what a run ends with: what training reached, what the search made of it, and what the test split says."""
    best = study.best
    mine = [row for row in tested if row.key == best.key]
    told = mine[-1].headline if mine else study.sentence(best)
    trained, axes = figures["reached"], ("latency_s", "size_bytes", "params", "macs")
    quality = trained.get("test_quality") or trained["quality"]
    return {
        "field": name,
        "task": task,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": figures["header"]["machine"],
        "metric": figures["header"]["metric"]["name"],
        "model": f"{figures['header']['model']} {figures['header']['scale']}",
        "trained": {key: trained[key] for key in ("quality", "test_quality", "params", "train_s") if key in trained},
        "untouched": {axis: as_data(study.baseline.axis(axis)) for axis in axes},
        "best": {axis: as_data(best.axis(axis)) for axis in axes},
        "drop": as_data(best.drop),
        "tested": dict(mine[-1].figures) if mine else None,
        "sentence": f"{figures['header']['metric']['name']} {quality['value']:.2f} as trained; {told}",
    }
