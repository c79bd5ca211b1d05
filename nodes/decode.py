"""Decode nodes: latents become the host's images and sound."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.pipelines.decode import TILINGS, decode_frames, decode_track
from . import _host as host
from . import _sockets as sockets
from ._schema import make_input, make_schema

CATEGORY = "AIPROD/decode"


class DecodeVideo(io.ComfyNode):
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
                    tooltip="auto: exact, frame by frame, in memory independent of the length. "
                    "tiled: overlapping tiles (768 px, 80 frames), for very large frames; an "
                    "approximation. off: the whole clip at once.",
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
        with host.on_device(video_vae.decoder) as (decoder,):
            advance = host.progress(latent.frames)
            images = decode_frames(decoder, latent, tiling, on_frames=advance)
        return io.NodeOutput(images, float(latent.fps))


class DecodeAudio(io.ComfyNode):
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
        with host.on_device(audio_vae.decoder, audio_vae.vocoder) as (decoder, vocoder):
            waveform, rate = decode_track(decoder, vocoder, latent)
        return io.NodeOutput({"waveform": waveform, "sample_rate": rate})


NODES = [DecodeVideo, DecodeAudio]
