"""Guide nodes: what a clip is given beside the prompt.

Guides hold pixels and sound and are encoded for the size of whichever sampler receives them, so
that one wire serves both stages.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine import timing
from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.latents.rules import check_region
from ..aiprod_engine.media.pixels import to_bytes
from ..aiprod_engine.pipelines import guides as kinds
from ..aiprod_engine.types import AVLatent
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/guides"
STREAMS = ("picture and sound", "picture", "sound")
LAST_FRAME = 10_000


def _chain():
    return sockets.Guides.Input(
        "guides", optional=True, tooltip="Guides so far; their order is the order of the wire."
    )


def _strength(tooltip: str = "1 keeps the guide as it is, lower values let the result depart."):
    return make_input(
        io.Float.Input, "strength", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=tooltip
    )


def _frame():
    return make_input(
        io.Int.Input, "frame", default=0, min=-LAST_FRAME, max=LAST_FRAME,
        tooltip="Frame of the clip at which it lies; -1 is the last one.",
    )  # fmt: skip


def _outputs() -> list:
    return [sockets.Guides.Output("guides_out", display_name="guides")]


class ImageGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODImageGuide",
            display_name="Image Guide",
            category=CATEGORY,
            description="The clip shows this picture at a frame: 0 starts the clip with it, -1 "
            "ends it there.",
            search_aliases=["image to video", "first frame", "last frame"],
            inputs=[
                io.Image.Input("image", tooltip="The first picture of a batch is used."),
                sockets.VideoVAE.Input("video_vae"),
                _frame(),
                _strength("1 shows the picture exactly; 0.7 lets it move sooner."),
                make_input(
                    io.Int.Input, "compression", default=-1, min=-1, max=51,
                    tooltip="H.264 quality that the picture is reduced to; pristine stills tend to "
                    "freeze. -1: what the checkpoint was trained with, 0: none.",
                ),
                _chain(),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, image, video_vae, frame, strength, compression, guides=None):
        crf = None if compression < 0 else compression
        guide = kinds.ImageGuide(to_bytes(image[0]), frame, strength, crf)
        return io.NodeOutput(sockets.with_guide(guides, guide, video_vae))


class KeyframeGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODKeyframeGuide",
            display_name="Keyframe Guide",
            category=CATEGORY,
            description="The clip passes through this picture, or follows this short clip, at a "
            "frame without having to show it exactly.",
            search_aliases=["keyframe", "clip"],
            inputs=[
                io.Image.Input("images", tooltip="One picture, or the frames of a clip."),
                sockets.VideoVAE.Input("video_vae"),
                _frame(),
                _strength(),
                _chain(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, images, video_vae, frame, strength, guides=None):
        if len(images) == 1:
            guide = kinds.ImageGuide(to_bytes(images[0]), frame, strength, policy="guiding")
        else:
            guide = kinds.ClipGuide(to_bytes(images), frame, strength)
        return io.NodeOutput(sockets.with_guide(guides, guide, video_vae))


class ReferenceVideoGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODReferenceVideoGuide",
            display_name="Reference Video Guide",
            category=CATEGORY,
            description="A video that an IC-LoRA follows: depth, pose, edges, a clip to restyle.",
            search_aliases=["IC-LoRA", "control video"],
            inputs=[
                io.Image.Input("images", tooltip="Frames of the reference."),
                sockets.VideoVAE.Input("video_vae"),
                _strength(),
                make_input(
                    io.Float.Input, "attention", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How much the clip and the reference see of each other.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the reference counts, frame by frame."
                ),
                _chain(),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, images, video_vae, strength, attention, mask=None, guides=None):
        if mask is not None:
            mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
            mask = mask.expand(len(images), -1, -1) if len(mask) == 1 else mask
        guide = kinds.ReferenceVideoGuide(to_bytes(images), strength, attention, mask)
        return io.NodeOutput(sockets.with_guide(guides, guide, video_vae))


class ReferenceAudioGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODReferenceAudioGuide",
            display_name="Reference Audio Guide",
            category=CATEGORY,
            description="A voice to speak with, about five seconds of it. A later stage keeps the "
            "sound that the first one made.",
            search_aliases=["voice", "dub"],
            inputs=[
                io.Audio.Input("audio"),
                sockets.AudioVAE.Input("audio_vae"),
                _strength(),
                _chain(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, audio, audio_vae, strength, guides=None):
        guide = kinds.ReferenceAudioGuide(host.sound_of(audio, "Reference Audio Guide"), strength)
        return io.NodeOutput(sockets.with_guide(guides, guide, None, audio_vae))


class AudioTrackGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODAudioTrackGuide",
            display_name="Audio Track Guide",
            category=CATEGORY,
            description="The finished sound of the clip; the picture is made to it. Mux the "
            "original sound, not a decoded one.",
            search_aliases=["audio to video", "lip sync"],
            inputs=[
                io.Audio.Input("audio"),
                sockets.AudioVAE.Input("audio_vae"),
                _chain(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, audio, audio_vae, guides=None):
        guide = kinds.AudioTrackGuide(host.sound_of(audio, "Audio Track Guide"))
        return io.NodeOutput(sockets.with_guide(guides, guide, None, audio_vae))


class RetakeRegion(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        seconds = {"min": 0.0, "max": 600.0, "step": 0.01}
        return make_schema(
            node_id="AIPRODRetakeRegion",
            display_name="Retake Region",
            category=CATEGORY,
            description="Makes a time window of a finished clip again and keeps all the rest.",
            search_aliases=["retake", "inpaint in time"],
            inputs=[
                io.Image.Input("images", tooltip="Frames of the finished clip."),
                sockets.VideoVAE.Input("video_vae"),
                make_input(
                    io.Float.Input, "start", default=1.0, tooltip="Seconds; the window's begin.",
                    **seconds,
                ),
                make_input(
                    io.Float.Input, "end", default=2.0, tooltip="Seconds; the window's end.",
                    **seconds,
                ),
                make_input(
                    io.Combo.Input, "regenerate", options=list(STREAMS), default=STREAMS[0],
                    tooltip="What is made again in the window; the other stream stays.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound of the finished clip."),
                sockets.AudioVAE.Input("audio_vae", optional=True),
                make_input(
                    io.Float.Input, "fps", default=24.0, min=1.0, max=120.0, step=0.001,
                    optional=True, tooltip="Of the finished clip; from Get Video Components.",
                ),
                _chain(),
            ],
            outputs=[
                *_outputs(),
                sockets.Latent.Output(
                    "latent", display_name="latent",
                    tooltip="An empty clip of the same size and length, for the sampler.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, start, end, regenerate) -> bool | str:
        if regenerate is not None and regenerate not in STREAMS:
            return f"regenerate must be one of {', '.join(STREAMS)}, got {regenerate!r}"
        return True if None in (start, end) else host.sentence(check_region, start, end)

    @classmethod
    def execute(
        cls, images, video_vae, start, end, regenerate, audio=None, audio_vae=None, fps=24.0,
        guides=None,
    ):  # fmt: skip
        if audio is not None and audio_vae is None:
            raise MismatchError("Retake Region needs an audio VAE to read the sound; connect one")
        frames = timing.snap_frames(len(images))
        height, width = images.shape[1:3]
        timing.check_size(height, width)
        sound = None if audio is None else host.sound_of(audio, "Retake Region")
        guide = kinds.RetakeGuide(
            to_bytes(images[:frames]), start, end, sound,
            regenerate != "sound", regenerate != "picture",
        )  # fmt: skip
        clip = AVLatent(None, None, frames, height, width, fps)
        return io.NodeOutput(sockets.with_guide(guides, guide, video_vae, audio_vae), clip)


class MaskGuide(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODMaskGuide",
            display_name="Mask Guide",
            category=CATEGORY,
            description="Makes the white parts of a mask again and keeps the rest of a clip.",
            search_aliases=["inpaint", "outpaint"],
            inputs=[
                io.Image.Input("images", tooltip="Frames of the clip."),
                io.Mask.Input("mask", tooltip="1 = make again; one mask, or one per frame."),
                sockets.VideoVAE.Input("video_vae"),
                _strength("How firmly the black parts are kept."),
                _chain(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, images, mask, video_vae, strength, guides=None):
        mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
        guide = kinds.MaskGuide(to_bytes(images), mask, strength)
        return io.NodeOutput(sockets.with_guide(guides, guide, video_vae))


NODES = [
    ImageGuide, KeyframeGuide, ReferenceVideoGuide, ReferenceAudioGuide, AudioTrackGuide,
    RetakeRegion, MaskGuide,
]  # fmt: skip
