"""Guider nodes: encoded prompts plus how strongly each stream follows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..aiprod_engine.errors import UnsupportedConfig
from ..aiprod_engine.sampling.guidance import Apg, Guidance
from ..aiprod_engine.types import Streams, TextContext
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/guidance"
AUTO = "auto"
RULES = ("cfg", "cfg_star")


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


def _strength(name: str, default: float, tooltip: str, step: float = 0.1):
    return make_input(
        io.Float.Input, name, default=default, min=0.0, max=100.0, step=step, tooltip=tooltip
    )


def _prompts() -> list:
    return [
        sockets.Conditioning.Input("positive", tooltip="The encoded prompt."),
        sockets.Conditioning.Input("negative", tooltip="What to stay away from."),
    ]


def _common(rescale: float) -> list:
    """Inputs of every guider that takes a negative prompt, after its own."""
    stg = "Guidance away from a pass without self-attention in a few blocks; 0 = off."
    modality = "Guidance towards agreement of picture and sound; 1 = off."
    pull = "Pulls the contrast of the guided result back to that of the prompt; 0 = off."
    return [
        _strength("video_stg", 1.0, stg),
        _strength("audio_stg", 1.0, stg),
        _strength("video_modality", 3.0, modality),
        _strength("audio_modality", 3.0, modality),
        _strength("video_rescale", rescale, pull, 0.05),
        _strength("audio_rescale", rescale, pull, 0.05),
        make_input(
            io.String.Input, "stg_blocks", default=AUTO,
            tooltip="Blocks for STG: auto (the authors' choice for the checkpoint) or "
            "numbers such as 14, 19.",
        ),
        make_input(
            io.Int.Input, "skip_step", default=0, min=0, max=10,
            tooltip="Evaluate one step in k + 1 and reuse the result in between; 0 = all.",
        ),
    ]  # fmt: skip


def _outputs() -> list:
    return [
        sockets.Guider.Output("guider", display_name="guider"),
        sockets.Guider.Output(
            "unguided", display_name="unguided", tooltip="The prompt alone, for a second stage."
        ),
    ]


def _guided(
    positive: TextContext,
    negative: TextContext,
    scales: Streams,
    rule: str | Apg,
    common: Mapping[str, Any],
) -> io.NodeOutput:
    """Both outputs; `common` holds the values of the common inputs."""
    host.require_version("negative prompt", negative.version, positive.version)
    blocks = parse_blocks(common["stg_blocks"])

    def of(stream: str) -> Guidance:
        return Guidance(
            cfg=getattr(scales, stream),
            stg=common[f"{stream}_stg"],
            stg_blocks=blocks or (),
            rescale=common[f"{stream}_rescale"],
            modality=common[f"{stream}_modality"],
            skip_step=common["skip_step"],
            rule=rule,
        )

    payload = sockets.GuiderPayload(positive, negative, of("video"), of("audio"), blocks is None)
    return io.NodeOutput(payload, sockets.GuiderPayload(positive))


class CFGGuider(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODCFGGuider",
            display_name="CFG Guider",
            category=CATEGORY,
            description="Full guidance with separate strengths for picture and sound. The defaults "
            "are the authors' for undistilled checkpoints: four evaluations a step.",
            search_aliases=["CFG", "STG", "multimodal guider"],
            inputs=[
                *_prompts(),
                _strength("video_cfg", 3.0, "How closely the picture follows the prompt; 1 = off."),
                _strength("audio_cfg", 7.0, "How closely the sound follows the prompt; 1 = off."),
                *_common(rescale=0.7),
                make_input(
                    io.Combo.Input, "rule", options=list(RULES), default="cfg", optional=True,
                    tooltip="cfg is what the authors use. cfg_star scales the negative prediction "
                    "to fit the positive one first.",
                ),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, stg_blocks, rule=None) -> bool | str:
        if rule is not None and rule not in RULES:
            return f"rule must be one of {', '.join(RULES)}, got {rule!r}"
        return host.sentence(parse_blocks, stg_blocks)

    @classmethod
    def execute(
        cls, positive, negative, video_cfg, audio_cfg, rule="cfg", **common
    ) -> io.NodeOutput:
        return _guided(positive, negative, Streams(video_cfg, audio_cfg), rule, common)


class APGGuider(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = "How closely the {} follows the prompt; 1 = off, with running_average 0 = off."
        return make_schema(
            node_id="AIPRODAPGGuider",
            display_name="APG Guider",
            category=CATEGORY,
            description="Projected guidance: high strengths without the burnt colours of plain "
            "CFG. The authors' pipelines do not use it.",
            search_aliases=["APG", "adaptive projected guidance"],
            inputs=[
                *_prompts(),
                _strength("video_scale", 3.0, strength.format("picture")),
                _strength("audio_scale", 7.0, strength.format("sound")),
                make_input(
                    io.Float.Input, "eta", default=0.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How much counts of the part that only makes the prediction stronger; "
                    "1 = all, as in CFG.",
                ),
                make_input(
                    io.Float.Input, "norm_threshold", default=0.0, min=0.0, max=1e6, step=0.5,
                    tooltip="Longest guidance allowed, over all tokens of a stream; 0 = any.",
                ),
                make_input(
                    io.Boolean.Input, "running_average", default=False,
                    tooltip="Carry guidance over from step to step, as momentum says. Strengths "
                    "then count in full: 2 acts like 3 without.",
                ),
                make_input(
                    io.Float.Input, "momentum", default=-0.5, min=-1.0, max=1.0, step=0.05,
                    tooltip="Share of the steps before in running_average; negative values push "
                    "away from them.",
                ),
                *_common(rescale=0.0),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, stg_blocks) -> bool | str:
        return host.sentence(parse_blocks, stg_blocks)

    @classmethod
    def execute(
        cls, positive, negative, video_scale, audio_scale, eta, norm_threshold, running_average,
        momentum, **common,
    ) -> io.NodeOutput:  # fmt: skip
        rule = Apg(eta, norm_threshold, momentum if running_average else None)
        return _guided(positive, negative, Streams(video_scale, audio_scale), rule, common)


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


NODES = [Guider, CFGGuider, APGGuider]
