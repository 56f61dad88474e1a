"""The graphics card as the runtimes need it: whether there is one, and calls recorded once and played again.

`card` is the seam: a test puts a `Card` of the CPU there, and every path but the card's own kernels runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))
"""Where Linux has NVIDIA's driver, the last under Windows: without any of them torch need not be loaded to know."""
WARM = 3
"""Calls before a recording: libraries choose their kernels and take their memory in the first ones."""
LIKED = 8
"""Multiple of channels at which the matrix units waste nothing: they read half precision by 16 bytes."""


class Card:
    """NVIDIA's first graphics card, through torch."""

    @property
    def device(self) -> torch.device:
        """Where tensors lie."""
        import torch

        return torch.device("cuda", 0)

    def missing(self) -> str:
        """Return why it cannot be used here, with the remedy; empty where it can."""
        if sys.platform == "linux" and not any(driver.exists() for driver in DRIVERS):
            return "this machine has no NVIDIA GPU, or not its driver: run where there is one"
        import torch

        if torch.cuda.is_available():
            return ""
        built = "sees no NVIDIA GPU" if torch.version.cuda else "is a build for the CPU"
        return f"torch {torch.__version__} {built}: install the build of torch for this machine's CUDA"

    def played(self, call: Callable[..., Tensor], given: Sequence[Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Record `call` of these very tensors as a CUDA graph.

        Returns:
            What plays it, and the tensor that then holds the answer: whoever plays it again fills `given` first.
        References:
            Gray 2019, "Getting started with CUDA graphs": what a small kernel costs is mostly its launch.
        """
        import torch

        aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                call(*given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = call(*given)
        return graph.replay, answer

    def wait(self) -> None:
        """Wait until it has done what it was asked for."""
        import torch

        torch.cuda.synchronize()

    def pinned(self, value: Tensor) -> Tensor:
        """Return an empty tensor of a value's shape and type in memory that the card reads by itself."""
        import torch

        return torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format, pin_memory=True)


card: Any = Card()
