"""Latents of a finished run -> a file that plays."""

from __future__ import annotations

import wave
from pathlib import Path

from ..media.mp4 import Sound, write_mp4
from ..media.pixels import to_uint8
from ..pipelines.decode import decode_track, pixel_chunks
from ..pipelines.networks import Networks
from ..pipelines.planning import decoding_need, sound_need
from ..types import AVLatent
from .request import Request


def write(request: Request, clip: AVLatent) -> None:
    """Decode the sound, then stream the picture into the file: memory does not grow with it."""
    options, networks = request.options, request.networks
    sound = request.given_sound or _decoded_sound(networks, clip)
    if clip.video is None:
        _write_wav(options.output, sound)
        return
    facts = {"prompt": options.prompt, "seed": str(options.seed), "pipeline": options.pipeline}
    recipe = networks.recipe("video_decoder")
    need = decoding_need(recipe, clip, options.tiling, networks.device)
    with networks.place(need, recipe) as placed:
        pixels = pixel_chunks(placed.networks[0], clip, options.tiling, placed)
        write_mp4(options.output, map(to_uint8, pixels), clip.fps, sound, metadata=facts)


def _decoded_sound(networks: Networks, clip: AVLatent) -> Sound:
    recipes = networks.recipe("audio_decoder"), networks.recipe("vocoder")
    with networks.place(sound_need(*recipes, clip), *recipes) as placed:
        waveform, rate = placed.run(lambda decoder, vocoder: decode_track(decoder, vocoder, clip))
    return Sound(waveform[0], rate)


def _write_wav(path: Path, sound: Sound) -> None:
    samples = (sound.waveform.clamp(-1, 1) * 32767).round().short().T.contiguous()  # (S, C)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(samples.numpy().tobytes())
