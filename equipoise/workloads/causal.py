"""A causal language model of Hugging Face's library as one that reads on from what it has read."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from equipoise.errors import missing_extra

CACHES = ("cache", "past_key_values")
"""What the library calls the past, newer versions first."""


class Causal(nn.Module):
    """Map tokens (N, T) to the logits (N, V, T) of the next ones, and read on (`runtimes.decoding`).

    Args:
        model: ``AutoModelForCausalLM`` or the like, of layers that keep keys and values of all that was read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits; the class axis is the second, as cross entropy wants it."""
        out: Tensor = self.model(input_ids=tokens, use_cache=False).logits.transpose(1, 2)
        return out

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of what follows on `past`, and the past of what comes next.

        Args:
            past: Keys and values of each layer in turn, (N or 1, heads, P, features); nothing where a text begins.
        """
        try:
            from transformers import DynamicCache
        except ImportError as error:
            raise missing_extra("transformers", "text") from error
        cache: Any = DynamicCache()
        for layer in range(len(past) // 2):
            keys, values = (part.expand(len(tokens), -1, -1, -1) for part in past[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        takes = inspect.signature(self.model.forward).parameters
        name = next((name for name in CACHES if name in takes), CACHES[-1])
        logits = self.model(input_ids=tokens, use_cache=True, **{name: cache}).logits
        return logits.transpose(1, 2), tuple(part for layer in cache.layers for part in (layer.keys, layer.values))
