"""Pictures of what a run leaves behind, for the gallery: a report as headless Chromium shows it, in few bytes.

    equipoise demo && python benchmarks/pictures.py runs/demo/report.html report-demo

A second a picture. Needs Chromium and Pillow (`pip install "equipoise[images]"`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "gallery"
COLOURS = 96
"""Enough for a page of few colours, the rare ones too, and half of the bytes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="report.html of a study, a run or a scale record")
    parser.add_argument("name", help="of the picture in docs/gallery")
    parser.add_argument("--height", type=int, default=1680, help="pixels of the page from its top (1680)")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or not args.page.is_file():
        parser.error("Chromium and a report are needed")
    target = FOLDER / f"{args.name}.png"
    with tempfile.TemporaryDirectory() as name:
        taken = Path(name) / "taken.png"
        flags = ["headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={name}", f"screenshot={taken}"]
        flags += [f"window-size=1200,{args.height}", "host-resolver-rules=MAP * ~NOTFOUND", "virtual-time-budget=4000"]
        command = [browser, *(f"--{flag}" for flag in flags), args.page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(taken) as picture:
            few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
