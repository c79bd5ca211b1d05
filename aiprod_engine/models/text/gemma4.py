"""Gemma 4 "unified" text decoder, the language model of 2.5 (12B: 48 layers, 49 hidden states)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import require
from .decoder import AttentionConfig, DecoderConfig, TextDecoder
from .hf_config import FULL, SLIDING, layer_types, text_section

_LEGAL = {
    "model_type": ("gemma4_unified_text",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attention_k_eq_v": (True,),
    "num_kv_shared_layers": (0, None),
    "hidden_size_per_layer_input": (0, None),
    "use_double_wide_mlp": (False, None),
    "enable_moe_block": (False, None),
    "use_bidirectional_attention": ("vision", None),  # concerns image tokens; text is causal
}
_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000},
    FULL: {"rope_type": "proportional", "rope_theta": 1_000_000, "partial_rotary_factor": 0.25},
}


class Gemma4Config(DecoderConfig):
    """Sizes of a Gemma 4 text decoder; what a config does not name is taken from the 12B model."""

    @classmethod
    def from_metadata(cls, hf_text_config: Mapping[str, Any]) -> Gemma4Config:
        """Build from a Hugging Face config, nested (`text_config`) or the text part alone."""
        raw = text_section(hf_text_config, "gemma4_unified")
        require(raw, _LEGAL, "text_config")
        rope = raw.get("rope_parameters", _ROPE)
        require(rope[SLIDING], {"rope_type": ("default",)}, f"rope.{SLIDING}")
        require(rope[FULL], {"rope_type": ("proportional",), "factor": (1.0,)}, f"rope.{FULL}")
        sliding = AttentionConfig(
            heads=raw.get("num_attention_heads", 16),
            kv_heads=raw.get("num_key_value_heads", 8),
            head_dim=raw.get("head_dim", 256),
            scale=1.0,  # the norms of queries and keys carry the scale
            rope_theta=rope[SLIDING]["rope_theta"],
            window=raw.get("sliding_window", 1024),
            value_norm=True,
        )
        full = replace(
            sliding,
            kv_heads=raw.get("num_global_key_value_heads", 1),
            head_dim=raw.get("global_head_dim", 512),
            rope_theta=rope[FULL]["rope_theta"],
            rotated=rope[FULL].get("partial_rotary_factor", 0.25),
            window=None,
            key_is_value=True,
        )
        kinds = {SLIDING: sliding, FULL: full}
        return cls(
            vocab_size=raw.get("vocab_size", 262_144),
            width=raw.get("hidden_size", 3840),
            intermediate=raw.get("intermediate_size", 15_360),
            layers=tuple(kinds[name] for name in layer_types(raw)),
            norm_offset=0.0,
            layer_scalar=True,
            eps=raw.get("rms_norm_eps", 1e-6),
        )


class Gemma4(TextDecoder):
    """Gemma 4 text decoder; its keys are the text names of the packed file below `model.`."""
