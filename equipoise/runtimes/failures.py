"""How ONNX Runtime says that it cannot."""

from __future__ import annotations

import functools


@functools.cache
def failures() -> tuple[type[Exception], ...]:
    """Return every kind of exception by which ONNX Runtime says that a file cannot be loaded or run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = {kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    return (*own, RuntimeError, ValueError, TypeError, LookupError, AttributeError, MemoryError, OSError)
