"""Converters between this pack's latent and the host's."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..aiprod_engine import timing
from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.pipelines.stage import grid_of
from ..aiprod_engine.types import AVLatent
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/interop"
AXES = {"video": 5, "audio": 4}


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
                sockets.Latent.Input(
                    "like", optional=True,
                    tooltip="The clip that the latents were made for: gives length, frame rate "
                    "and release; fps is then ignored.",
                ),
            ],
            outputs=[sockets.Latent.Output("latent", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(cls, video_latent, fps, audio_latent=None, like=None) -> io.NodeOutput:
        streams = host.members(video_latent["samples"])
        if audio_latent is not None:
            streams += host.members(audio_latent["samples"])
        names = ("audio",) if like and like.modalities == "audio" else ("video", "audio")
        given = {name: samples.float() for name, samples in zip(names, streams, strict=False)}
        for name, samples in given.items():
            if samples.ndim != AXES[name]:
                raise MismatchError(
                    f"a {name} latent has {AXES[name]} dimensions, this one {samples.ndim}: "
                    f"{tuple(samples.shape)}"
                )
        if like is None:
            frames, height, width = given["video"].shape[2:]
            side = timing.SPACE_FACTOR
            like = AVLatent(
                None, None, timing.pixel_frames(frames), height * side, width * side, fps
            )
        _check_size(given.get("video"), like)
        return io.NodeOutput(replace(like, **given))


def _check_size(video: Tensor | None, clip: AVLatent) -> None:
    grid = grid_of(clip)
    size = (grid.frames, grid.height, grid.width)
    if video is not None and tuple(video.shape[2:]) != size:
        raise MismatchError(
            f"a clip of {clip.width}x{clip.height}, {clip.frames} frames has a latent of {size} "
            f"cells, this one has {tuple(video.shape[2:])}; connect the clip that it was made for"
        )


NODES = [SplitLatent, JoinLatent]
