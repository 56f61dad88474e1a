"""Dropout for a run: in the layers that a model has for it, or where a model without them takes it well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import nn

from equipoise.errors import must_be
from equipoise.training.blocks import has_parameters

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@contextmanager
def dropping(model: nn.Module, share: float | None) -> Iterator[None]:
    """Let `model` zero this `share` of its features at each training step, while the context lasts.

    The dropout layers of `model` all take `share`. Where it has none, the inputs of its linear layers are dropped, save those
    of the first layer: in a perceptron the hidden features, in a convolutional net what its head reads. Names and `state_dict`
    stay as they are, and nothing is dropped in evaluation mode.

    Args:
        share: From 0, less than 1; None leaves the model's own layers as they are.
    Raises:
        InputError: Nothing in `model` can drop.

    References:
        Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """
    with ExitStack() as stack:
        if share is not None:
            own = [m for m in model.modules() if isinstance(m, DROPOUTS)]
            weighted = [m for m in model.modules() if has_parameters(m)]
            linear = [] if own else [m for m in weighted[1:] if isinstance(m, nn.Linear)]
            if share and not own and not linear:
                remedy = "The model has neither a dropout layer nor a linear layer behind its first: leave it out."
                raise must_be("recipe.dropout", "0 or None for this model", share, remedy)
            for module in own:
                stack.callback(setattr, module, "p", module.p)
                module.p = share
            for layer in linear:
                stack.callback(layer.register_forward_pre_hook(_dropped(share)).remove)
        yield


def _dropped(share: float) -> Any:
    return lambda module, inputs: (F.dropout(inputs[0], share, module.training), *inputs[1:])
