"""Lets the host's samplers run this pack's model."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.pipelines.outside import carried
from ..aiprod_engine.types import Streams
from ..aiprod_engine.weights import configuration
from . import _host as host
from . import _sockets as sockets
from ._sampler_bridge import STREAMS, HostGuider, Job
from ._schema import Node, make_schema
from .sampling import PREVIEW_TOOLTIP, checked, encoded, transformer_of


class HostGuiderNode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODHostGuider",
            display_name="Host Guider",
            category="AIPROD/interop",
            description="Hands model, guider and clip to SamplerCustomAdvanced, so that any "
            "sampler of ComfyUI can run them.",
            search_aliases=["SamplerCustomAdvanced", "KSamplerSelect", "GUIDER"],
            inputs=[
                sockets.Model.Input("model"),
                sockets.Guider.Input("guider", tooltip="From Guider, CFG Guider or APG Guider."),
                sockets.Latent.Input(
                    "latent", tooltip="Size and length, or a clip that is refined."
                ),
                sockets.Guides.Input(
                    "guides", optional=True, tooltip="Images, videos and sounds to follow."
                ),
                sockets.VideoVAE.Input(
                    "video_vae", optional=True,
                    tooltip=f"{PREVIEW_TOOLTIP} That of the guides will do.",
                ),
            ],
            outputs=[
                io.Guider.Output("host_guider", display_name="host guider"),
                io.Latent.Output("latent_out", display_name="latent"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, guider, latent, guides=None, video_vae=None) -> io.NodeOutput:
        latent = checked(model, guider, latent)
        start = encoded(guides, latent, model)
        recipe = transformer_of(model, latent)
        latents, masks = carried(configuration(recipe.kind, recipe.files, recipe.modalities), start)
        job = Job(model, guider, start, guides, video_vae or (guides and guides.video_vae))
        present = {name: getattr(latents, name) for name in STREAMS}
        shapes = {name: t.shape[1:] for name, t in present.items() if t is not None}
        return io.NodeOutput(HostGuider(job, shapes), _host_latent(latents, masks))


def _host_latent(latents: Streams, masks: Streams) -> dict:
    """A LATENT of the streams, with a mask where guides keep something."""
    names = [name for name in STREAMS if getattr(latents, name) is not None]
    samples = host.joined([getattr(latents, name) for name in names])
    made = {"samples": samples} | ({"type": "audio"} if names == ["audio"] else {})
    kept = [getattr(masks, name) for name in names]
    if any(bool((mask < 1).any()) for mask in kept):
        made["noise_mask"] = host.joined(kept)
    return made


NODES = [HostGuiderNode]
