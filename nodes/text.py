"""Prompt nodes."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui
from torch import Tensor

from ..aiprod_engine.media.pixels import to_bytes
from ..aiprod_engine.models.text.generate import Sampling
from ..aiprod_engine.pipelines.enhance import Idea, Writing, look_at, write
from ..aiprod_engine.pipelines.planning import (
    connector_need,
    looking_need,
    prompt_need,
    writing_need,
)
from ..aiprod_engine.pipelines.prompts import contexts, hidden_states
from ..aiprod_engine.weights import load_tokenizer
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema

LARGEST_SEED = 2**53 - 1  # the browser rounds above


class EncodePrompt(Node):
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
        texts, recipe = (text, negative_text), text_encoder.encoder

        def states(encoder):
            stop = host.check_cancelled
            return [hidden_states(tokenizer, encoder, each, on_layer=stop) for each in texts]

        with host.placed(prompt_need(recipe, len(texts)), recipe) as placed:
            found = placed.run(states)
        recipe, version = text_encoder.parts.connector, text_encoder.version
        with host.placed(connector_need(recipe, len(texts)), recipe) as placed:
            encoded = placed.run(lambda network: [contexts(network, s, version) for s in found])
        return io.NodeOutput(*encoded)


class EnhancePrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODEnhancePrompt",
            display_name="Enhance Prompt",
            category="AIPROD/text",
            description="Lets Gemma write a full prompt from a short idea, and shows it. Connect "
            "the text to Encode Prompt to use it. Needs a Gemma 3 text encoder.",
            search_aliases=["prompt enhancer", "LLM", "TextGenerate"],
            inputs=[
                sockets.TextEncoder.Input("text_encoder"),
                make_input(
                    io.String.Input, "text", multiline=True, dynamic_prompts=False, default="",
                    tooltip="The idea. If Gemma writes nothing usable, it is passed on as it is.",
                ),
                make_input(
                    io.Int.Input, "max_tokens", default=512, min=32, max=1024,
                    tooltip="Longest text; a prompt of more than 1024 tokens is never read.",
                ),
                make_input(
                    io.Float.Input, "temperature", default=0.7, min=0.0, max=2.0, step=0.05,
                    tooltip="Higher is more surprising; 0 takes the likeliest word every time.",
                ),
                make_input(
                    io.Int.Input, "top_k", default=50, min=0, max=1000,
                    tooltip="Draw among so many likeliest words; 0 among all.",
                ),
                make_input(
                    io.Int.Input, "seed", default=10, min=0, max=LARGEST_SEED,
                    control_after_generate=True, tooltip="Another seed writes another text.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="First frame of an image-to-video clip: the text then tells what "
                    "changes from it. The text encoder's file must hold its vision tensors.",
                ),
            ],
            outputs=[io.String.Output("text_out", display_name="text")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, text_encoder, text, max_tokens, temperature, top_k, seed, image=None
    ) -> io.NodeOutput:
        encoder = text_encoder.encoder
        writing = Writing(max_tokens, Sampling(temperature, top_k), seed)
        tokenizer = load_tokenizer(encoder.files)
        rows = None if image is None else _rows(encoder, image)
        idea = Idea(text, rows, text_encoder.version)
        with host.placed(writing_need(encoder, max_tokens), encoder) as placed:
            advance = host.progress(max_tokens, "token")
            written = placed.run(lambda gemma: write(tokenizer, gemma, idea, writing, advance))
        host.logger.info("Enhance Prompt wrote: %s", written)
        return io.NodeOutput(written, ui=ui.PreviewText(written))


def _rows(encoder: Recipe, image: Tensor) -> Tensor:
    """What Gemma reads of the first picture (H, W, 3) of a host IMAGE."""
    recipe = replace(encoder, kind="text_vision")
    with host.placed(looking_need(recipe), recipe) as placed:
        return placed.run(lambda vision: look_at(vision, to_bytes(image[0])))


NODES = [EncodePrompt, EnhancePrompt]
