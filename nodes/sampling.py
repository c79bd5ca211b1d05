"""Schedule and sampler nodes."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.pipelines.encoders import encode_sound, encode_video
from ..aiprod_engine.pipelines.guides import Encoders, encode_guides
from ..aiprod_engine.pipelines.stage import SAMPLERS, Noise, Stage, Start, run_stage
from ..aiprod_engine.sampling import presets, schedules
from ..aiprod_engine.sampling.denoise import Contexts
from ..aiprod_engine.types import AVLatent, Streams
from . import _host as host
from . import _sockets as sockets
from ._schema import make_input, make_schema

CATEGORY = "AIPROD/sampling"
SCHEDULES = {
    "ltx2": schedules.ltx2,
    "linear_quadratic": schedules.linear_quadratic,
    "beta": schedules.beta,
}
STAGES = {"stage 1": "distilled", "stage 2": "stage_2"}  # widget value -> table
LARGEST_SEED = 2**53 - 1  # the browser rounds above


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODSchedule",
            display_name="Schedule",
            category=CATEGORY,
            description="Noise levels for undistilled checkpoints.",
            search_aliases=["scheduler", "sigmas"],
            inputs=[
                make_input(
                    io.Combo.Input, "schedule", options=list(SCHEDULES), default="ltx2",
                    tooltip="ltx2 is what the authors sample with.",
                ),
                make_input(
                    io.Int.Input, "steps", default=30, min=2, max=1000,
                    tooltip="30 for 2.3, 40 for 2.0.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, schedule) -> bool | str:
        return _one_of("schedule", schedule, SCHEDULES)

    @classmethod
    def execute(cls, schedule, steps) -> io.NodeOutput:
        return io.NodeOutput(SCHEDULES[schedule](steps))


class DistilledSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODDistilledSchedule",
            display_name="Distilled Schedule",
            category=CATEGORY,
            description="The fixed noise levels that distilled checkpoints were made for.",
            search_aliases=["distilled sigmas"],
            inputs=[
                make_input(
                    io.Combo.Input, "stage", options=list(STAGES), default="stage 1",
                    tooltip="stage 1: 8 steps from noise. stage 2: 3 steps after an upscale.",
                )
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, stage) -> bool | str:
        return _one_of("stage", stage, STAGES)

    @classmethod
    def execute(cls, stage) -> io.NodeOutput:
        return io.NodeOutput(schedules.table(STAGES[stage]))


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODSampler",
            display_name="Sampler",
            category=CATEGORY,
            description="Denoises picture and sound together. Cancel stops within one block.",
            search_aliases=["KSampler", "SamplerCustomAdvanced"],
            inputs=[
                sockets.Model.Input("model"),
                sockets.Guider.Input("guider"),
                io.Sigmas.Input("sigmas"),
                sockets.Latent.Input("latent"),
                make_input(
                    io.Combo.Input, "sampler", options=list(SAMPLERS), default="euler",
                    tooltip="euler is what the authors use with these schedules.",
                ),
                make_input(
                    io.Int.Input, "seed", default=10, min=0, max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="Same seed, size and settings give the same result on every device.",
                ),
                sockets.Guides.Input(
                    "guides", optional=True, tooltip="Images, videos and sounds to follow."
                ),
            ],
            outputs=[sockets.Latent.Output("latent_out", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, sampler) -> bool | str:
        return _one_of("sampler", sampler, SAMPLERS)

    @classmethod
    def execute(cls, model, guider, sigmas, latent, sampler, seed, guides=None) -> io.NodeOutput:
        host.require_version("prompt", guider.positive.version, model.info.version)
        host.require_version("latent", latent.version, model.info.version)
        if len(sigmas) < 2:
            raise MismatchError("the Sampler needs at least one step; sigmas holds none")
        latent = replace(latent, version=model.info.version)
        start = Start(latent) if guides is None else _encoded(guides, latent, model)
        # a latent that was sampled before is refined from the level at which the schedule begins
        level = 1.0 if latent.video is None and latent.audio is None else float(sigmas[0])
        contexts = Contexts(guider.positive, guider.negative)
        stage = Stage(contexts, sigmas, _guidance(guider, model), sampler, level)
        advance = host.progress(len(sigmas) - 1)

        def tell(event, value) -> None:
            if event == "step":
                advance(value.index + 1)

        with host.on_device(model.transformer) as (transformer,):
            done = run_stage(
                transformer, start, stage, Noise.seeded(seed), tell,
                on_block=lambda _: host.check_cancelled(),
            )  # fmt: skip
        return io.NodeOutput(done)


def _encoded(guides: sockets.GuidesPayload, latent: AVLatent, model: sockets.ModelPayload) -> Start:
    """The stage's start with all guides, encoded for the size of this latent."""

    def video(frames):
        if guides.video_vae is None:
            raise MismatchError("these guides hold pictures; connect a video VAE to one of them")
        host.require_version("guides' video VAE", guides.video_vae.info.version, latent.version)
        with host.on_device(guides.video_vae.encoder) as (encoder,):
            return encode_video(encoder, frames)

    def audio(sound):
        host.require_version("guides' audio VAE", guides.audio_vae.info.version, latent.version)
        with host.on_device(guides.audio_vae.encoder) as (encoder,):
            return encode_sound(encoder, sound)

    return encode_guides(guides.guides, latent, Encoders(video, audio), model.reference)


def _guidance(guider: sockets.GuiderPayload, model: sockets.ModelPayload) -> Streams:
    if not guider.auto_blocks:
        return Streams(guider.video, guider.audio)
    blocks = presets.preset(model.info.version).video.stg_blocks
    return Streams(
        replace(guider.video, stg_blocks=blocks), replace(guider.audio, stg_blocks=blocks)
    )


def _one_of(name: str, value: str | None, choices) -> bool | str:
    """Combos are not checked by the oldest host, so nodes check them themselves."""
    if value is None or value in choices:
        return True
    return f"{name} must be one of {', '.join(choices)}, got {value!r}"


NODES = [Schedule, DistilledSchedule, Sampler]
