"""Prompt nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.pipelines.prompts import contexts, hidden_states
from ..aiprod_engine.weights import load_tokenizer
from . import _host as host
from . import _sockets as sockets
from ._schema import make_input, make_schema


class EncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODEncodePrompt",
            display_name="Encode Prompt",
            category="AIPROD/text",
            description="Encodes a prompt for picture and sound. Gemma leaves the device before "
            "the connectors are loaded.",
            search_aliases=["CLIP Text Encode", "prompt"],
            inputs=[
                sockets.TextEncoder.Input("text_encoder"),
                make_input(
                    io.String.Input,
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    tooltip="Describe the scene and its sounds in one paragraph. Braces and // "
                    "are kept as written. At most 1024 tokens are read.",
                ),
                make_input(
                    io.String.Input,
                    "negative_text",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    optional=True,
                    tooltip="What to stay away from; only a CFG Guider uses it. Both prompts are "
                    "encoded in one visit to Gemma.",
                ),
            ],
            outputs=[
                sockets.Conditioning.Output("positive", display_name="positive"),
                sockets.Conditioning.Output("negative", display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, text_encoder, text, negative_text="") -> io.NodeOutput:
        tokenizer = load_tokenizer(text_encoder.encoder.files)
        with host.on_device(text_encoder.encoder) as (encoder,):
            states = [
                hidden_states(tokenizer, encoder, prompt, on_layer=host.check_cancelled)
                for prompt in (text, negative_text)
            ]
        with host.on_device(text_encoder.parts.connector) as (connector,):
            encoded = [contexts(connector, each, text_encoder.version) for each in states]
        return io.NodeOutput(*encoded)


NODES = [EncodePrompt]
