from __future__ import annotations

import pytest

from equipoise.runtimes.base import Source
from equipoise.runtimes.export import Exporter
from equipoise.testing.runtimes import probe_source


@pytest.fixture(scope="session")
def exporter() -> Exporter:
    """One exporter for all tests of the room: its first export takes seconds."""
    return Exporter()


@pytest.fixture(scope="session")
def probe(exporter: Exporter) -> Source:
    return probe_source(exporter)
