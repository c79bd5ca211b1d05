"""Video VAE with convolutional decoder: 2.0, 2.3, 2.5 conv, and the encoder of the 2.5 file."""

from .config import VideoVAEConfig
from .decoder import VideoDecoder
from .encoder import VideoEncoder
from .statistics import PerChannelStatistics
from .streaming import Piece, stream_decode, stream_encode

__all__ = [
    "PerChannelStatistics",
    "Piece",
    "VideoDecoder",
    "VideoEncoder",
    "VideoVAEConfig",
    "stream_decode",
    "stream_encode",
]
