"""What examples/machines would start: the compose file's own commands, with the test's server in place of its database."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from databases import Server

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).resolve().parent.parent / "examples" / "machines"
ADDRESS = "postgresql://equipoise@database/equipoise"


def commands() -> dict[str, list[str]]:
    services = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]
    return {name: shlex.split(row["command"]) for name, row in services.items() if "command" in row}


def test_the_manifests_start_the_same_worker() -> None:
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["kind"] == "Job"
    assert container["args"] == commands()["worker"]
    assert container["env"][0]["name"] == "PGPASSWORD"


@pytest.mark.slow
def test_the_commands_of_the_compose_file_find_a_model_together(server: Server, tmp_path: Path) -> None:
    running = {}
    for name in ("worker", "optimize"):
        (tmp_path / name).mkdir()
        words = [server.address() if word == ADDRESS else word for word in commands()[name]]
        assert words[0] == "equipoise"
        assert server.address() in words
        running[name] = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=tmp_path / name, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    said, told = running["optimize"].communicate(timeout=600)
    assert running["optimize"].returncode == 0, told
    assert "faster" in said
    running["worker"].terminate()  # by itself it ends a minute after the study
    done, told = running["worker"].communicate(timeout=60)
    assert int(done.split()[0]) > 0, told
