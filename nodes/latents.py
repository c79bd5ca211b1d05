"""Latent nodes: the size and time of a clip."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine import timing
from ..aiprod_engine.errors import SizeError
from ..aiprod_engine.types import AVLatent
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

LARGEST_SIDE = 8192
MOST_FRAMES = 8 * 1024 + 1
STREAMS = {"picture and sound": "av", "picture": "video", "sound": "audio"}


class EmptyLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": timing.SPACE_FACTOR, "max": LARGEST_SIDE, "step": timing.SPACE_FACTOR}
        return make_schema(
            node_id="AIPRODEmptyLatent",
            display_name="Empty Latent",
            category="AIPROD/latents",
            description="Sets size, length and frame rate of a clip with sound. Every later node "
            "reads them from here.",
            search_aliases=["empty latent video", "size", "fps"],
            inputs=[
                make_input(
                    io.Int.Input, "width", default=768, **side,
                    tooltip="Multiple of 32; of 64 if an x2 stage follows.",
                ),
                make_input(
                    io.Int.Input, "height", default=512, **side,
                    tooltip="Multiple of 32; of 64 if an x2 stage follows.",
                ),
                make_input(
                    io.Int.Input, "frames", default=121, min=1, max=MOST_FRAMES,
                    step=timing.TIME_FACTOR, tooltip="8k + 1: 1, 9, 17, ... 121 is 5 s at 24 fps.",
                ),
                make_input(
                    io.Float.Input, "fps", default=24.0, min=1.0, max=120.0, step=0.001,
                    tooltip="Frames per second. Decode Video passes it on to the video file.",
                ),
                make_input(
                    io.Combo.Input,
                    "streams",
                    options=list(STREAMS),
                    default="picture and sound",
                    optional=True,
                    tooltip="What is generated. Sound alone reads the sound's part of the "
                    "transformer only.",
                ),
            ],
            outputs=[sockets.Latent.Output("latent", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, width, height, frames, streams=None) -> bool | str:
        if streams is not None and streams not in STREAMS:
            return f"streams must be one of {', '.join(STREAMS)}, got {streams!r}"
        return host.sentence(_check, width, height, frames)

    @classmethod
    def execute(cls, width, height, frames, fps, streams="picture and sound") -> io.NodeOutput:
        snapped = timing.snap_size(height), timing.snap_size(width), timing.snap_frames(frames)
        if snapped != (height, width, frames):
            host.logger.warning(
                "Empty Latent: %dx%d, %d frames are off the grid (32, 32, 8k + 1); using "
                "%dx%d, %d frames", width, height, frames, snapped[1], snapped[0], snapped[2],
            )  # fmt: skip
        height, width, frames = snapped
        return io.NodeOutput(
            AVLatent(None, None, frames, height, width, fps, modalities=STREAMS[streams])
        )


def _check(width: int | None, height: int | None, frames: int | None) -> None:
    """Naming these inputs takes their ranges from the host, so all of it is checked here."""
    for name, value, most in (
        ("width", width, LARGEST_SIDE), ("height", height, LARGEST_SIDE),
        ("frames", frames, MOST_FRAMES),
    ):  # fmt: skip
        if value is not None and value > most:
            raise SizeError(f"{name} must be at most {most}, got {value}")
    if None not in (width, height):
        timing.check_size(height, width)
    if frames is not None:
        timing.check_frames(frames)


NODES = [EmptyLatent]
