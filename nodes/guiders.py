"""Guider nodes: encoded prompts plus how strongly each stream follows them."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.errors import UnsupportedConfig
from ..aiprod_engine.sampling.guidance import Guidance
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/guidance"
AUTO = "auto"


class Guider(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODGuider",
            display_name="Guider",
            category=CATEGORY,
            description="No guidance: one evaluation a step. For distilled checkpoints and LoRAs.",
            search_aliases=["basic guider", "distilled"],
            inputs=[sockets.Conditioning.Input("positive", tooltip="The encoded prompt.")],
            outputs=[sockets.Guider.Output("guider", display_name="guider")],
        )

    @classmethod
    def execute(cls, positive) -> io.NodeOutput:
        return io.NodeOutput(sockets.GuiderPayload(positive))


def _strength(name: str, default: float, tooltip: str):
    return make_input(
        io.Float.Input, name, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip
    )


class CFGGuider(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        stg = "Guidance away from a pass without self-attention in a few blocks; 0 = off."
        modality = "Guidance towards agreement of picture and sound; 1 = off."
        rescale = "Pulls the contrast of the guided result back to that of the prompt; 0 = off."
        return make_schema(
            node_id="AIPRODCFGGuider",
            display_name="CFG Guider",
            category=CATEGORY,
            description="Full guidance with separate strengths for picture and sound. The defaults "
            "are the authors' for undistilled checkpoints: four evaluations a step.",
            search_aliases=["CFG", "STG", "multimodal guider"],
            inputs=[
                sockets.Conditioning.Input("positive", tooltip="The encoded prompt."),
                sockets.Conditioning.Input("negative", tooltip="What to stay away from."),
                _strength("video_cfg", 3.0, "How closely the picture follows the prompt; 1 = off."),
                _strength("audio_cfg", 7.0, "How closely the sound follows the prompt; 1 = off."),
                _strength("video_stg", 1.0, stg),
                _strength("audio_stg", 1.0, stg),
                _strength("video_modality", 3.0, modality),
                _strength("audio_modality", 3.0, modality),
                _strength("video_rescale", 0.7, rescale),
                _strength("audio_rescale", 0.7, rescale),
                make_input(
                    io.String.Input, "stg_blocks", default=AUTO,
                    tooltip="Blocks for STG: auto (the authors' choice for the checkpoint) or "
                    "numbers such as 14, 19.",
                ),
                make_input(
                    io.Int.Input, "skip_step", default=0, min=0, max=10,
                    tooltip="Evaluate one step in k + 1 and reuse the result in between; 0 = all.",
                ),
            ],
            outputs=[
                sockets.Guider.Output("guider", display_name="guider"),
                sockets.Guider.Output(
                    "unguided", display_name="unguided",
                    tooltip="The prompt alone, for a second stage.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, stg_blocks) -> bool | str:
        return host.sentence(parse_blocks, stg_blocks)

    @classmethod
    def execute(
        cls, positive, negative, video_cfg, audio_cfg, video_stg, audio_stg, video_modality,
        audio_modality, video_rescale, audio_rescale, stg_blocks, skip_step,
    ) -> io.NodeOutput:  # fmt: skip
        host.require_version("negative prompt", negative.version, positive.version)
        blocks = parse_blocks(stg_blocks)
        video = Guidance(
            video_cfg, video_stg, blocks or (), video_rescale, video_modality, skip_step
        )
        audio = Guidance(
            audio_cfg, audio_stg, blocks or (), audio_rescale, audio_modality, skip_step
        )
        payload = sockets.GuiderPayload(positive, negative, video, audio, blocks is None)
        return io.NodeOutput(payload, sockets.GuiderPayload(positive))


def parse_blocks(text: str | None) -> tuple[int, ...] | None:
    """Block numbers of a comma list, None for "auto" or a linked input."""
    if text is None or text.strip().lower() == AUTO:
        return None
    try:
        blocks = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        blocks = (-1,)
    if any(block < 0 for block in blocks):
        raise UnsupportedConfig(
            f"stg_blocks takes auto or block numbers such as 14, 19, got {text!r}"
        )
    return blocks


NODES = [Guider, CFGGuider]
