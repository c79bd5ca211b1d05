"""Configuration of a latent upsampler: the flat `config` of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedConfig

GROUPS = 32  # of every group norm

# scale -> (pixel shuffle factor, blur stride)
RATIOS = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}


@dataclass(frozen=True)
class UpsamplerConfig:
    """2.0 x2 and 2.3 x1.5 are rational (shuffle, then blur); 2.3 and 2.5 x2 are plain."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    spatial_scale: float = 2.0
    rational_resampler: bool = False

    @classmethod
    def from_metadata(cls, raw: Mapping[str, Any]) -> UpsamplerConfig:
        """Parse the file's `config`; values without an implementation raise."""
        if (found := raw.get("_class_name", "LatentUpsampler")) != "LatentUpsampler":
            raise UnsupportedConfig(f"_class_name is {found!r}; supported: 'LatentUpsampler'")
        if (found := raw.get("dims", 3)) != 3:
            raise UnsupportedConfig(f"dims is {found!r}; supported: 3")
        names = [name for name in cls.__dataclass_fields__ if name in raw]
        config = cls(**{name: raw[name] for name in names})
        config._check()
        return config

    def _check(self) -> None:
        for name in ("in_channels", "mid_channels", "num_blocks_per_stage"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UnsupportedConfig(f"{name} must be a positive integer, found {value!r}")
        for name in ("spatial_upsample", "temporal_upsample", "rational_resampler"):
            if not isinstance(value := getattr(self, name), bool):
                raise UnsupportedConfig(f"{name} must be true or false, found {value!r}")
        if self.mid_channels % GROUPS:
            raise UnsupportedConfig(
                f"mid_channels must be a multiple of {GROUPS}, found {self.mid_channels}"
            )
        if not (self.spatial_upsample or self.temporal_upsample):
            raise UnsupportedConfig(
                "spatial_upsample and temporal_upsample are both false; one must be true"
            )
        if self.temporal_upsample:
            return  # scale and resampler are written in some of these files, and not looked at
        legal = RATIOS if self.rational_resampler else {2.0: None}
        if self.spatial_scale not in legal:
            raise UnsupportedConfig(
                f"spatial_scale is {self.spatial_scale!r}; supported: {', '.join(map(str, legal))}"
            )
