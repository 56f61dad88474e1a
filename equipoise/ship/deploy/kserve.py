"""A KServe InferenceService around the image of `docker`: what answers is the Open Inference Protocol, which KServe speaks.

References:
    KServe, "Custom predictor", serving.kserve.io/v1beta1: https://kserve.github.io/website
"""

from __future__ import annotations

import json
from typing import Any

from equipoise.ship.deploy import docker
from equipoise.ship.deploy.ladder import Rungs

GRACE_S = 30
"""Seconds that a pod is given to answer what it took: more than the server needs at most."""


def files(rungs: Rungs) -> dict[str, bytes]:
    """Return the files of the image, and the manifest: JSON, which every reader of YAML reads."""
    return {**docker.files(rungs), "inferenceservice.yaml": (json.dumps(_service(rungs), indent=2) + "\n").encode()}


def _service(rungs: Rungs) -> dict[str, Any]:
    """Return the InferenceService; the token is in a secret, its name the model's and ``-token``, its key ``token``."""
    size = max(sum(entry["bytes"] for entry in artifact.manifest["files"].values()) for artifact in rungs.artifacts)
    memory = f"{512 + 4 * len(rungs.artifacts) * size // 2**20}Mi"
    container = {
        "name": "kserve-container",
        "image": rungs.name,
        "args": ["--slo", docker.SLO],
        "ports": [{"containerPort": docker.PORT, "protocol": "TCP", "name": "http1"}],
        "resources": {"requests": {"cpu": "1", "memory": memory}, "limits": {"cpu": "2", "memory": memory}},
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": docker.PORT}, "periodSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": docker.PORT},
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
        },
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 65534},
        "volumeMounts": [{"name": "token", "mountPath": docker.TOKEN, "subPath": "token", "readOnly": True}],
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": rungs.name},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "terminationGracePeriodSeconds": GRACE_S,
                "containers": [container],
                "volumes": [{"name": "token", "secret": {"secretName": f"{rungs.name}-token"}}],
            }
        },
    }
