"""Upscaling nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..aiprod_engine.pipelines.planning import upsampling_need
from ..aiprod_engine.pipelines.upsample import upsample
from . import _host as host
from . import _sockets as sockets
from ._schema import Node, make_schema


class UpsampleLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODUpsampleLatent",
            display_name="Upsample Latent",
            category="AIPROD/upscaling",
            description="Enlarges a clip between two sampling stages: x2 or x1.5 in size, or x2 in "
            "frame rate. Sample it again afterwards with the stage 2 schedule.",
            search_aliases=["latent upscale", "LTXVLatentUpsampler"],
            inputs=[
                sockets.Latent.Input("latent"),
                sockets.Upsampler.Input("upsampler"),
                sockets.VideoVAE.Input("video_vae", tooltip="Its channel statistics are needed."),
            ],
            outputs=[sockets.Latent.Output("latent_out", display_name="latent")],
        )

    @classmethod
    def execute(cls, latent, upsampler, video_vae) -> io.NodeOutput:
        host.require_version("upsampler", upsampler.info.version, latent.version)
        host.require_version("video VAE", video_vae.info.version, latent.version)
        statistics = host.statistics(video_vae.decoder)
        recipe = upsampler.upsampler
        with host.placed(upsampling_need(recipe, latent), recipe) as placed:
            done = placed.run(lambda network: upsample(network, statistics, latent))
        return io.NodeOutput(done)


NODES = [UpsampleLatent]
