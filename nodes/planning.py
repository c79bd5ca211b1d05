"""Plan node: what a run will hold on the device, before anything is computed."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..aiprod_engine.memory.plan import GIB
from ..aiprod_engine.pipelines.enhance import Writing
from ..aiprod_engine.pipelines.planning import RunShape, plan_run
from ..aiprod_engine.sampling.passes import plan_passes
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_input, make_schema


class Plan(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODPlan",
            display_name="Plan",
            category="AIPROD/planning",
            description="Shows what every phase of a run will hold on the device, and what stays "
            "there or streams. Reads headers; runs nothing.",
            search_aliases=["memory", "VRAM", "estimate"],
            inputs=[
                sockets.Model.Input("model"),
                sockets.Latent.Input("latent", tooltip="What the first stage samples."),
                sockets.TextEncoder.Input("text_encoder", optional=True),
                sockets.VideoVAE.Input("video_vae", optional=True),
                sockets.AudioVAE.Input("audio_vae", optional=True),
                sockets.Upsampler.Input(
                    "upsampler", optional=True, tooltip="Adds a second stage at its size."
                ),
                sockets.Guider.Input(
                    "guider", optional=True, tooltip="Says how many evaluations a step takes."
                ),
                make_input(
                    io.Float.Input, "free_gib", default=0.0, min=0.0, max=1024.0, step=0.5,
                    optional=True,
                    tooltip="Plan for so many free GiB; 0: what this device has free now.",
                ),
                make_input(
                    io.Boolean.Input, "enhance", default=False, optional=True,
                    tooltip="The run has an Enhance Prompt node; with the text encoder connected, "
                    "its phase is planned too.",
                ),
            ],
            outputs=[io.String.Output("text", display_name="text")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, free_gib=0.0, **_) -> float:
        return free_gib or float("nan")  # what is free now is never the same

    @classmethod
    def execute(
        cls, model, latent, text_encoder=None, video_vae=None, audio_vae=None, upsampler=None,
        guider=None, free_gib=0.0, enhance=False,
    ) -> io.NodeOutput:  # fmt: skip
        host.require_version("latent", latent.version, model.info.version)
        recipes = _recipes(model, text_encoder, video_vae, audio_vae, upsampler)
        free = free_gib * GIB if free_gib else host.free_memory(host.compute_device())
        is_guided = guider is not None and guider.negative is not None
        shape = RunShape(
            latent,
            prompts=1 + is_guided,
            written_tokens=Writing().max_tokens if enhance else 0,
            is_watched=host.preview_side() is not None,
            device=host.compute_device(),
        )
        plan = plan_run(recipes, shape, free)
        text = plan.describe()
        if guider is not None:
            text += f"\n{len(plan_passes(guider.video, guider.audio))} evaluations a step"
        host.logger.info("Plan: %s", plan.summary())
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _recipes(model, text_encoder, video_vae, audio_vae, upsampler) -> dict[str, Recipe]:
    """Recipes of everything that is connected, by kind."""
    found = [model.transformer]
    if text_encoder is not None:
        found += [text_encoder.encoder, text_encoder.parts.connector]
    if video_vae is not None:
        found += [video_vae.encoder, video_vae.decoder]
    if audio_vae is not None:
        found += [audio_vae.encoder, audio_vae.decoder, audio_vae.vocoder]
    if upsampler is not None:
        found.append(upsampler.upsampler)
    return {recipe.kind: recipe for recipe in found}


NODES = [Plan]
