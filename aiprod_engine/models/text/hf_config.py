"""What the Hugging Face configs of Gemma 3 and Gemma 4 have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UnsupportedConfig
from .config import require

SLIDING, FULL = "sliding_attention", "full_attention"


def text_section(hf_config: Mapping[str, Any], family: str) -> Mapping[str, Any]:
    """The text part of a Hugging Face config, whether it is given nested or on its own."""
    if "text_config" not in hf_config:
        return hf_config
    require(hf_config, {"model_type": (family,)}, "config")
    return hf_config["text_config"]


def layer_types(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Kind of each layer: listed in the config, else every sixth layer is a global one."""
    count = raw.get("num_hidden_layers", 48)
    period = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    by_period = (SLIDING if (i + 1) % period else FULL for i in range(count))
    kinds = tuple(raw.get("layer_types") or by_period)
    if len(kinds) != count or not set(kinds) <= {SLIDING, FULL}:
        raise UnsupportedConfig(
            f"text_config.layer_types must name {count} layers, each {SLIDING!r} or {FULL!r}, "
            f"found {len(kinds)} of {sorted(set(kinds))}"
        )
    return kinds
