"""Latent upsamplers."""

from .config import UpsamplerConfig
from .model import Upsampler

__all__ = ["Upsampler", "UpsamplerConfig"]
