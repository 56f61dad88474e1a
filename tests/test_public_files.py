"""What a public forge reads: workflows, the citation, the security page; each says what the project is now."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(file: Path) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the docs extra")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    """Every step of every job."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_calls_what_there_is(file):
    workflow = read(file)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.2.3")), (
            "an action is pinned by its version"
        )
        assert set(re.findall(r"\bmake ([a-z]+)", step.get("run", ""))) <= targets
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())
    assert workflow["permissions"] == {"contents": "read"}


def test_ci_runs_the_oldest_python_and_newer_ones():
    job = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    versions = job["strategy"]["matrix"]["python"]
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=")
    assert len(versions) >= 2


def test_a_release_keeps_no_password():
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version():
    cited = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_security_page_names_options_that_there_are(capsys):
    from equipoise.cli import VERBS, main

    for verb in VERBS:
        main([verb, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"`[^`]*?(--[a-z-]+)[^`]*`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    assert {"--trust-nothing", "--token-file"} <= named <= known
