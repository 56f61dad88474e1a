"""``equipoise export STUDY``: one point of a study as a folder that can ship, or its front as what a server deploys."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from equipoise.cli.arguments import option, place
from equipoise.errors import EXIT_OK, InputError

FORMS = ("docker", "kserve", "ray-serve", "triton")


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write one point of a study as a folder that can ship",
        description="Write the very file that was scored, with what it promises and what is needed to check it: model file, "
        "safetensors, manifest.json, model card and the untouched model for comparison. The folder is printed on stdout. "
        "With --as: the whole front, each rung such a folder, and what a server wants around them.",
    )
    option(parser, "study", place, metavar="STUDY", help="folder of the study, or its address (what --store named)")
    parser.add_argument(
        "--pick",
        metavar="WHICH",
        default="best",
        help='best (within the study\'s budget, the default), knee, fastest, smallest, or a budget such as "latency<=1ms"; '
        'with --as: bounds of the ladder, such as "drop<=1"',
    )
    parser.add_argument(
        "--as", dest="form", choices=FORMS, help="write the front for a server: Triton, Ray Serve, KServe, or a container image"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write; absent or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an artifact that stands in DIR; not for --as")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the folder's name")


def run(args: argparse.Namespace) -> int:
    """Pick, write the folder, print its name and what it gains."""
    import json
    import sys

    from equipoise.ship.deploy.forms import deployed
    from equipoise.ship.export import export
    from equipoise.study.record import Study

    if args.form is not None:
        if args.overwrite or args.json:
            raise InputError("--overwrite and --json are of one artifact. With --as leave them out, and remove an old folder.")
        print(deployed(args.study, args.form, out=args.out, pick=args.pick))
        return EXIT_OK
    artifact = export(args.study, args.pick, out=args.out, overwrite=args.overwrite)
    study = Study.load(args.study)
    shipped = next(e for e in study.usable if e.plan == artifact.plan)
    print(study.sentence(shipped), file=sys.stderr)
    print(json.dumps(artifact.manifest, indent=2, sort_keys=True) if args.json else artifact.path)
    return EXIT_OK
