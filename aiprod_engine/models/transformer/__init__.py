"""The diffusion transformer: configuration and network."""

from .config import TransformerConfig
from .model import Transformer

__all__ = ["Transformer", "TransformerConfig"]
