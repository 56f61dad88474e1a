"""``equipoise doctor``: what can be measured and run on this machine, and what to install for the rest."""

from __future__ import annotations

import argparse
import re
from importlib import metadata
from typing import Any

from equipoise.errors import EXIT_OK

SAFE_WAL = (3, 51, 3)
"""First SQLite whose write-ahead log cannot corrupt a database of several writers; we use a rollback journal on all."""


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="what can be measured and run on this machine",
        description="Tell versions, CPU features, the int8 scheme that is right here and why, which runtimes and energy meters "
        "can be used, and the pip line for what is missing. Changes nothing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the findings and return 0."""
    found = examine()
    if args.json:
        import json

        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _show(found)
    return EXIT_OK


def examine() -> dict[str, Any]:
    """Return what can be measured and run here, as plain JSON data."""
    import shutil
    from pathlib import Path

    from equipoise.measure import energy, machine
    from equipoise.runtimes.cpu import has_exact_int8

    held = machine.describe()
    meters = {"RAPL": energy.rapl(), "NVML": energy.nvml()}
    here = Path.cwd()
    return {
        "schema_version": 1,
        "machine": held,
        "int8": int8_schemes(has_exact_int8()),
        "runtimes": _runtimes(),
        "energy": {name: {"available": access.meter is not None, "reason": access.reason} for name, access in meters.items()},
        "sqlite": _sqlite(held["sqlite"]),
        "disk": {"folder": str(here), "free_bytes": shutil.disk_usage(here).free},
        "extras": extras(),
    }


XNNPACK = {
    "scheme": "signed 8-bit activations, signed 8-bit weights per channel",
    "why": "XNNPACK widens 8-bit products to 32 bits before it adds them",
}


def int8_schemes(exact: bool) -> dict[str, dict[str, str]]:
    """Return runtime -> the int8 scheme it uses, and why, on a CPU whose 8-bit products are `exact` at full speed or not."""
    bits = "8" if exact else "7"
    why = "this CPU adds 8-bit products exactly"
    if not exact:
        why = "no VNNI: 8-bit products are added in 16 bits, which full-range weights overflow; 7 bits are exact and as fast"
    return {
        "onnxruntime": {"scheme": f"unsigned 8-bit activations, signed {bits}-bit weights per channel", "why": why},
        "openvino": {"scheme": f"NNCF's 8-bit activations, signed {bits}-bit weights per channel", "why": why},
        **dict.fromkeys(("executorch", "litert"), XNNPACK),
    }


def extras(distribution: str = "equipoise") -> list[dict[str, Any]]:
    """Return the optional extras of the installed `distribution`: packages, versions found, and the pip line."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires(distribution) or []:
        match = re.match(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if match:
            wanted.setdefault(match[2], []).append(match[1])
    rows = []
    for extra, packages in wanted.items():
        found = {package: _version(package) for package in packages}
        rows.append(
            {
                "extra": extra,
                "packages": found,
                "installed": None not in found.values(),
                "pip": f'pip install "{distribution}[{extra}]"',
            }
        )
    return rows


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _runtimes() -> dict[str, dict[str, Any]]:
    """Each runtime of the table: usable or why not, and the bits it computes in."""
    from equipoise.runtimes.base import RUNTIMES, get

    found = {}
    for name in RUNTIMES:
        runtime = get(name)
        reason = runtime.unavailable()
        found[name] = {"available": not reason, "reason": reason, "bits": list(runtime.precisions)}
    return found


def _sqlite(version: str) -> dict[str, Any]:
    fixed = tuple(map(int, version.split("."))) >= SAFE_WAL
    note = "" if fixed else "its write-ahead log can corrupt; studies use a rollback journal, which is safe"
    return {"version": version, "note": note}


def _show(found: dict[str, Any]) -> None:
    """One line per finding: what, whether, and what to do."""
    from rich.table import Table
    from rich.text import Text

    from equipoise.cli.terminal import console
    from equipoise.units import show

    held = found["machine"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()

    def row(what: str, mark: str, text: str) -> None:
        table.add_row(what, Text(mark, style={"yes": "green", "no": "yellow"}.get(mark, "")), text)

    row("CPU", "", f"{held['cpu']}, {held['cores']} cores, {held['threads']} for us, {' '.join(held['flags'])}")
    row("exact 8-bit products", "yes" if held["has_vnni"] else "no", "VNNI, AMX or Arm dot product")
    memory = "unknown" if held["memory_bytes"] is None else show(held["memory_bytes"], "B")
    load = "" if held["load"] is None else f", load {held['load']}"
    row("system", "", f"{held['os']}, Python {held['python']}, memory {memory}{load}{', virtual' if held['virtual'] else ''}")
    row("packages", "", ", ".join(f"{name} {version}" for name, version in held["versions"].items()))
    for name, runtime in found["runtimes"].items():
        bits = " and ".join(map(str, runtime["bits"])) + " bits"
        row(f"runtime {name}", "yes" if runtime["available"] else "no", runtime["reason"] or bits)
        if runtime["available"] and 8 in runtime["bits"]:
            scheme = found["int8"].get(name, {"scheme": "the runtime's own", "why": "not listed"})
            row("  its int8", "", f"{scheme['scheme']}: {scheme['why']}")
    for name, meter in found["energy"].items():
        row(f"energy by {name}", "yes" if meter["available"] else "no", meter["reason"])
    row("SQLite", "", " ".join((found["sqlite"]["version"], found["sqlite"]["note"])).strip())
    row("free disk", "", f"{show(found['disk']['free_bytes'], 'B')} in {found['disk']['folder']}")
    for extra in found["extras"]:
        missing = [package for package, version in extra["packages"].items() if version is None]
        text = "" if extra["installed"] else f"missing {', '.join(missing)}: {extra['pip']}"
        row(f"extra {extra['extra']}", "yes" if extra["installed"] else "no", text)
    console().print(table)
