"""A record that is a list: what a store is to a road, without a disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.road.jobs import Job


@dataclass
class Memory:
    """Results by kind and key, in the order in which they were made."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    path: Path = Path("in-memory")

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        return next((json.loads(text) for k, name, text in self.rows if (k, name) == (kind, key)), None)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(text) for k, _, text in self.rows if k == kind]

    def put(self, job: Job, data: Mapping[str, Any]) -> None:
        assert self.get(job.kind, job.key) is None, f"{job.kind} {job.key} was done twice"
        self.rows.append((job.kind, job.key, json.dumps(data)))

    @property
    def spent_s(self) -> float:
        """Seconds of all results together."""
        return float(sum(json.loads(text)["seconds"] for _, _, text in self.rows))
