"""Schedule and sampler nodes."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.pipelines.audio_to_video import for_given_sound
from ..aiprod_engine.pipelines.encode import encode_sound, encode_video
from ..aiprod_engine.pipelines.extend import Extension, carried, check_extension, joined
from ..aiprod_engine.pipelines.guides import AudioTrackGuide, Encoders, encode_guides
from ..aiprod_engine.pipelines.planning import guides_need, listening_need, sampling_need
from ..aiprod_engine.pipelines.stage import SAMPLERS, Noise, Stage, Start, grid_of, run_stage
from ..aiprod_engine.sampling import presets, schedules
from ..aiprod_engine.sampling.denoise import Contexts
from ..aiprod_engine.types import AVLatent, NoiseState, Streams
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets
from ._preview import live_preview
from ._schema import Node, make_input, make_schema

CATEGORY = "AIPROD/sampling"
SCHEDULES = {
    "ltx2": schedules.ltx2,
    "linear_quadratic": schedules.linear_quadratic,
    "beta": schedules.beta,
}
STAGES = {"stage 1": "distilled", "stage 2": "stage_2"}  # widget value -> table
LARGEST_SEED = 2**53 - 1  # the browser rounds above
PREVIEW_TOOLTIP = (
    "For the live preview, where it is switched on in the settings of ComfyUI. The first run fits "
    "it to this VAE."
)


class Schedule(Node):
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
                sockets.Latent.Input(
                    "latent", optional=True,
                    tooltip="Shifts ltx2 by the real size of this clip, as the HQ pipeline does; "
                    "otherwise by the size that all other pipelines assume.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, schedule) -> bool | str:
        return _one_of("schedule", schedule, SCHEDULES)

    @classmethod
    def execute(cls, schedule, steps, latent=None) -> io.NodeOutput:
        if latent is None or schedule != "ltx2":
            return io.NodeOutput(SCHEDULES[schedule](steps))
        grid = grid_of(latent)
        return io.NodeOutput(schedules.ltx2(steps, grid.frames * grid.height * grid.width))


class DistilledSchedule(Node):
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


class Sampler(Node):
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
                sockets.VideoVAE.Input(
                    "video_vae", optional=True, tooltip=f"{PREVIEW_TOOLTIP} That of the guides "
                    "will do.",
                ),
            ],
            outputs=[sockets.Latent.Output("latent_out", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, sampler) -> bool | str:
        return _one_of("sampler", sampler, SAMPLERS)

    @classmethod
    def execute(
        cls, model, guider, sigmas, latent, sampler, seed, guides=None, video_vae=None
    ) -> io.NodeOutput:
        latent = checked(model, guider, latent)
        stage = stage_of(model, guider, sigmas, guides)
        # a latent that was sampled before is refined from the level at which the schedule begins
        level = 1.0 if latent.video is None and latent.audio is None else float(sigmas[0])
        stage = replace(stage, sampler=sampler, noise_scale=level)
        start = encoded(guides, latent, model)
        video_vae = video_vae or (guides and guides.video_vae)
        return io.NodeOutput(_sampled(model, start, stage, seed, video_vae))


class Extend(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="AIPRODExtend",
            display_name="Extend",
            category=CATEGORY,
            description="Lets a finished clip go on: its last frames and their sound are carried "
            "over, and both are joined to what is new.",
            search_aliases=["longer video", "continue"],
            inputs=[
                sockets.Model.Input("model"),
                sockets.Guider.Input("guider"),
                io.Sigmas.Input("sigmas"),
                sockets.Latent.Input("latent", tooltip="The finished clip."),
                make_input(
                    io.Int.Input, "frames", default=80, min=8, max=2048, step=8,
                    tooltip="Frames to add, a multiple of 8.",
                ),
                make_input(
                    io.Int.Input, "overlap", default=3, min=1, max=64,
                    tooltip="Latent frames (8 frames each) that are carried over.",
                ),
                make_input(
                    io.Float.Input, "strength", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How firmly the new clip is held to what is carried over.",
                ),
                make_input(
                    io.Combo.Input, "sampler", options=list(SAMPLERS), default="euler",
                    tooltip="euler is what the authors use with these schedules.",
                ),
                make_input(
                    io.Int.Input, "seed", default=10, min=0, max=LARGEST_SEED,
                    control_after_generate=True, tooltip="Give every extension its own.",
                ),
                sockets.VideoVAE.Input("video_vae", optional=True, tooltip=PREVIEW_TOOLTIP),
            ],
            outputs=[sockets.Latent.Output("latent_out", display_name="latent")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, sampler) -> bool | str:
        return _one_of("sampler", sampler, SAMPLERS)

    @classmethod
    def execute(
        cls, model, guider, sigmas, latent, frames, overlap, strength, sampler, seed,
        video_vae=None,
    ) -> io.NodeOutput:  # fmt: skip
        latent = checked(model, guider, latent)
        extension = Extension(frames, overlap, strength)
        check_extension(latent, extension)
        stage = replace(stage_of(model, guider, sigmas), sampler=sampler)
        new = _sampled(model, carried(latent, extension), stage, seed, video_vae)
        return io.NodeOutput(joined(latent, new, extension))


def checked(
    model: sockets.ModelPayload, guider: sockets.GuiderPayload, latent: AVLatent
) -> AVLatent:
    """The clip with the model's version; raises if parts do not belong together."""
    host.require_version("prompt", guider.positive.version, model.info.version)
    host.require_version("latent", latent.version, model.info.version)
    return replace(latent, version=model.info.version)


def stage_of(
    model: sockets.ModelPayload,
    guider: sockets.GuiderPayload,
    sigmas: Tensor,
    guides: sockets.GuidesPayload | None = None,
) -> Stage:
    """Prompts, guidance and schedule of a stage that begins with noise alone."""
    if len(sigmas) < 2:
        raise MismatchError("sampling needs at least one step; sigmas holds none")
    stage = Stage(Contexts(guider.positive, guider.negative), sigmas, _guidance(guider, model))
    if guides and any(isinstance(guide, AudioTrackGuide) for guide in guides.guides):
        return for_given_sound(stage)
    return stage


def _sampled(
    model: sockets.ModelPayload,
    start: Start,
    stage: Stage,
    seed: int,
    video_vae: sockets.VideoVAEPayload | None = None,
) -> AVLatent:
    """The stage's result, with progress and preview per step and cancel per block."""
    picture = live_preview(video_vae, start.latent)
    advance = host.progress(len(stage.sigmas) - 1, unit="step")

    def tell(event, value) -> None:
        if event == "step":
            advance(value.index + 1, picture(value))

    def stop(_: int) -> None:
        host.check_cancelled()

    recipe = transformer_of(model, start.latent)
    noise = Noise.seeded(seed, start.latent.noise)
    with host.placed(sampling_need(recipe, start), recipe) as placed:
        (transformer,) = placed.networks
        done = run_stage(transformer, start, stage, noise, tell, stop, placed)
    # a second stage with the same seed goes on with these numbers, as the authors' pipelines do
    return replace(done, noise=NoiseState(seed, noise.initial.generator.get_state()))


def transformer_of(model: sockets.ModelPayload, latent: AVLatent) -> Recipe:
    """The recipe that a clip needs: for sound alone the picture's part is never read."""
    recipe = model.transformer
    return replace(recipe, modalities="audio") if latent.modalities == "audio" else recipe


def encoded(
    guides: sockets.GuidesPayload | None, latent: AVLatent, model: sockets.ModelPayload
) -> Start:
    """The stage's start with all guides, encoded for the size of this latent."""
    if guides is None:
        return Start(latent)

    def video(frames):
        if guides.video_vae is None:
            raise MismatchError("these guides hold pictures; connect a video VAE to one of them")
        host.require_version("guides' video VAE", guides.video_vae.info.version, latent.version)
        recipe = guides.video_vae.encoder
        with host.placed(guides_need(recipe, latent, host.device_of(recipe)), recipe) as placed:
            return placed.run(lambda encoder: encode_video(encoder, frames, placed.way.piece))

    def audio(sound):
        host.require_version("guides' audio VAE", guides.audio_vae.info.version, latent.version)
        recipe, seconds = guides.audio_vae.encoder, sound.waveform.shape[-1] / sound.rate
        with host.placed(listening_need(recipe, seconds), recipe) as placed:
            return placed.run(lambda encoder: encode_sound(encoder, sound))

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


NODES = [Schedule, DistilledSchedule, Sampler, Extend]
