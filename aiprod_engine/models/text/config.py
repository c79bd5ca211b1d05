"""Configuration of projection and connectors, and the closed-world check of this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedConfig

_LEGAL = {
    "use_embeddings_connector": (True,),
    "connector_norm_output": (True, False),  # not read: the output is always normalised
    "connector_ff_bias": (True, False),
    "rope_type": ("split", "interleaved"),
    "frequencies_precision": ("float64", "float32"),
}
# 2.3 and 2.5 have these keys, 2.0 has none of them.
_NORM_KEY = "text_encoder_norm_type"
_SPLIT_KEYS = {
    "caption_proj_before_connector": (True,),
    "caption_proj_input_norm": (False,),
    "caption_projection_first_linear": (False,),
    "caption_projection_second_linear": (False,),
}
_VIDEO, _AUDIO = "video_aggregate_embed", "audio_aggregate_embed"


def require(raw: Mapping[str, Any], legal: Mapping[str, tuple], section: str) -> None:
    """Raise unless each key of `legal` is absent from `raw` or holds one of its legal values."""
    for key, values in legal.items():
        if key in raw and raw[key] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise UnsupportedConfig(f"{section}.{key} must be {allowed}, found {raw[key]!r}")


@dataclass(frozen=True)
class ConnectorConfig:
    """One modality's connector; the defaults at the end are those of every published file."""

    heads: int
    head_dim: int
    num_layers: int
    gated: bool
    registers: int
    max_pos: int
    ff_bias: bool = True
    interleaved: bool = False
    float64_grid: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TextConnectorConfig:
    """Projection of `layers` hidden states of `width` channels, and the connectors behind it.

    `shared`: one projection serves both modalities (2.0). `audio` None: video only.
    """

    width: int
    layers: int
    shared: bool
    video: ConnectorConfig
    audio: ConnectorConfig | None

    @classmethod
    def from_metadata(
        cls, section: Mapping[str, Any], projection_shapes: Mapping[str, Sequence[int]]
    ) -> TextConnectorConfig:
        """Build from the checkpoint's `transformer` section and its tensor shapes.

        `projection_shapes` maps checkpoint key -> shape; only `*aggregate_embed.weight` is read.
        Absent keys mean the values that every published file carries, not the reference's own
        defaults (which would give one position and interleaved rotation).
        """
        require(section, _LEGAL, "transformer")
        projections = _projections(projection_shapes)
        shared = "aggregate_embed" in projections
        _check_style(section, shared)
        video_features, columns = projections["aggregate_embed" if shared else _VIDEO]
        width = video_features if shared else section.get("caption_channels", 3840)
        if columns % width:
            raise UnsupportedConfig(
                f"the text projection must have a multiple of {width} input columns, "
                f"found {columns}"
            )
        audio = None
        if shared or _AUDIO in projections:
            audio_features = video_features if shared else projections[_AUDIO][0]
            audio = _connector(section, "audio_connector", audio_features)
        video = _connector(section, "connector", video_features)
        return cls(width, columns // width, shared, video, audio)


def _projections(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Shape (features, columns) of each projection by its module name."""
    found = {
        key.split(".")[-2]: shape
        for key, shape in shapes.items()
        if key.endswith("aggregate_embed.weight")
    }
    if ("aggregate_embed" in found) == (_VIDEO in found):
        raise UnsupportedConfig(
            f"a text projection is either aggregate_embed (2.0) or {_VIDEO} (2.3, 2.5), "
            f"found {sorted(found) or 'none'}"
        )
    return found


def _check_style(section: Mapping[str, Any], shared: bool) -> None:
    """Configuration and projection tensors must tell the same version."""
    require(section, _SPLIT_KEYS, "transformer")
    norm = section.get(_NORM_KEY, "per_token_rms")
    if str(norm).lower() != "per_token_rms":  # 2.5 writes it in capitals
        raise UnsupportedConfig(f"transformer.{_NORM_KEY} must be 'per_token_rms', found {norm!r}")
    declared_split = any(key in section for key in (*_SPLIT_KEYS, _NORM_KEY))
    if declared_split == shared:
        raise UnsupportedConfig(
            "configuration and text projection must come from one checkpoint, found a "
            f"configuration of {'2.3' if declared_split else '2.0'} and tensors of "
            f"{'2.0' if shared else '2.3'}"
        )


def _connector(section: Mapping[str, Any], prefix: str, features: int) -> ConnectorConfig:
    """Read one connector; audio values that are absent equal the video ones."""

    def read(name: str, default: Any) -> Any:
        return section.get(f"{prefix}_{name}", section.get(f"connector_{name}", default))

    max_pos = section.get("connector_positional_embedding_max_pos", [4096])
    if len(max_pos) != 1:
        raise UnsupportedConfig(
            f"transformer.connector_positional_embedding_max_pos must hold one number, "
            f"found {max_pos!r}"
        )
    config = ConnectorConfig(
        heads=read("num_attention_heads", 30),
        head_dim=read("attention_head_dim", 128),
        num_layers=read("num_layers", 2),
        gated=section.get("connector_apply_gated_attention", False),
        registers=section.get("connector_num_learnable_registers", 128),
        max_pos=max_pos[0],
        ff_bias=section.get("connector_ff_bias", True),
        interleaved=section.get("rope_type", "split") == "interleaved",
        float64_grid=section.get("frequencies_precision", "float64") == "float64",
    )
    if config.width != features:
        raise UnsupportedConfig(
            f"transformer.{prefix} is {config.heads} x {config.head_dim} wide, "
            f"but its text projection yields {features} features; take both from one checkpoint"
        )
    return config
