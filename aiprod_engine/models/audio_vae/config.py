"""What the `audio_vae` and `vocoder` sections of a checkpoint say, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedConfig
from ...timing import AUDIO_HOP, AUDIO_RATE

CAUSALITY_AXES = ("height", "width", "width-compatibility", "none")
NORM_TYPES = ("pixel", "group")
MEL_BINS = 64  # all versions; the vocoders are wired for stereo x 64 bins

_AUDIO_VAE_ONLY = {
    # The engine's clock (`timing`) and mel front-end are written for these values (all versions).
    "model.params.sampling_rate": AUDIO_RATE,
    "preprocessing.audio.sampling_rate": AUDIO_RATE,
    "preprocessing.stft.filter_length": 1024,
    "preprocessing.stft.win_length": 1024,
    "preprocessing.stft.hop_length": AUDIO_HOP,
    "preprocessing.stft.causal": True,  # token timestamps, not the STFT, which is centred
    "preprocessing.mel.mel_fmin": 0,
    "preprocessing.mel.mel_fmax": 8000,
    # Mean and log-variance; only the mean is used.
    "model.params.ddconfig.double_z": True,
}
_VOCODER_ONLY = {"resblock": "1", "stereo": True}  # 2.0
_AMP_ONLY = {"resblock": "AMP1", "stereo": True, "activation": "snakebeta"}  # 2.3, 2.5
_VOCODER_DEFAULTS = {"resblock": "1", "stereo": True, "activation": "snake"}


@dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of the audio VAE; the defaults are those of a file that does not state the key."""

    in_channels: int = 2
    out_ch: int = 2
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (8, 16, 32)
    resolution: int = 256
    z_channels: int = 8
    mid_block_add_attention: bool = True
    norm_type: str = "pixel"
    causality_axis: str = "height"
    mel_bins: int = MEL_BINS

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any]) -> AudioVAEConfig:
        """Build from the checkpoint's `audio_vae` section."""
        for path, only in _AUDIO_VAE_ONLY.items():
            _require(f"audio_vae.{path}", _at(section, path, only), only)
        raw = _at(section, "model.params.ddconfig", {})
        own = {f: raw[f] for f in cls.__dataclass_fields__ if f in raw}
        for name in ("ch_mult", "attn_resolutions"):
            if name in own:
                own[name] = tuple(own[name])
        if own.get("causality_axis", "") is None:  # null: no axis
            own["causality_axis"] = "none"
        own["mel_bins"] = (
            raw.get("mel_bins")
            or _at(section, "preprocessing.mel.n_mel_channels", None)
            or _at(section, "variables.mel_bins", None)
            or MEL_BINS
        )
        return cls(**own)

    def __post_init__(self) -> None:
        for name, legal in (("norm_type", NORM_TYPES), ("causality_axis", CAUSALITY_AXES)):
            if (found := getattr(self, name)) not in legal:
                raise UnsupportedConfig(f"audio_vae.{name} is {found!r}; supported: {legal}")
        if self.norm_type == "group" and self.causality_axis != "none":
            raise UnsupportedConfig(
                "audio_vae.norm_type 'group' needs causality_axis 'none', "
                f"found {self.causality_axis!r}"
            )

    def width(self, level: int) -> int:
        """Channels of a resolution level."""
        return self.ch * self.ch_mult[level]

    @property
    def statistics_length(self) -> int:
        """Length of the stored statistics: `ch`; in every file it is z_channels * mel_bins / 4."""
        return self.ch

    def has_attention(self, level: int) -> bool:
        """Whether the blocks of a level are followed by attention; each level halves 256."""
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True)
class GeneratorConfig:
    """One mel-to-wave generator; `amp` selects the 2.3/2.5 blocks, `final` is what ends it."""

    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    use_bias_at_final: bool
    amp: bool
    final: str  # "tanh", "clamp" or "none"

    def __post_init__(self) -> None:
        for name, one, other in (
            ("upsample", self.upsample_rates, self.upsample_kernel_sizes),
            ("resblock", self.resblock_kernel_sizes, self.resblock_dilation_sizes),
        ):
            if len(one) != len(other):
                raise UnsupportedConfig(
                    f"vocoder {name} lists must be equally long, found {one} and {other}"
                )

    @classmethod
    def parse(
        cls, name: str, raw: Mapping[str, Any], only: Mapping[str, Any], ends: bool = True
    ) -> GeneratorConfig:
        """Build from one generator's keys; `ends` = it has a final activation.

        The published `apply_final_activation` is not read: the place in the model decides.
        """
        for key, legal in only.items():
            _require(f"{name}.{key}", raw.get(key, _VOCODER_DEFAULTS[key]), legal)
        final = "tanh" if raw.get("use_tanh_at_final", True) else "clamp"
        dilations = raw.get("resblock_dilation_sizes", [[1, 3, 5]] * 3)
        return cls(
            upsample_initial_channel=raw.get("upsample_initial_channel", 1024),
            upsample_rates=tuple(raw.get("upsample_rates", (6, 5, 2, 2, 2))),
            upsample_kernel_sizes=tuple(raw.get("upsample_kernel_sizes", (16, 15, 8, 4, 4))),
            resblock_kernel_sizes=tuple(raw.get("resblock_kernel_sizes", (3, 7, 11))),
            resblock_dilation_sizes=tuple(tuple(d) for d in dilations),
            use_bias_at_final=raw.get("use_bias_at_final", True),
            amp=only["resblock"] == "AMP1",
            final=final if ends else "none",
        )


@dataclass(frozen=True)
class BandwidthConfig:
    """Second stage of 2.3/2.5: `generator` adds the band above 8 kHz to the upsampled wave."""

    generator: GeneratorConfig
    ratio: int  # output rate / input rate
    hop_length: int
    n_fft: int

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> BandwidthConfig:
        """Build from the `bwe` keys."""
        keys = ("input_sampling_rate", "output_sampling_rate", "hop_length", "n_fft")
        if missing := [key for key in keys if key not in raw]:
            raise UnsupportedConfig(f"vocoder.bwe must state {', '.join(missing)}")
        source, target, hop, n_fft = (raw[key] for key in keys)
        _require("vocoder.bwe.win_size", raw.get("win_size", n_fft), n_fft)
        _require("vocoder.bwe.num_mels", raw.get("num_mels", MEL_BINS), MEL_BINS)
        _require("vocoder.bwe.output_sampling_rate % input_sampling_rate", target % source, 0)
        generator = GeneratorConfig.parse("vocoder.bwe", raw, _AMP_ONLY, ends=False)
        ratio = target // source
        # One STFT frame covers `hop` samples and must come out as `hop` samples x ratio.
        grown = math.prod(generator.upsample_rates)
        _require("product of vocoder.bwe.upsample_rates", grown, hop * ratio)
        return cls(generator, ratio, hop, n_fft)


@dataclass(frozen=True)
class VocoderConfig:
    """The vocoder of a checkpoint: one generator (2.0), or two with `bandwidth` (2.3, 2.5)."""

    generator: GeneratorConfig
    sample_rate: int
    bandwidth: BandwidthConfig | None = None

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any]) -> VocoderConfig:
        """Build from the checkpoint's `vocoder` section; a `bwe` key selects the two stages."""
        if "bwe" not in section:
            generator = GeneratorConfig.parse("vocoder", section, _VOCODER_ONLY)
            # 2.0 states no rate; its 240 samples per 10 ms mel frame are 24 kHz.
            return cls(generator, int(section.get("output_sampling_rate", 24_000)))
        for key in ("vocoder", "bwe"):
            if not isinstance(section.get(key), Mapping):
                raise UnsupportedConfig(f"vocoder.{key} must be an object of generator settings")
        generator = GeneratorConfig.parse("vocoder.vocoder", section["vocoder"], _AMP_ONLY)
        bandwidth = BandwidthConfig.parse(section["bwe"])
        return cls(generator, int(section["bwe"]["output_sampling_rate"]), bandwidth)


def _at(section: Mapping[str, Any], path: str, default: Any) -> Any:
    """Value under a dotted path, or `default`."""
    value: Any = section
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def _require(name: str, found: Any, legal: Any) -> None:
    if found != legal:
        raise UnsupportedConfig(f"{name} is {found!r}; supported: {legal!r}")
