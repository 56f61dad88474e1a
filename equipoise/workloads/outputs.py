"""The one output that is judged, of a model that gives several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from equipoise.errors import InputError, must_be

Key = int | str
USUAL = ("logits", "out")
"""Under these names models of many outputs give the one that their task asks for."""


BY_NAME = object()
"""Stands for a first input where all are given by name."""


class Chosen(nn.Module):
    """A model reduced to one of its outputs: what is scored, trained and exported is that one.

    Attributes:
        model: The model; its tensors are named ``model.…`` here.
        output: Position in a tuple or list, key of a mapping, or name of an attribute.
    """

    def __init__(self, model: nn.Module, output: Key) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, inputs: Any = BY_NAME, /, *others: Any, **named: Any) -> Any:
        """Return the chosen output; a model that gives one tensor (in training, perhaps) gives it unchanged."""
        answer = self.model(*(() if inputs is BY_NAME else (inputs, *others)), **named)
        return answer if isinstance(answer, Tensor) else part(answer, self.output)


def reduced(model: nn.Module, answer: Any) -> nn.Module:
    """Return the model, reduced to the output that is meant where its `answer` has several; itself where that is not clear."""
    output = None if isinstance(answer, Tensor) else usual(answer)
    return model if output is None else Chosen(model, output).train(model.training)


def part(answer: Any, output: Key) -> Any:
    """Return one of the outputs of `answer`.

    Raises:
        InputError: There is no such output.
    """
    if isinstance(output, str) and not isinstance(answer, Mapping):
        if hasattr(answer, output):
            return getattr(answer, output)
    elif isinstance(answer, (Mapping, Sequence)) or hasattr(answer, "__getitem__"):
        try:
            return answer[output]
        except (KeyError, IndexError, TypeError):
            pass
    raise must_be("output", f"one of the model's outputs ({described(answer)})", output, "Pass output=... that is among them.")


def usual(answer: Any) -> Key | None:
    """Return which output is meant where there is no doubt: the only tensor, or the one called by a usual name."""
    if isinstance(answer, Mapping):
        tensors = [key for key, value in answer.items() if isinstance(value, Tensor)]
        named = [key for key in USUAL if key in tensors]
        return named[0] if named else tensors[0] if len(tensors) == 1 else None
    named = [key for key in USUAL if isinstance(getattr(answer, key, None), Tensor)]
    if named:
        return named[0]
    if isinstance(answer, Sequence) and len(answer) == 1 and isinstance(answer[0], Tensor):
        return 0
    return None


def described(answer: Any) -> str:
    """Say in a few words what a model gave."""
    if isinstance(answer, Tensor):
        return "one tensor"
    kind = type(answer).__name__
    if isinstance(answer, Mapping):
        return f"a {kind} of " + ", ".join(f"{key!r} {_shape(value)}" for key, value in list(answer.items())[:8])
    if isinstance(answer, Sequence) and not isinstance(answer, (str, bytes)):
        return f"a {kind} of {len(answer)}: " + ", ".join(_shape(value) for value in answer[:8])
    if hasattr(answer, "__dataclass_fields__"):
        parts = ((name, getattr(answer, name)) for name in answer.__dataclass_fields__)
        return f"a {kind} of " + ", ".join(f"{name!r} {_shape(value)}" for name, value in parts if value is not None)
    return f"a {kind}"


def not_one(answer: Any) -> InputError:
    """Return the error of a model that gives something else than one tensor."""
    key: Key | None = None
    if isinstance(answer, Mapping):
        key = next((k for k, value in answer.items() if isinstance(value, Tensor)), None)
    elif isinstance(answer, Sequence) and not isinstance(answer, (str, bytes)) and answer:
        key = 0
    elif hasattr(answer, "__dataclass_fields__"):
        key = next((k for k in answer.__dataclass_fields__ if isinstance(getattr(answer, k), Tensor)), None)
    remedy = "Wrap the model to return its logits." if key is None else f"Choose one: Workload(..., output={key!r})."
    return must_be("model output", "one tensor", Described(described(answer)), remedy)


class Described(str):
    """Words that stand in a message as they are, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
