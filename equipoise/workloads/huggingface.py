"""A pretrained encoder of texts in a local folder of Hugging Face's layout, as a classifier: to fine-tune, and to bring back.

    config.json, model.safetensors   the encoder, as `save_pretrained` writes it
    tokenizer.json                   what its token numbers mean
    head.safetensors                 weight (classes, width) and bias (classes,), once it was fine-tuned here

Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from equipoise.errors import InputError, missing_extra, must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.texts import mean_of
from equipoise.workloads.learned import learned
from equipoise.workloads.sentiment import LENGTH, sentiment_task
from equipoise.workloads.task import Shape
from equipoise.workloads.tokens import FILE

HEAD = "head.safetensors"
DROPOUT = 0.1
POOLED = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text")
"""Kinds that come with a layer on the first state, which a mean has no use for."""


class TextClassifier(nn.Module):
    """A pretrained encoder, the mean of its states over a text, dropout and a linear layer.

    Args:
        encoder: Of ``transformers``: token numbers and a mask in, ``last_hidden_state`` (N, L, width) out.
        outputs: Classes.
        padding: The token that fills rows up; the mask is made of it, so that the model takes one input.
    """

    def __init__(self, encoder: Any, outputs: int, *, padding: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.drop, self.head = nn.Dropout(DROPOUT), nn.Linear(int(encoder.config.hidden_size), outputs)
        self.padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, L) to logits (N, classes)."""
        seen = tokens != self.padding
        states = self.encoder(input_ids=tokens, attention_mask=seen.long()).last_hidden_state
        logits: Tensor = self.head(self.drop(mean_of(states, seen)))
        return logits

    def save_pretrained(self, folder: Path) -> None:
        """Write the encoder in its own layout, and the head beside it."""
        with _library():
            self.encoder.save_pretrained(folder)
        save_file({name: value.detach().contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD)


def huggingface(folder: Path) -> Family:
    """Return the family of the classifiers on the encoder in `folder`; its one dimension is how many layers are kept.

    Raises:
        InputError: No such folder, or no encoder that ``transformers`` reads.
        MissingExtraError: ``transformers`` is not installed.
    """
    layers = int(_config(folder).num_hidden_layers)
    return Family(
        f"huggingface-{folder.resolve().name}",
        (Dimension("depth", layers, tuple(range(1, layers + 1)), most=layers),),
        build=lambda scale, shape: _built(folder, scale, shape),
        kinds=("tokens",),
        cost=lambda scale: scale["depth"],
        growth={"depth": 1.0},
        pretrained=True,
    )


def sentiment_workload(
    path: Path, *, model: str, weights: Path | None = None, length: int = LENGTH, name: str = "sentiment", **options: Any
) -> Workload:
    """Return the workload of a classifier that was trained on texts like these.

    Args:
        path, length, name, options: As of `sentiment.sentiment_task`.
        model: Folder with a fine-tuned encoder, its head and its tokenizer; or with `weights` a family, perhaps with its scale.
        weights: State dict of the family's model.
    Raises:
        InputError: The texts, the folder or the weights cannot be used.
    """
    if weights is not None:
        return learned(lambda family: sentiment_task(path, length=length, name=name, **options), model, weights)
    folder = Path(model)
    if not (folder / HEAD).is_file():
        remedy = f"Fine-tune it first: equipoise train huggingface:{model} sentiment:{path}?tokenizer={model}."
        raise must_be("model", f"a folder with {HEAD}, or a family with weights=FILE", model, remedy)
    task = sentiment_task(path, length=length, name=name, **{**options, "tokenizer": folder})
    return task.workload(_built(folder, {"depth": int(_config(folder).num_hidden_layers)}, task.shape))


def _config(folder: Path) -> Any:
    """Read ``config.json`` by ``transformers``, from this folder alone."""
    if not (folder / "config.json").is_file():
        remedy = "Name the folder of a Hugging Face model: config.json, model.safetensors and tokenizer.json."
        raise must_be("huggingface", "a folder with a config.json", str(folder), remedy)
    with _library() as transformers:
        try:
            found = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise must_be(f"config.json in {folder}", "of an architecture that transformers knows", str(error), "") from error
    encoder = hasattr(found, "num_hidden_layers") and hasattr(found, "hidden_size") and hasattr(found, "vocab_size")
    if not encoder or found.is_encoder_decoder:
        raise must_be(f"config.json in {folder}", "of an encoder of texts", found.model_type, "Take BERT or one like it.")
    return found


def _built(folder: Path, scale: Scale, shape: Shape) -> TextClassifier:
    config = _config(folder)
    tokens, places = int(config.vocab_size), int(getattr(config, "max_position_embeddings", 0) or shape.sample[0])
    if shape.vocabulary is None or shape.vocabulary > tokens:
        remedy = f"Its tokens are its own: write sentiment:DATA?tokenizer={folder}."
        raise must_be("vocabulary", f"the {tokens} tokens of {folder.name}", shape.vocabulary, remedy)
    if shape.sample[0] > places:
        raise must_be("length", f"at most the {places} positions of {folder.name}", shape.sample[0], "Write ?length=64.")
    if shape.vocabulary < tokens // 2 and (folder / FILE).is_file():
        remedy = f"Its tokens are its own: write sentiment:DATA?tokenizer={folder}."
        raise must_be("vocabulary", f"that of {folder.name}, of {tokens} tokens", shape.vocabulary, remedy)
    config.num_hidden_layers = int(scale["depth"])
    options = {"add_pooling_layer": False} if config.model_type in POOLED else {}
    with _library() as transformers:
        try:
            encoder = transformers.AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32, **options
            )
        except (OSError, ValueError) as error:
            raise must_be(f"weights in {folder}", "a model.safetensors that fits", str(error), "Save it anew.") from error
    net = TextClassifier(encoder, shape.outputs, padding=shape.padding)
    _load_head(net, folder / HEAD)
    return net


def _load_head(net: TextClassifier, file: Path) -> None:
    """Take the head that was fine-tuned, where there is one of as many classes."""
    if not file.is_file():
        return
    try:
        held = load_file(file)
    except (SafetensorError, OSError) as error:
        raise must_be(str(file), "a safetensors file", str(error), "Save it anew, or delete it for a fresh head.") from error
    if {name: value.shape for name, value in held.items()} == {n: v.shape for n, v in net.head.state_dict().items()}:
        net.head.load_state_dict(held)
        return
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    classes = net.head.out_features
    raise must_be(str(file), f"of {classes} classes", shapes, "Delete it for a fresh head.")


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """Return ``transformers``, silent meanwhile on what is left out of a file and on how far it has read."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "text") from error
    bars: Any = transformers.utils.logging
    log = logging.getLogger("transformers")
    before, shown = log.level, bars.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield transformers
    except ModuleNotFoundError as error:  # its own parts are imported when they are first used
        why = str(error.__cause__ or error).splitlines()[0]  # its own line only names the class
        remedy = " Install the torchvision that was built for this torch, or none." if "torchvision" in why else ""
        raise InputError(f"transformers cannot be used here: {why}.{remedy}") from error
    finally:
        log.setLevel(before)
        if shown:
            bars.enable_progress_bar()
