"""The stack that this thread handles signals on, put back after code that may leave one that is gone."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """``stack_t``, see sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def signal_stack() -> Iterator[None]:
    """Put the stack back that signals are handled on; where it can be neither read nor set, do nothing.

    Each core of OpenVINO (2026.4) brings one of its own on Linux, and puts the former back as it ends if its own is still the
    current one. Two that end in the order in which they began leave the stack of the first, which is gone: the next signal with
    a handler (a child that ended, where a DataLoader has had workers) then ends the process with a segmentation fault.

    References:
        ``SigAltStackSetup`` in openvinotoolkit/openvino, src/plugins/intel_cpu (openvinotoolkit/openvino#11894).
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)
