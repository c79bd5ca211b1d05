"""Gemma 3 text decoder, the language model of 2.0 and 2.3 (12B: 48 layers, 49 hidden states)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import require
from .decoder import AttentionConfig, DecoderConfig, TextDecoder
from .hf_config import FULL, SLIDING, layer_types, text_section

_LEGAL = {
    "model_type": ("gemma3_text",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
}


class Gemma3Config(DecoderConfig):
    """Sizes of a Gemma 3 text decoder; what a config does not name is taken from the 12B model."""

    @classmethod
    def from_metadata(cls, hf_text_config: Mapping[str, Any]) -> Gemma3Config:
        """Build from a Hugging Face config, nested (`text_config`) or the text part alone."""
        raw = text_section(hf_text_config, "gemma3")
        require(raw, _LEGAL, "text_config")
        rope = _rope(raw)
        sliding = AttentionConfig(
            heads=raw.get("num_attention_heads", 16),
            kv_heads=raw.get("num_key_value_heads", 8),
            head_dim=raw.get("head_dim", 256),
            scale=raw.get("query_pre_attn_scalar", 256) ** -0.5,
            rope_theta=rope[SLIDING].get("rope_theta", 10_000),
            window=raw.get("sliding_window", 1024),
        )
        full = replace(
            sliding,
            rope_theta=rope[FULL].get("rope_theta", 1_000_000),
            rope_factor=rope[FULL].get("factor", 1.0),
            window=None,
        )
        kinds = {SLIDING: sliding, FULL: full}
        return cls(
            vocab_size=raw.get("vocab_size", 262_208),
            width=raw.get("hidden_size", 3840),
            intermediate=raw.get("intermediate_size", 15_360),
            layers=tuple(kinds[name] for name in layer_types(raw)),
            norm_offset=1.0,
            layer_scalar=False,
            eps=raw.get("rms_norm_eps", 1e-6),
        )


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Rotary settings per layer kind: nested as transformers 5 writes them, or the older keys."""
    rope = raw.get("rope_parameters")
    if rope is None:
        scaling = raw.get("rope_scaling", {"rope_type": "linear", "factor": 8.0}) or {}
        rope = {
            SLIDING: {"rope_theta": raw.get("rope_local_base_freq", 10_000)},
            FULL: {"rope_theta": raw.get("rope_theta", 1_000_000), **scaling},
        }
    require(rope[SLIDING], {"rope_type": ("default",)}, f"rope.{SLIDING}")
    require(rope[FULL], {"rope_type": ("linear", "default")}, f"rope.{FULL}")
    return rope


class Gemma3(TextDecoder):
    """Gemma 3 text decoder; its keys are the text names of the hub files below their prefix."""
