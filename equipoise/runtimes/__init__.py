"""Where models run: one file per runtime, all behind `base.Runtime`, fed by `export.Exporter`. Imports no torch by itself."""

from equipoise.runtimes.base import Program, Runtime, Session, Source, Target, available, get, parse_targets, requested

__all__ = ["Program", "Runtime", "Session", "Source", "Target", "available", "get", "parse_targets", "requested"]
