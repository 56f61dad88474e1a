"""The description of the machine, on this one and on a recorded one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from equipoise.measure import machine


def test_it_describes_this_machine_as_plain_data() -> None:
    found = machine.describe()
    json.dumps(found, allow_nan=False)
    assert found["cores"] >= found["threads"] >= 1
    assert found["versions"]["torch"] == metadata.version("torch")


def test_it_reads_a_recorded_cpu(tmp_path: Path) -> None:
    recorded = tmp_path / "cpuinfo"
    recorded.write_text(
        "processor\t: 0\nmodel name\t: Server CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nmodel name: B\n"
    )
    found = machine.describe(cpuinfo=recorded)
    assert (found["cpu"], found["flags"], found["has_vnni"]) == ("Server CPU", ["avx2", "avx512_vnni"], True)
    recorded.write_text("Features\t: fp asimd asimddp\n")
    assert machine.describe(cpuinfo=recorded)["has_vnni"]
    recorded.write_text("flags\t: avx2 fma\n")
    assert not machine.describe(cpuinfo=recorded)["has_vnni"]


def test_it_works_where_there_is_no_cpuinfo(tmp_path: Path) -> None:
    found = machine.describe(cpuinfo=tmp_path / "none")
    assert found["flags"] == []
    assert not found["has_vnni"]


def test_a_package_that_is_not_there_is_left_out() -> None:
    assert machine.versions(("pytest", "no-such-package")) == {"pytest": metadata.version("pytest")}


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from equipoise.measure import machine; machine.describe(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
