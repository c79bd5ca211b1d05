"""Video VAE with diffusion decoder (2.5): its decoder; the encoder is the convolutional one."""

from .config import DiffusionDecoderConfig
from .decoder import DiffusionDecoder
from .noise import DECODE_SEED, decode_noise

__all__ = ["DECODE_SEED", "DiffusionDecoder", "DiffusionDecoderConfig", "decode_noise"]
