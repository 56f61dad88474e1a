"""Models of Hugging Face's library from small configurations with random weights: encoders, decoders, both, images, sounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hugging_face
import torch
from torch import Tensor, nn
from vision_zoo import lively

TOKENS, LENGTH, SIDE = 50, 16, 32
Source = torch.Generator

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_NO_FORM = "must be one that ONNX can express"
_TOKENS = {"vocab_size": TOKENS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PLACES = {"max_position_embeddings": 24}
_LLAMA = {**_BERT, "num_key_value_heads": 2, **_PLACES, "use_cache": False}
_BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_BART |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, **_PLACES, "use_cache": False}
_VIT = {**_BERT, "image_size": SIDE, "patch_size": 8}
_SWIN = {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False}
_SOUND = {**_BERT, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
_SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "conv_bias": True}


def _ids(count: int, source: Source, length: int = LENGTH) -> Tensor:
    return torch.randint(3, TOKENS, (count, length), generator=source)


def _text(count: int, source: Source) -> dict[str, Tensor]:
    """Token ids and a mask; every second row is padded."""
    mask = torch.ones(count, LENGTH, dtype=torch.long)
    mask[1::2, LENGTH - 4 :] = 0
    return {"input_ids": _ids(count, source), "attention_mask": mask}


def _both(count: int, source: Source) -> dict[str, Tensor]:
    """A text to read and the beginning of one to write."""
    return {**_text(count, source), "decoder_input_ids": _ids(count, source, 7)}


def _image(count: int, source: Source) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=source)


def _sound(count: int, source: Source) -> Tensor:
    return torch.randn(count, 400, generator=source)


def _spectrum(count: int, source: Source) -> dict[str, Tensor]:
    return {"input_features": torch.randn(count, 16, 40, generator=source), "decoder_input_ids": _ids(count, source, 7)}


def _captioned(count: int, source: Source) -> dict[str, Tensor]:
    return {**_text(count, source), "pixel_values": _image(count, source)}


@dataclass(frozen=True)
class Pretrained:
    """A model of the library: the classes that make it, what makes it small, its inputs, and which output is judged."""

    name: str
    task: str
    sizes: Mapping[str, Any]
    given: Callable[[int, Source], Any] = _text
    output: Any = None
    refused: str = ""
    kind: str = field(default="text", kw_only=True)

    def __str__(self) -> str:
        return f"transformers:{self.name}"

    def inputs(self, count: int) -> Any:
        """Return `count` inputs from a fixed seed."""
        return self.given(count, torch.Generator().manual_seed(1))

    def built(self) -> nn.Module:
        """Return the model in evaluation mode, with weights from a fixed seed."""
        library = hugging_face.transformers()
        torch.manual_seed(0)
        text = _TOKENS if self.given not in (_image, _sound) else {}
        config = getattr(library, f"{self.name}Config")(**{**text, **self.sizes})
        model: nn.Module = getattr(library, self.name + self.task)(config)
        lively(model, self.inputs(16))
        return model.eval()


SENTENCES, PICTURES, NEXT = "ForSequenceClassification", "ForImageClassification", "ForCausalLM"

HUGGING_FACE: tuple[Pretrained, ...] = (
    Pretrained("Bert", SENTENCES, {**_BERT, **_PLACES}),
    Pretrained("Roberta", SENTENCES, {**_BERT, **_PLACES}),
    Pretrained("XLMRoberta", "ForTokenClassification", {**_BERT, **_PLACES}),
    Pretrained("DistilBert", SENTENCES, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **_PLACES}),
    Pretrained("Albert", SENTENCES, {**_BERT, **_PLACES, "embedding_size": 16}),
    Pretrained("Electra", SENTENCES, {**_BERT, **_PLACES, "embedding_size": 16}),
    Pretrained("MPNet", SENTENCES, {**_BERT, **_PLACES}),
    Pretrained("DebertaV2", SENTENCES, {**_BERT, **_PLACES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Pretrained("SqueezeBert", SENTENCES, {**_BERT, **_PLACES, "embedding_size": 32}),
    Pretrained(
        "MobileBert", SENTENCES, {**_BERT, **_PLACES, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    ),
    Pretrained("FNet", SENTENCES, {**_BERT, **_PLACES}, lambda n, g: {"input_ids": _ids(n, g)}),
    Pretrained("ModernBert", SENTENCES, {**_BERT, **_PLACES, "global_attn_every_n_layers": 2, "local_attention": 8}),
    Pretrained("GPT2", "LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}),
    Pretrained("GPTNeoX", NEXT, {**_BERT, **_PLACES, "use_cache": False}),
    Pretrained("OPT", NEXT, {**_BERT, **_PLACES, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}),
    Pretrained("Bloom", NEXT, {"hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}),
    Pretrained("Llama", NEXT, {**_LLAMA, "tie_word_embeddings": True}),
    Pretrained("Mistral", NEXT, {**_LLAMA, "sliding_window": 8}),
    Pretrained("Qwen2", NEXT, _LLAMA),
    Pretrained("Gemma", NEXT, {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    Pretrained("Phi", NEXT, {**_LLAMA, "partial_rotary_factor": 0.5}),
    Pretrained("Mixtral", NEXT, {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}, refused=_NO_FORM),
    Pretrained("Mamba", NEXT, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "use_cache": False}),
    Pretrained("T5", "ForConditionalGeneration", _T5, _both),
    Pretrained("MT5", "EncoderModel", _T5, output="last_hidden_state"),
    Pretrained("Bart", "ForConditionalGeneration", _BART, _both),
    Pretrained("Marian", "MTModel", {**_BART, "decoder_vocab_size": TOKENS}, _both),
    Pretrained("ViT", PICTURES, _VIT, _image, kind="images"),
    Pretrained("DeiT", PICTURES, _VIT, _image, kind="images"),
    Pretrained("Beit", PICTURES, {**_VIT, "use_relative_position_bias": True}, _image, kind="images"),
    Pretrained("Dinov2", PICTURES, {**_VIT, "mlp_ratio": 2}, _image, kind="images"),
    Pretrained("Swin", PICTURES, _SWIN, _image, kind="images"),
    Pretrained("Swinv2", PICTURES, _SWIN, _image, kind="images"),
    Pretrained("ConvNext", PICTURES, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, _image, kind="images"),
    Pretrained("ConvNextV2", PICTURES, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, _image, kind="images"),
    Pretrained("ResNet", PICTURES, {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}, _image, kind="images"),
    Pretrained("MobileNetV2", PICTURES, {"depth_multiplier": 0.35, "image_size": SIDE}, _image, kind="images"),
    Pretrained(
        "Segformer",
        "ForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "num_attention_heads": [1, 2],
            "sr_ratios": [2, 1],
        }
        | {"patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32},
        _image,
        kind="segmentation",
    ),
    Pretrained(
        "CLIP",
        "Model",
        {"text_config": {**_TOKENS, **_BERT, **_PLACES}, "vision_config": _VIT, "projection_dim": 16},
        _captioned,
        "image_embeds",
        kind="several inputs or outputs",
    ),
    Pretrained("Wav2Vec2", SENTENCES, _SOUND, _sound, kind="sound"),
    Pretrained("Hubert", SENTENCES, _SOUND, _sound, kind="sound"),
    Pretrained(
        "Whisper",
        "ForConditionalGeneration",
        {**_BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 12, "decoder_start_token_id": 1},
        _spectrum,
        kind="sound",
    ),
)
