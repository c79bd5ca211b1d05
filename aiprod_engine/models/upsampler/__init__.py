"""Latent upsamplers and the optional filters that may follow them."""

from .config import UpsamplerConfig
from .filters import adain, tone_map
from .model import Upsampler

__all__ = ["Upsampler", "UpsamplerConfig", "adain", "tone_map"]
