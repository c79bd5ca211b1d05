"""Encode nodes: frames and sound become latents."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..aiprod_engine import timing
from ..aiprod_engine.pipelines.encode import encode_frames, encode_track
from ..aiprod_engine.pipelines.planning import guides_need, listening_need
from ..aiprod_engine.types import AVLatent
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/latents"


class EncodeVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODEncodeVideo",
            display_name="Encode Video",
            category=CATEGORY,
            description="Encodes frames into a clip, exactly and in memory independent of length. "
            "Frames beyond the last 8k + 1 are left out and the log says so.",
            search_aliases=["VAE encode"],
            inputs=[
                io.Image.Input("images", tooltip="Frames; both sides multiples of 32."),
                sockets.VideoVAE.Input("video_vae"),
                make_input(
                    io.Float.Input, "fps", default=24.0, min=1.0, max=120.0, step=0.001,
                    tooltip="Frames per second of the clip; wire it from Get Video Components.",
                ),
            ],
            outputs=[sockets.Latent.Output("latent", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, video_vae, fps) -> io.NodeOutput:
        frames = timing.snap_frames(len(images))
        if frames != len(images):
            host.logger.warning(
                "Encode Video: clips have 8k + 1 frames; using the first %d of %d",
                frames, len(images),
            )  # fmt: skip
        recipe, size = video_vae.encoder, AVLatent(None, None, frames, *images.shape[1:3], fps)
        with host.placed(guides_need(recipe, size, host.device_of(recipe)), recipe) as placed:
            advance = host.progress(frames)
            clip = placed.run(
                lambda encoder: encode_frames(
                    encoder, images[:frames], fps, advance, placed.way.piece
                )
            )
        return io.NodeOutput(replace(clip, version=video_vae.info.version))


class EncodeAudio(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODEncodeAudio",
            display_name="Encode Audio",
            category=CATEGORY,
            description="Encodes a sound track into a clip, cut or filled with silence to the "
            "clip's length.",
            search_aliases=["VAE encode audio"],
            inputs=[
                io.Audio.Input("audio"),
                sockets.AudioVAE.Input("audio_vae"),
                sockets.Latent.Input("latent", tooltip="The clip whose length the sound takes."),
            ],
            outputs=[sockets.Latent.Output("latent_out", display_name="latent")],
        )

    @classmethod
    def execute(cls, audio, audio_vae, latent) -> io.NodeOutput:
        host.require_version("audio VAE", audio_vae.info.version, latent.version)
        sound = host.sound_of(audio, "Encode Audio")
        recipe = audio_vae.encoder
        with host.placed(listening_need(recipe, latent.frames / latent.fps), recipe) as placed:
            clip = placed.run(lambda encoder: encode_track(encoder, sound, latent))
        return io.NodeOutput(replace(clip, version=audio_vae.info.version))


NODES = [EncodeVideo, EncodeAudio]
