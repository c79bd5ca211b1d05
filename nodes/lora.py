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
from ._schema import Node, make_input, make_schema

FOLDER = ("loras",)


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
            "the model at once, the weights change when the model is next loaded.",
            search_aliases=["LoraLoaderModelOnly", "IC-LoRA"],
            inputs=[
                sockets.Model.Input("model"),
                make_input(
                    io.Combo.Input,
                    "lora",
                    options=host.list_files(*FOLDER),
                    tooltip="A LoRA for the same LTX-2 release, from models/loras.",
                ),
                _strength("strength", "How strongly it acts; 0 leaves it out."),
                _strength("video_strength", "Times strength: on what makes the picture.", True),
                _strength("audio_strength", "Times strength: on what makes the sound.", True),
            ],
            outputs=[sockets.Model.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora) -> bool | str:
        return True if lora is None else host.sentence(_locate, lora)

    @classmethod
    def fingerprint_inputs(cls, lora, **_) -> tuple:
        return host.fingerprint(FOLDER, lora)

    @classmethod
    def execute(
        cls, model, lora, strength, video_strength=1.0, audio_strength=1.0
    ) -> io.NodeOutput:
        path = _locate(lora)
        if not strength:
            return io.NodeOutput(model)
        recipe = model.transformer
        found = read_lora(path, find(recipe.kind, recipe.files).shapes)
        found.report.check()
        host.logger.info("LoRA: %s", found.report.describe())
        use = LoraUse(str(path), strength * video_strength, strength * audio_strength)
        reference = merge_references((model.reference, found.reference))
        changed = replace(model, transformer=recipe.with_lora(use), reference=reference)
        return io.NodeOutput(changed)


def _locate(name: str):
    path = host.find_file(FOLDER, name)
    if path is None:
        raise CheckpointError(
            f"a chosen file must exist: {name!r} is not in models/loras; put it there and refresh"
        )
    return path


NODES = [LoRA]
