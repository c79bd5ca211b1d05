"""Decode nodes: latents become the host's images and sound."""

from __future__ import annotations

from contextlib import contextmanager

from comfy_api.latest import io
from torch import Tensor

from ..aiprod_engine import timing
from ..aiprod_engine.media.mp4 import Sound
from ..aiprod_engine.models.audio_vae.mel import to_stereo
from ..aiprod_engine.pipelines.decode import (
    TILINGS,
    check_decodable,
    decode_frames,
    decode_track,
    pixel_chunks,
)
from ..aiprod_engine.pipelines.planning import decoding_need, sound_need
from ..aiprod_engine.types import AVLatent
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema
from ._video import StreamedVideo

CATEGORY = "AIPROD/decode"


class DecodeVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODDecodeVideo",
            display_name="Decode Video",
            category=CATEGORY,
            description="Decodes the video stream. The frame rate comes out with the frames: wire "
            "it to Create Video so that picture and sound stay together.",
            search_aliases=["VAE decode"],
            inputs=[
                sockets.Latent.Input("latent"),
                sockets.VideoVAE.Input("video_vae"),
                make_input(
                    io.Combo.Input,
                    "tiling",
                    options=list(TILINGS),
                    default="auto",
                    tooltip="auto: exact, in memory independent of the length: frames at a time, "
                    "one frame, rows of it; overlapping tiles where not even that fits, and the "
                    "log says so. tiled: tiles at once (768 px, 80 frames), an approximation. "
                    "off: the whole clip at once.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Float.Output("fps", display_name="fps"),
            ],
        )

    @classmethod
    def execute(cls, latent, video_vae, tiling) -> io.NodeOutput:
        host.require_version("video VAE", video_vae.info.version, latent.version)
        check_decodable(latent)
        recipe = video_vae.decoder
        need = decoding_need(recipe, latent, tiling, host.device_of(recipe))
        with host.placed(need, recipe) as placed:
            advance = host.progress(latent.frames)
            images = decode_frames(placed.networks[0], latent, tiling, advance, placed)
        return io.NodeOutput(images, float(latent.fps))


class DecodeAudio(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODDecodeAudio",
            display_name="Decode Audio",
            category=CATEGORY,
            description="Decodes the sound and fits it to the length of the picture.",
            search_aliases=["VAE decode audio", "vocoder"],
            inputs=[sockets.Latent.Input("latent"), sockets.AudioVAE.Input("audio_vae")],
            outputs=[io.Audio.Output("audio", display_name="audio")],
        )

    @classmethod
    def execute(cls, latent, audio_vae) -> io.NodeOutput:
        host.require_version("audio VAE", audio_vae.info.version, latent.version)
        waveform, rate = _track(latent, audio_vae)
        return io.NodeOutput({"waveform": waveform, "sample_rate": rate})


class DecodeToVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODDecodeToVideo",
            display_name="Decode to Video",
            category=CATEGORY,
            description="Hands the host a video with sound whose frames are decoded while it is "
            "saved: memory does not grow with the length. Wire it to Save Video.",
            search_aliases=["VAE decode", "create video"],
            inputs=[
                sockets.Latent.Input("latent"),
                sockets.VideoVAE.Input("video_vae"),
                sockets.AudioVAE.Input("audio_vae"),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Use this sound instead of the decoded one."
                ),
                sockets.Latent.Input(
                    "sound_latent",
                    optional=True,
                    tooltip="Take the sound from this clip: the two-stage pipelines keep that of "
                    "the first stage.",
                ),
            ],
            outputs=[io.Video.Output("video", display_name="video")],
        )

    @classmethod
    def execute(cls, latent, video_vae, audio_vae, audio=None, sound_latent=None) -> io.NodeOutput:
        host.require_version("video VAE", video_vae.info.version, latent.version)
        check_decodable(latent)
        sound = _given(audio, latent) if audio else _decoded(sound_latent or latent, audio_vae)

        @contextmanager
        def open_chunks():
            recipe = video_vae.decoder
            need = decoding_need(recipe, latent, device=host.device_of(recipe))
            with host.placed(need, recipe) as placed:
                chunks = pixel_chunks(placed.networks[0], latent, placed=placed)
                yield host.counted(chunks, latent.frames)

        return io.NodeOutput(StreamedVideo(latent, open_chunks, sound))


def _decoded(latent: AVLatent, audio_vae: sockets.AudioVAEPayload) -> Sound | None:
    if latent.audio is None:
        return None
    host.require_version("audio VAE", audio_vae.info.version, latent.version)
    waveform, rate = _track(latent, audio_vae)
    return Sound(waveform[0], rate)


def _track(latent: AVLatent, audio_vae: sockets.AudioVAEPayload) -> tuple[Tensor, int]:
    """Waveform (B, 2, S) on the CPU and its rate."""
    recipes = audio_vae.decoder, audio_vae.vocoder
    with host.placed(sound_need(*recipes, latent), *recipes) as placed:
        return placed.run(lambda decoder, vocoder: decode_track(decoder, vocoder, latent))


def _given(audio: dict, latent: AVLatent) -> Sound:
    """A track of the host as the clip's sound: stereo, cut to the picture."""
    rate = int(audio["sample_rate"])
    waveform = to_stereo(audio["waveform"][:1].float().cpu())[0]
    return Sound(waveform[:, : timing.track_samples(latent.frames, latent.fps, rate)], rate)


NODES = [DecodeVideo, DecodeAudio, DecodeToVideo]
