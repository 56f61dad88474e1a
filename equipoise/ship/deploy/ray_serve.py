"""An application for a Ray cluster: a module that Ray Serve imports, and the config that `serve run` and `serve deploy` take.

References:
    Ray Serve, "Serve Config Files" and "Set Up FastAPI and HTTP": https://docs.ray.io/en/latest/serve
"""

from __future__ import annotations

import json
from typing import Any

from equipoise.ship.deploy.ladder import Rungs

APP = '''\
"""The ladder as an application of Ray Serve: each replica loads the rungs, times them where it runs, and answers by them.

    serve run serve_config.yaml        # where equipoise[serve] and ray[serve] are installed

The config names this folder, which must then lie there on every node; a URI of its zip (https, s3, gs) will do as well.
"""

from typing import Any

from ray import serve

RUNGS = {rungs}


def ladder(args: dict[str, Any]) -> serve.Application:
    def application() -> Any:
        from equipoise.serve.run import application_of

        return application_of(RUNGS, slo_s=args["slo_ms"] / 1e3, name={name!r})

    return serve.deployment(serve.ingress(application)(), name="ladder").bind()
'''


def files(rungs: Rungs) -> dict[str, bytes]:
    """Return the module and the config: JSON, which every reader of YAML reads."""
    app = APP.format(rungs=json.dumps(list(rungs.folders)), name=rungs.name)
    return {"app.py": app.encode(), "serve_config.yaml": (json.dumps(_config(rungs), indent=2) + "\n").encode()}


def _config(rungs: Rungs) -> dict[str, Any]:
    """Return the config of one application whose replicas have a core each, for a session has one thread."""
    replica = {"name": "ladder", "num_replicas": 1, "max_ongoing_requests": 1024, "ray_actor_options": {"num_cpus": 1}}
    one = {
        "name": rungs.name,
        "route_prefix": "/",
        "import_path": "app:ladder",
        "runtime_env": {"working_dir": f"local://{rungs.path.resolve().as_posix()}"},
        "args": {"slo_ms": 100},
        "deployments": [replica],
    }
    return {"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [one]}
