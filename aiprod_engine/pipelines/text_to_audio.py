"""Text to sound alone: the picture's half of the transformer is never read."""

from __future__ import annotations

from dataclasses import replace

from ..errors import SizeError
from ..sampling.denoise import Contexts
from ..sampling.presets import preset
from ..types import AVLatent
from .run import DEFAULTS, Run, Settings, guided, sample
from .stage import Start


def text_to_audio(
    run: Run, frames: int, fps: float, contexts: Contexts, settings: Settings = DEFAULTS
) -> AVLatent:
    """Audio latent as long as `frames` at `fps`; there is no picture to agree with."""
    if frames < 1 or fps <= 0:
        raise SizeError(f"the sound must have a length, got {frames} frames at {fps} fps")
    version = run.networks.version
    clip = AVLatent(None, None, frames, 0, 0, fps, version, modalities="audio")
    noise = run.begin()
    authors = preset(version)
    authors = replace(authors, audio=replace(authors.audio, modality=1.0))
    stage = guided(contexts, settings, authors)
    return sample(run, "stage1", Start(clip), stage, noise, settings.loras)
