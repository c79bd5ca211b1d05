"""Adapter nodes."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..aiprod_engine.errors import CheckpointError
from ..aiprod_engine.weights.lora.file import read_lora
from ..aiprod_engine.weights.lora.ic_lora import merge_references
from ..aiprod_engine.weights.recipe import LoraUse
from ..aiprod_engine.weights.source import find
from . import _host as host
from . import _sockets as sockets
from ._menus import FOLDERS, MENUS
from ._schema import Node, make_input, make_schema

PLACES = ("loras", *FOLDERS)
WAYS = ("fused", "beside")


def _strength(name: str, tooltip: str, optional: bool = False):
    return make_input(
        io.Float.Input, name, default=1.0, min=-10.0, max=10.0, step=0.01, optional=optional,
        tooltip=tooltip,
    )  # fmt: skip


class LoRA(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODLoRA",
            display_name="LoRA",
            category="AIPROD/model",
            description="Adds an adapter to a model; chain several. Its header is checked against "
            "the model at once. Another LoRA or strength never loads the model again.",
            search_aliases=["LoraLoaderModelOnly", "IC-LoRA"],
            inputs=[
                sockets.Model.Input("model"),
                make_input(
                    io.Combo.Input,
                    "lora",
                    options=MENUS.names(("loras",), lambda info: info.kind == "lora"),
                    tooltip="A LoRA for the same LTX-2 release, from models/loras.",
                ),
                _strength("strength", "How strongly it acts; 0 leaves it out."),
                _strength("video_strength", "Times strength: on what makes the picture.", True),
                _strength("audio_strength", "Times strength: on what makes the sound.", True),
                make_input(
                    io.Combo.Input,
                    "apply",
                    options=list(WAYS),
                    default=WAYS[0],
                    optional=True,
                    tooltip="fused: into the weights, no cost per step. beside: next to them, a "
                    "new strength is there at once, each step takes longer and some memory more. "
                    "Quantised weights always take it beside.",
                ),
            ],
            outputs=[sockets.Model.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora, apply=WAYS[0]) -> bool | str:
        if apply not in (None, *WAYS):  # the oldest host does not check combos
            return f"apply must be one of {', '.join(WAYS)}, got {apply!r}"
        return True if lora is None else host.sentence(_locate, lora)

    @classmethod
    def fingerprint_inputs(cls, lora, **_) -> tuple:
        return host.fingerprint(PLACES, lora)

    @classmethod
    def execute(
        cls, model, lora, strength, video_strength=1.0, audio_strength=1.0, apply=WAYS[0]
    ) -> io.NodeOutput:
        path = _locate(lora)
        if not strength:
            return io.NodeOutput(model)
        recipe = model.transformer
        found = read_lora(path, find(recipe.kind, recipe.files).shapes)
        found.report.check()
        host.logger.info("LoRA: %s", found.report.describe())
        strengths = (strength * video_strength, strength * audio_strength)
        use = LoraUse(str(path), *strengths, beside=apply == WAYS[1])
        reference = merge_references((model.reference, found.reference))
        changed = replace(model, transformer=recipe.with_lora(use), reference=reference)
        return io.NodeOutput(changed)


def _locate(name: str):
    path = host.find_file(PLACES, name)
    if path is None:
        raise CheckpointError(
            f"a chosen file must exist: {name!r} is not in models/loras; put it there and refresh"
        )
    return path


NODES = [LoRA]
