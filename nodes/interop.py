"""Converters between this pack's latent and the host's."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine import timing
from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.types import AVLatent
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/interop"


class SplitLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODSplitLatent",
            display_name="Split Latent",
            category=CATEGORY,
            description="Hands the streams of a clip to host nodes as ordinary latents.",
            inputs=[sockets.Latent.Input("latent")],
            outputs=[
                io.Latent.Output("video_latent", display_name="video latent"),
                io.Latent.Output("audio_latent", display_name="audio latent"),
                io.Float.Output("fps", display_name="fps"),
            ],
        )

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        if latent.video is None or latent.audio is None:
            missing = "video" if latent.video is None else "audio"
            raise MismatchError(
                f"Split Latent needs a clip with both streams; this one has no {missing} yet: "
                "wire a sampler's output here"
            )
        video = {"samples": latent.video.float()}
        audio = {"samples": latent.audio.float(), "type": "audio"}
        return io.NodeOutput(video, audio, float(latent.fps))


class JoinLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODJoinLatent",
            display_name="Join Latent",
            category=CATEGORY,
            description="Makes a clip of the host's latents. A joint audio-video latent goes into "
            "the first input alone. Noise masks are not taken over: use a Mask Guide.",
            inputs=[
                io.Latent.Input("video_latent", tooltip="Video, or a joint audio-video latent."),
                make_input(
                    io.Float.Input, "fps", default=24.0, min=1.0, max=120.0, step=0.001,
                    tooltip="Frames per second of the clip.",
                ),
                io.Latent.Input("audio_latent", optional=True),
            ],
            outputs=[sockets.Latent.Output("latent", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(cls, video_latent, fps, audio_latent=None) -> io.NodeOutput:
        streams = _members(video_latent)
        if audio_latent is not None:
            streams += _members(audio_latent)
        for name, samples, dims in zip(("video", "audio"), streams, (5, 4), strict=False):
            if samples.ndim != dims:
                raise MismatchError(
                    f"a {name} latent has {dims} dimensions, this one {samples.ndim}: "
                    f"{tuple(samples.shape)}"
                )
        video = streams[0].float()
        audio = streams[1].float() if len(streams) > 1 else None
        frames = timing.pixel_frames(video.shape[2])
        height, width = (side * timing.SPACE_FACTOR for side in video.shape[3:])
        return io.NodeOutput(AVLatent(video, audio, frames, height, width, fps))


def _members(latent: dict) -> list:
    """The tensors of a host latent; joint ones hold video first, audio last."""
    samples = latent["samples"]
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


NODES = [SplitLatent, JoinLatent]
