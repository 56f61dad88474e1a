"""Small models of Hugging Face's library with random weights, built from configurations; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from typing import Any
from unittest import mock

import torch
from torch import nn

INSTALLED = importlib.util.find_spec("transformers") is not None
VOCABULARY = 50


def transformers() -> Any:
    """The library, without its use of torchvision, which need not fit the torch that is installed."""
    find = importlib.util.find_spec
    with mock.patch("importlib.util.find_spec", lambda name, *more: None if "torchvision" in name else find(name, *more)):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        for names in ("Bert", "DistilBert", "Roberta", "ViT", "GPT2", "Llama", "T5"):
            getattr(transformers, f"{names}Config")
        _ = transformers.BertForSequenceClassification, transformers.T5ForConditionalGeneration, transformers.GPT2LMHeadModel
        _ = transformers.DistilBertForSequenceClassification, transformers.RobertaForSequenceClassification
        _ = transformers.LlamaForCausalLM, transformers.ViTForImageClassification
    return transformers


SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": (
        "ForSequenceClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    ),
    "Roberta": (
        "ForSequenceClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    ),
    "DistilBert": ("ForSequenceClassification", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "ViT": (
        "ForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 16}
        | {"patch_size": 4},
    ),
    "GPT2": ("LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}),
    "Llama": (
        "ForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"intermediate_size": 64, "tie_word_embeddings": True, "use_cache": False},
    ),
    "T5": (
        "ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False},
    ),
}


def made(name: str, samples: int = 2) -> tuple[nn.Module, Any]:
    """A model in evaluation mode, and inputs that it takes."""
    library, (task, sizes) = transformers(), SIZES[name]
    if name != "ViT":
        sizes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = getattr(library, name + task)(getattr(library, f"{name}Config")(**sizes)).eval()
    source = torch.Generator().manual_seed(1)
    if name == "ViT":
        return net, torch.randn(samples, 3, 16, 16, generator=source)
    inputs = {"input_ids": torch.randint(3, VOCABULARY, (samples, 12), generator=source)}
    inputs["attention_mask"] = torch.ones(samples, 12, dtype=torch.long)
    inputs["attention_mask"][1::2, 8:] = 0
    if name == "T5":
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (samples, 7), generator=source)
    return net, inputs
