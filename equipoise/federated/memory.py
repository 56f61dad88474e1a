"""What a client keeps between rounds, by the round that made it: its control variate, what rounding left.

The server says which of its answers counted last, and the client goes on from there: an answer that was lost, or a round that
is made again after a crash, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from equipoise.federated.state import Tensors
from equipoise.training import checkpoint


@dataclass
class Memory:
    """Tensors by round, in a folder where there is one, so that a restarted client has them."""

    folder: Path | None = None
    _held: dict[int, Tensors] = field(default_factory=dict)

    def read(self, since: int) -> Tensors:
        """Return what was kept in round `since`; nothing where it is none."""
        if self.folder is None or since in self._held:
            return dict(self._held.get(since, {}))
        found = checkpoint.read(self._file(since))
        return {} if found is None else found[0]

    def keep(self, made: int, tensors: Mapping[str, Tensor], *, since: int) -> None:
        """Keep what round `made` left; of the others that of `since` alone."""
        if not tensors:
            return
        self._held = {**{r: t for r, t in self._held.items() if r == since}, made: dict(tensors)}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(self._file(made), tensors, {})
        for path in self.folder.glob("round-*.safetensors"):
            if path not in (self._file(made), self._file(since)):
                path.unlink(missing_ok=True)

    def _file(self, made: int) -> Path:
        assert self.folder is not None
        return self.folder / f"round-{made}.safetensors"
