"""Contract suites that every extension must pass; imported by no other room. Each is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.testing.families import check_family as check_family
    from equipoise.testing.runtimes import check_runtime as check_runtime
    from equipoise.testing.techniques import check_technique as check_technique

__all__ = ["check_family", "check_runtime", "check_technique"]

_PLACES = {"check_family": "families", "check_runtime": "runtimes", "check_technique": "techniques"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
