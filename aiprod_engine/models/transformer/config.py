"""What the checkpoint's `transformer` section says about the network, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from ...errors import UnsupportedConfig

# Keys with one legal value: 2.0, 2.3 and 2.5 agree on them and nothing else is implemented.
_ONLY: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,  # despite its name it adds no norm to the context
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
}
_ONLY_AV: dict[str, Any] = {
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
}
_MODALITIES = ("av", "video", "audio")
_ROPE_TYPES = ("split", "interleaved")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


_LEGAL = {
    "int": ("a positive integer", lambda v: type(v) is int and v > 0),
    "float": ("a positive number", _is_positive),
    "bool": ("true or false", lambda v: type(v) is bool),
    "str": ("a string", lambda v: type(v) is str),
    "tuple[float, ...]": (
        "a list of positive numbers",
        lambda v: type(v) in (list, tuple) and all(map(_is_positive, v)),
    ),
}


@dataclass(frozen=True)
class StreamConfig:
    """Sizes and names of one stream: audio parameters carry `prefix` "audio_", video ones none.

    `update` names what the other stream adds to this one: "a2v" for video, "v2a" for audio.
    """

    name: str
    prefix: str
    update: str
    head_dim: int
    dim: int
    in_channels: int
    out_channels: int
    max_pos: tuple[float, ...]
    ff_bias: bool
    has_keyframe_marker: bool


@dataclass(frozen=True)
class RopeConfig:
    """One set of rotary frequencies: `dim` over all `heads`, one limit in `max_pos` per axis."""

    dim: int
    heads: int
    max_pos: tuple[float, ...]
    theta: float
    float64_grid: bool
    interleaved: bool


@dataclass(frozen=True)
class TransformerConfig:
    """The `transformer` section under its own key names; the defaults are the published values.

    Switches that a version's header leaves out default to what their absence means there.
    `modalities` is not in the file: which keys are present, or the caller, decides it.
    """

    num_layers: int = 48
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    audio_attention_head_dim: int = 64
    in_channels: int = 128
    out_channels: int = 128
    audio_in_channels: int = 128
    audio_out_channels: int = 128
    caption_channels: int = 3840
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[float, ...] = (20, 2048, 2048)  # seconds, pixels, pixels
    audio_positional_embedding_max_pos: tuple[float, ...] = (20,)  # seconds
    timestep_scale_multiplier: float = 1000
    av_ca_timestep_scale_multiplier: float = 1000.0
    rope_type: str = "split"
    frequencies_precision: str = "float64"  # any other string means a float32 grid
    apply_gated_attention: bool = False  # true in 2.3, 2.5
    cross_attention_adaln: bool = False  # true in 2.3, 2.5
    caption_proj_before_connector: bool = False  # true in 2.3, 2.5: no projection in here
    ff_bias: bool = True  # false in 2.5
    audio_ff_bias: bool = True
    use_keyframes_abs_pos_embedding: bool = False  # true in 2.5
    use_prompt_adaln_single: bool = True  # false: static prompt tables, no published file
    modalities: str = "av"

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any], modalities: str = "av") -> TransformerConfig:
        """Build from `config["transformer"]` of a checkpoint; every assumption is checked."""
        only = _ONLY | _ONLY_AV if modalities == "av" else _ONLY
        for key, value in only.items():
            _require(key, section.get(key, value), value)
        own = [f for f in fields(cls) if f.name != "modalities" and f.name in section]
        config = cls(**{f.name: _value(f, section[f.name]) for f in own}, modalities=modalities)
        for key, value in config._implied().items():
            _require(key, section.get(key, value), value)
        return config

    def __post_init__(self) -> None:
        _require_one_of("modalities", self.modalities, _MODALITIES)
        _require_one_of("rope_type", self.rope_type, _ROPE_TYPES)
        for key, axes in (
            ("positional_embedding_max_pos", 3),  # time, rows, columns
            ("audio_positional_embedding_max_pos", 1),
        ):
            if len(found := getattr(self, key)) != axes:
                raise UnsupportedConfig(f"transformer.{key} must hold {axes} limits, found {found}")
        for key in ("attention_head_dim", "audio_attention_head_dim"):
            if (found := getattr(self, key)) % 2:
                raise UnsupportedConfig(f"transformer.{key} must be even, found {found}")

    def _implied(self) -> dict[str, int]:
        """Keys that repeat another one: heads are shared, contexts are as wide as their stream."""
        return {
            "audio_num_attention_heads": self.num_attention_heads,
            "cross_attention_dim": self.video.dim,
            "audio_cross_attention_dim": self.audio.dim,
        }

    @property
    def video(self) -> StreamConfig:
        """The video stream, whether it is built or not."""
        return StreamConfig(
            name="video",
            prefix="",
            update="a2v",
            head_dim=self.attention_head_dim,
            dim=self.num_attention_heads * self.attention_head_dim,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            max_pos=self.positional_embedding_max_pos,
            ff_bias=self.ff_bias,
            has_keyframe_marker=self.use_keyframes_abs_pos_embedding,
        )

    @property
    def audio(self) -> StreamConfig:
        """The audio stream, whether it is built or not."""
        return StreamConfig(
            name="audio",
            prefix="audio_",
            update="v2a",
            head_dim=self.audio_attention_head_dim,
            dim=self.num_attention_heads * self.audio_attention_head_dim,
            in_channels=self.audio_in_channels,
            out_channels=self.audio_out_channels,
            max_pos=self.audio_positional_embedding_max_pos,
            ff_bias=self.audio_ff_bias,
            has_keyframe_marker=False,
        )

    @property
    def streams(self) -> tuple[StreamConfig, ...]:
        """The streams that are built."""
        built = {"av": (self.video, self.audio), "video": (self.video,), "audio": (self.audio,)}
        return built[self.modalities]

    @property
    def block_rows(self) -> int:
        """Modulation rows per block: 6 in 2.0; 2.3 and 2.5 add shift, scale, gate of the text."""
        return 9 if self.cross_attention_adaln else 6

    @property
    def has_prompt_adaln(self) -> bool:
        """Whether the text keys and values are modulated by the noise level."""
        return self.cross_attention_adaln and self.use_prompt_adaln_single

    def self_rope(self, stream: StreamConfig) -> RopeConfig:
        """Rotary frequencies of the stream's self-attention, over all its axes."""
        return self._rope(stream.dim, stream.max_pos)

    def cross_rope(self) -> RopeConfig:
        """Rotary frequencies of audio-video attention: time only, audio width, common limit."""
        return self._rope(self.audio.dim, (max(self.video.max_pos[0], self.audio.max_pos[0]),))

    def _rope(self, dim: int, max_pos: tuple[float, ...]) -> RopeConfig:
        return RopeConfig(
            dim=dim,
            heads=self.num_attention_heads,
            max_pos=max_pos,
            theta=self.positional_embedding_theta,
            float64_grid=self.frequencies_precision == "float64",
            interleaved=self.rope_type == "interleaved",
        )


def _value(field: Field, found: Any) -> Any:
    meaning, is_legal = _LEGAL[field.type]
    if not is_legal(found):
        raise UnsupportedConfig(f"transformer.{field.name} must be {meaning}, found {found!r}")
    return tuple(found) if isinstance(found, list) else found


def _require(key: str, found: Any, only: Any) -> None:
    if found != only:
        raise UnsupportedConfig(f"transformer.{key} must be {only!r}, found {found!r}")


def _require_one_of(key: str, found: Any, legal: tuple[str, ...]) -> None:
    if found not in legal:
        raise UnsupportedConfig(
            f"transformer.{key} must be one of {', '.join(legal)}, found {found!r}"
        )
