"""An image that serves the rungs with `equipoise serve`: a Dockerfile, and the versions that they were measured with."""

from __future__ import annotations

import json
from importlib.metadata import version

from equipoise.errors import InputError
from equipoise.ship.deploy.ladder import Rungs

PORT = 8000
SLO = "p99<=100ms"
"""What the server starts with; `docker run IMAGE --slo ...` says otherwise."""
TOKEN = "/run/secrets/token"
"""The file with the word that clients show, mounted when the image is run."""
PACKAGES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", "onnxruntime"), "torch": ("torch",)}
"""What a runtime needs at the version that it was measured with."""


def files(rungs: Rungs) -> dict[str, bytes]:
    """Return a Dockerfile and its requirements.

    Raises:
        InputError: A runtime that the image has no packages for.
    """
    return {"Dockerfile": _dockerfile(rungs).encode(), "requirements.txt": _requirements(rungs).encode()}


def command(rungs: Rungs, *, root: str = "") -> list[str]:
    """Return the words that serve the rungs to others than this machine."""
    folders = [root + folder for folder in rungs.folders]
    return [
        "equipoise",
        "serve",
        *folders,
        "--name",
        rungs.name,
        "--host",
        "0.0.0.0",
        "--port",
        str(PORT),
        "--token-file",
        TOKEN,
    ]


def _requirements(rungs: Rungs) -> str:
    pins = {"equipoise[serve]": version("equipoise")}
    for artifact in rungs.artifacts:
        if (runtime := artifact.program.runtime) not in PACKAGES:
            raise InputError(f"an image here runs {', '.join(PACKAGES)}; this front is of {runtime}. Optimize for one of them.")
        then = artifact.claims.recorded.machine.get("versions")
        for package in PACKAGES[runtime]:
            pins[package] = then[package] if isinstance(then, dict) and package in then else version(package)
    return "".join(f"{package}=={pin}\n" for package, pin in pins.items())


def _dockerfile(rungs: Rungs) -> str:
    alive = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/v2/health/live', timeout=2)"
    return f"""\
# docker build -t {rungs.name} . && docker run -p {PORT}:{PORT} -v "$PWD/token:{TOKEN}:ro" {rungs.name}
FROM python:3.11-slim
WORKDIR /srv
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY rungs rungs
USER nobody
EXPOSE {PORT}
STOPSIGNAL SIGTERM
HEALTHCHECK CMD {json.dumps(["python", "-c", alive])}
ENTRYPOINT {json.dumps(command(rungs))}
CMD {json.dumps(["--slo", SLO])}
"""
