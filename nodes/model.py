"""Model nodes: in which form weights are held, and where they live while a network computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.memory.residency import POLICIES
from ..aiprod_engine.weights.quant.precision import BFLOAT16, PRECISIONS, STORED, check_precision
from ..aiprod_engine.weights.recipe import Recipe
from ..aiprod_engine.weights.source import find
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/model"
DEFAULT_DEVICE = "default"


class Precision(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODPrecision",
            display_name="Precision",
            category=CATEGORY,
            description="In which form the transformer's weights are held. Checked against the "
            "file's header at once.",
            search_aliases=["fp8", "weight dtype", "quantize"],
            inputs=[
                sockets.Model.Input("model"),
                make_input(
                    io.Combo.Input,
                    "precision",
                    options=list(PRECISIONS),
                    default=STORED,
                    tooltip="as stored: what the file holds. bfloat16: unpacks a quantised file, "
                    "faster and larger. fp8 storage: half the memory of bfloat16, a little less "
                    "exact. fp8 matmul: multiplies in fp8, for fp8 files with input scales on "
                    "NVIDIA 40 series and newer.",
                ),
            ],
            outputs=[sockets.Model.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, precision) -> bool | str:
        return _one_of("precision", precision, PRECISIONS)

    @classmethod
    def execute(cls, model, precision) -> io.NodeOutput:
        recipe = model.transformer
        formats = find(recipe.kind, recipe.files).formats
        check_precision(precision, formats, host.device_of(recipe))
        recipe = replace(recipe, precision=precision)
        if precision == BFLOAT16:
            recipe = replace(recipe, dtype=torch.bfloat16)
        return io.NodeOutput(replace(model, transformer=recipe))


class Residency(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODResidency",
            display_name="Residency",
            category=CATEGORY,
            description="Where weights live while a network computes. Connect a model, a text "
            "encoder, or both; use one node each for different choices.",
            search_aliases=["block swap", "offload", "lowvram"],
            inputs=[
                make_input(
                    io.Combo.Input,
                    "policy",
                    options=list(POLICIES),
                    default=POLICIES[0],
                    tooltip="auto: as many blocks stay on the device as fit, the rest stream from "
                    "the file. resident: all stay. stream: none stay, the least memory.",
                ),
                sockets.Model.Input("model", optional=True),
                sockets.TextEncoder.Input("text_encoder", optional=True),
                make_input(
                    io.Combo.Input,
                    "device",
                    options=[DEFAULT_DEVICE, *host.devices()],
                    default=DEFAULT_DEVICE,
                    optional=True,
                    tooltip="Device that computes; default is ComfyUI's. The CPU spares the GPU a "
                    "text encoder, slowly.",
                ),
            ],
            outputs=[
                sockets.Model.Output("model_out", display_name="model"),
                sockets.TextEncoder.Output("text_encoder_out", display_name="text encoder"),
            ],
        )

    @classmethod
    def validate_inputs(cls, policy, device=DEFAULT_DEVICE) -> bool | str:
        found = _one_of("policy", policy, POLICIES)
        if found is not True:
            return found
        return _one_of("device", device, [DEFAULT_DEVICE, *host.devices()])

    @classmethod
    def execute(cls, policy, model=None, text_encoder=None, device=DEFAULT_DEVICE) -> io.NodeOutput:
        if model is None and text_encoder is None:
            raise MismatchError("Residency needs a model or a text encoder; connect one of them")
        where = None if device == DEFAULT_DEVICE else device

        def lives(recipe: Recipe) -> Recipe:
            return replace(recipe, residency=policy, device=where)

        if model is not None:
            model = replace(model, transformer=lives(model.transformer))
        if text_encoder is not None:
            text_encoder = replace(text_encoder, encoder=lives(text_encoder.encoder))
        return io.NodeOutput(model, text_encoder)


def _one_of(name: str, value: str | None, choices) -> bool | str:
    """Combos are not checked by the oldest host, so nodes check them themselves."""
    if value is None or value in choices:
        return True
    return f"{name} must be one of {', '.join(choices)}, got {value!r}"


NODES = [Precision, Residency]
