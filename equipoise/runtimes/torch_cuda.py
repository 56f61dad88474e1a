"""PyTorch on an NVIDIA GPU: channels last, each request played from a CUDA graph; and the same after its own compiler.

A request is what a user waits for: from an array in the machine's memory to an array there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.records import Choice
from equipoise.runtimes import cuda
from equipoise.runtimes.base import Program, Session, Source, check_schemes
from equipoise.runtimes.torch_eager import TorchEager, loaded, taken, unfit

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchCuda(TorchEager):
    """PyTorch on a GPU without its compiler. See `base.Runtime` for the methods."""

    name = "torch:cuda"
    precisions: tuple[Choice, ...] = (32, "fp16", "bf16")
    libraries = ("torch",)
    runs_code = True

    def unavailable(self) -> str:
        """Return why there is no GPU to use, with the remedy; empty where there is one."""
        why: str = cuda.card.missing()
        return why

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the module as a ``torch.export`` file with a free first axis, the named layers in half precision.

        Raises:
            InputError: As of `TorchEager`, or a layer that is not there.
        """
        from equipoise.runtimes.half_precision import halved

        held = check_schemes(self.name, self.precisions, schemes)
        if held and source.model is not None:
            source = replace(source, model=halved(source.model, held))
        made = super().compile(source, calibration=calibration, float_layers=float_layers)
        return replace(made, precision="mixed" if held else "fp32")

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session on the GPU; with a `batch` its request is recorded and played."""
        import torch
        from torch.export.passes import move_to_device_pass

        exported, names = loaded(program, self.name)
        module: Any = move_to_device_pass(exported, cuda.card.device).module(check_guards=False)
        return _Session(self._ready(module.to(memory_format=torch.channels_last)), names, batch)

    def _ready(self, module: nn.Module) -> Callable[..., Tensor]:
        return module


class InductorCuda(TorchCuda):
    """PyTorch's compiler on a GPU; a program is compiled when it is loaded, as torch caches it on the disk."""

    name = "inductor:cuda"
    runs_code = True

    def _ready(self, module: nn.Module) -> Callable[..., Tensor]:
        import torch

        return torch.compile(module, dynamic=False)


class _Session:
    """Requests of one size are played from a recording, others are run as they come."""

    def __init__(self, call: Callable[..., Tensor], names: Sequence[str], batch: int | None) -> None:
        self._call, self._names, self._batch = call, names, batch
        self._given: list[Tensor] = []
        self._held: list[Tensor] = []
        self._play: Callable[[], object] | None = None
        self._answer: Tensor | None = None

    def run(self, inputs: Inputs) -> NDArray[Any]:
        import torch

        given = taken(inputs, self._names, self._batch)
        try:
            with torch.inference_mode(), _exact(choosing=self._batch is not None):
                answer = self._run(given) if self._batch is None else self._played(given)
                result: NDArray[Any] = answer.to("cpu", copy=True).numpy()
        except Exception as error:
            raise unfit(error) from error
        return result

    def again(self) -> None:
        import torch

        with torch.inference_mode(), _exact(choosing=self._play is not None):
            self._play() if self._play is not None else self._call(*self._given)
        cuda.card.wait()

    def _run(self, given: Sequence[Tensor]) -> Tensor:
        self._given = [_laid(value.to(cuda.card.device)) for value in given]
        return self._call(*self._given)

    def _played(self, given: Sequence[Tensor]) -> Tensor:
        if self._play is None or [(v.shape, v.dtype) for v in given] != [(v.shape, v.dtype) for v in self._given]:
            self._held = [cuda.card.pinned(value) for value in given]
            self._given = [_laid(value.to(cuda.card.device)) for value in given]
            self._play, self._answer = cuda.card.played(self._call, self._given)
        for there, held, value in zip(self._given, self._held, given, strict=True):
            held.copy_(value)
            there.copy_(held, non_blocking=True)
        self._play()
        assert self._answer is not None
        return self._answer


def _exact(*, choosing: bool) -> AbstractContextManager[None]:
    """Return the context in which floats are multiplied as floats; convolutions may be tried for the quickest kernel."""
    import torch

    found: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, benchmark=choosing, allow_tf32=False)
    return found


def _laid(value: Tensor) -> Tensor:
    """Return images with channels last, which is how the card's matrix units read them."""
    import torch

    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.contiguous()
