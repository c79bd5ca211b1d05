"""Audio VAE and vocoders: mel spectrogram <-> latent, mel -> waveform."""

from .config import AudioVAEConfig, VocoderConfig
from .decoder import AudioDecoder
from .encoder import AudioEncoder
from .vocoder import vocoder_for

__all__ = ["AudioDecoder", "AudioEncoder", "AudioVAEConfig", "VocoderConfig", "vocoder_for"]
