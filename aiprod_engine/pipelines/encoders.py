"""Pictures and sounds -> normalised latents, with encoders that come for a guide and go after."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..media.mp4 import Sound
from ..types import AVLatent
from .encode import encode_sound, encode_video
from .guides import Encoders
from .networks import Networks
from .planning import guides_need, listening_need


def encoders(networks: Networks, clip: AVLatent) -> Encoders:
    """Encoders for guides of `clip`; each is on the device only while it encodes one."""

    def video(frames: Iterable[Tensor]) -> Tensor:
        recipe = networks.recipe("video_encoder")
        with networks.place(guides_need(recipe, clip, networks.device), recipe) as placed:
            return placed.run(lambda encoder: encode_video(encoder, frames, placed.way.piece))

    def audio(sound: Sound) -> Tensor:
        recipe, seconds = networks.recipe("audio_encoder"), sound.waveform.shape[-1] / sound.rate
        with networks.place(listening_need(recipe, seconds), recipe) as placed:
            return placed.run(lambda encoder: encode_sound(encoder, sound))

    return Encoders(video, audio)
