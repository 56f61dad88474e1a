"""The front in the forms that servers take: read back by what the servers themselves read, or by the shapes they publish."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import types
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise import cli
from equipoise.cli import export as verb
from equipoise.errors import InputError
from equipoise.runtimes.base import get
from equipoise.ship.artifact import Artifact
from equipoise.ship.deploy import forms
from equipoise.ship.deploy.forms import FORMS, deployed
from equipoise.ship.deploy.ladder import Rungs
from equipoise.study.record import Study
from equipoise.study.tested import exports_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("deployed")
    return {form: deployed(study, form, out=out / form, pick="drop<=50") for form in FORMS}


def test_every_form_holds_the_rungs_the_best_first(made: dict[str, Path], study: Path) -> None:
    front = sorted((e for e in Study.load(study).front if e.drop.get() <= 50), key=lambda e: e.drop.get())
    assert len(front) >= 2
    assert tuple(FORMS) == verb.FORMS
    for folder in made.values():
        artifacts = [Artifact.load(folder / "rungs" / f"rung{n}") for n in range(len(front))]
        assert [a.promise["drop"].get() for a in artifacts] == [e.drop.get() for e in front]
        assert not (folder / "rungs" / f"rung{len(front)}").exists()


def test_triton_finds_a_version_for_each_rung_and_the_best_is_the_latest(made: dict[str, Path]) -> None:
    folder = made["triton"]
    (model,) = (folder / "repository").iterdir()
    versions = sorted((int(each.name) for each in model.iterdir() if each.is_dir()), reverse=True)
    text = (model / "config.pbtxt").read_text()
    named = dict(re.findall(r'name: "(\w+)" data_type: TYPE_FP32 dims: \[ ([\d, ]+) \]', text))
    for rung, number in enumerate(versions):
        program = Artifact.load(folder / "rungs" / f"rung{rung}").program
        assert {f.name: f.read_bytes() for f in (model / str(number)).iterdir()} == program.files
        assert f'"rung_{number}" value {{ string_value: "rung{rung}: drop' in text
    shapes = {name: [int(axis) for axis in dims.split(",")] for name, dims in named.items()}
    answered = get(program.runtime).load(program).run(np.zeros((3, *shapes["input"]), np.float32))
    assert [3, *shapes["output"]] == [*answered.shape]


def test_tritons_own_schema_reads_the_config(made: dict[str, Path]) -> None:
    client = pytest.importorskip("tritonclient")  # its schema alone: the client itself would need grpc
    from google.protobuf import text_format

    file = Path(client.__file__).with_name("grpc") / "model_config_pb2.py"
    spec = spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    model_config: Any = module_from_spec(spec)
    spec.loader.exec_module(model_config)
    (file,) = (made["triton"] / "repository").glob("*/config.pbtxt")
    read = text_format.Parse(file.read_text(), model_config.ModelConfig())
    assert (read.name, read.backend, read.max_batch_size) == (file.parent.name, "onnxruntime", 16)
    assert [i.name for i in read.input] == ["input"]
    assert read.HasField("dynamic_batching")
    assert read.version_policy.HasField("all")
    assert read.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_CPU
    assert read.parameters["intra_op_thread_count"].string_value == "1"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(file.read_text().replace("max_batch_size", "most"), model_config.ModelConfig())


def stages(dockerfile: Path) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_copies_what_is_there_and_runs_what_this_command_line_takes(made: dict[str, Path]) -> None:
    folder = made["docker"]
    found = stages(folder / "Dockerfile")
    assert found[0][0] == "FROM"
    assert {word for word, _ in found} <= {
        *("FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    }
    for word, rest in found:
        if word == "COPY":
            assert (folder / rest.split()[0]).exists()
    told = dict(found)
    words = [*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])]
    args = cli._parser("serve")[0].parse_args(words[1:])
    assert [folder / source for source in args.source] == sorted((folder / "rungs").iterdir())
    assert (args.host, str(args.port)) == ("0.0.0.0", told["EXPOSE"])
    assert str(args.token_file) == "/run/secrets/token"
    compile(json.loads(told["HEALTHCHECK"].removeprefix("CMD "))[2], "healthcheck", "exec")


def test_the_image_installs_the_versions_that_were_measured(made: dict[str, Path]) -> None:
    from packaging.requirements import Requirement

    rows = [Requirement(line) for line in (made["docker"] / "requirements.txt").read_text().splitlines()]
    assert {row.name for row in rows} == {"equipoise", "onnxruntime"}
    assert all(row.specifier.contains(version(row.name)) for row in rows)
    assert rows[0].extras == {"serve"}


@pytest.mark.parametrize("form", ["docker", "kserve"])
def test_an_image_of_a_runtime_that_no_package_index_gives_it_is_refused(form: str, tmp_path: Path) -> None:
    claims = types.SimpleNamespace(recorded=types.SimpleNamespace(machine={}))
    artifact: Any = types.SimpleNamespace(
        path=tmp_path / "rung0", claims=claims, program=types.SimpleNamespace(runtime="litert"), manifest={"files": {}}
    )
    with pytest.raises(InputError, match="litert"):
        FORMS[form](Rungs("model", tmp_path, (artifact,)))


def test_kserve_is_told_a_predictor_of_its_schema(made: dict[str, Path]) -> None:
    service = json.loads((made["kserve"] / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    predictor = service["spec"]["predictor"]
    assert predictor.keys() == {"minReplicas", "terminationGracePeriodSeconds", "containers", "volumes"}
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    (port,) = container["ports"]
    assert port == {"containerPort": 8000, "protocol": "TCP", "name": "http1"}
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["containerPort"]}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in predictor["volumes"]}
    told = dict(stages(made["kserve"] / "Dockerfile"))
    assert container["args"] == json.loads(told["CMD"])
    assert container["volumeMounts"][0]["mountPath"] in json.loads(told["ENTRYPOINT"])
    assert re.fullmatch(r"\d+Mi", container["resources"]["limits"]["memory"])


async def fetched(app: Any, path: str) -> tuple[int, Any]:
    """Return status and JSON of a GET, asked of the application itself."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_the_module_for_ray_builds_the_application(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Ray: what it is given is the builder, which a replica calls in the folder."""
    pytest.importorskip("fastapi")
    given: list[Any] = []

    def ingress(builder: Any) -> Any:
        given.append(builder)
        return lambda: None

    bound = types.SimpleNamespace(bind=lambda: "bound")
    stand_in = types.SimpleNamespace(ingress=ingress, deployment=lambda _, name: bound, Application=object)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(serve=stand_in))
    monkeypatch.chdir(made["ray-serve"])
    config = json.loads(Path("serve_config.yaml").read_text())
    (one,) = config["applications"]
    module, _, name = one["import_path"].partition(":")
    space: dict[str, Any] = {}
    exec(compile(Path(f"{module}.py").read_text(), module, "exec"), space)
    assert space[name](one["args"]) == "bound"
    status, told = asyncio.run(fetched(given[0](), f"/v2/models/{one['name']}"))
    assert status == 200
    assert set(told["versions"]) <= {each.name for each in Path("rungs").iterdir()}


def test_rays_own_schema_reads_the_config(made: dict[str, Path]) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    read = schema.ServeDeploySchema.model_validate(json.loads((made["ray-serve"] / "serve_config.yaml").read_text()))
    assert read.applications[0].deployments[0].name == "ladder"


@pytest.mark.parametrize(
    ("form", "pick", "told"),
    [
        ("triton", "knee", "--pick must be best or bounds"),
        ("triton", "latency<=1ms", "bounds drop and quality"),
        ("tritn", "best", "triton"),
    ],
)
def test_what_is_no_ladder_is_told(study: Path, tmp_path: Path, form: str, pick: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        deployed(study, form, out=tmp_path / "out", pick=pick)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(study: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="absent or empty"):
        deployed(study, "docker", out=tmp_path)


def test_an_export_that_is_interrupted_leaves_nothing_and_can_be_begun_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> dict[str, bytes]:
        raise KeyboardInterrupt

    monkeypatch.setattr(forms, "FORMS", {**FORMS, "kserve": interrupted})
    out = tmp_path / "deployed" / "out"
    with pytest.raises(KeyboardInterrupt):
        deployed(study, "kserve", out=out, pick="drop<=50")
    assert not any(out.parent.iterdir())
    deployed(study, "ray-serve", out=out, pick="drop<=50")
    assert [each.name for each in out.parent.iterdir()] == ["out"]
    config = json.loads((out / "serve_config.yaml").read_text())
    assert config["applications"][0]["runtime_env"]["working_dir"] == f"local://{out}"
    told = [Path(os.path.normpath(study / row["path"])) for row in exports_of(study)]
    assert {out / "rungs" / "rung0", out / "rungs" / "rung1"} <= {*told}
