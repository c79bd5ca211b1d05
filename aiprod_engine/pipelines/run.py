"""What all pipelines share: the blocks that they are chains of, and what a user may set.

A pipeline gets a `Run` (networks, randomness, listeners), an empty clip that states size and time,
the encoded prompts and guides, and returns the clip's latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import MismatchError
from ..latents.rules import check_clip
from ..sampling import schedules
from ..sampling.denoise import Contexts
from ..sampling.presets import Preset
from ..types import AVLatent, Streams
from ..weights.lora.ic_lora import Reference
from .encoders import encoders
from .guides import NEUTRAL, Guide, encode_guides
from .networks import Lora, Networks
from .planning import sampling_need, upsampling_need
from .stage import Noise, Stage, Start, Tell, run_stage, silent
from .upsample import upsample


@dataclass(frozen=True)
class Run:
    """One run: its networks, its random numbers, and who listens.

    `noise` replaces the generators of `seed`. `tell` hears "stage1.<event>" and "stage2.<event>"
    (see `run_stage`) and "upsampled"; `on_block` runs before every block of the transformer. Both
    may raise to cancel.
    """

    networks: Networks
    seed: int = 10
    noise: Noise | None = None
    tell: Tell = silent
    on_block: Callable[[int], None] | None = None

    def begin(self) -> Noise:
        """Random numbers of a run from its beginning."""
        return self.noise or Noise.seeded(self.seed)

    def tells(self, name: str) -> Tell:
        """A listener for one block of the run."""

        def tell(event: str, value: Any) -> None:
            self.tell(f"{name}.{event}", value)

        return tell


@dataclass(frozen=True)
class Settings:
    """What a user may change; None takes what the authors ship for the model's version.

    `steps`, `sigmas` (which win over steps), `sampler` and `guidance` belong to the first stage,
    `refine_sigmas` to the second, `loras` (file, strength) to all that the pipeline gives them to.
    """

    steps: int | None = None
    sigmas: Tensor | None = None
    refine_sigmas: Tensor | None = None
    sampler: str | None = None
    guidance: Streams | None = None
    loras: tuple[Lora, ...] = ()
    batch_passes: int = 1


DEFAULTS = Settings()


def checked(run: Run, clip: AVLatent, two_stage: bool = False) -> AVLatent:
    """The clip with its model version; raises if its size or length is off the grid."""
    check_clip(clip.frames, clip.height, clip.width, two_stage)
    version = run.networks.version
    if clip.version not in (None, version):
        raise MismatchError(
            f"the clip's latents are of version {clip.version}, the transformer is {version}; "
            "use the checkpoint that made the clip"
        )
    return replace(clip, version=version)


def halved(clip: AVLatent) -> AVLatent:
    """The first of two stages: half the height and width."""
    return replace(clip, height=clip.height // 2, width=clip.width // 2)


def guided(
    contexts: Contexts,
    settings: Settings,
    preset: Preset,
    tokens: int = schedules.DEFAULT_TOKENS,
    sampler: str = "euler",
) -> Stage:
    """First stage of an undistilled model: the shifted schedule and guidance of `preset`."""
    sigmas = settings.sigmas
    if sigmas is None:
        sigmas = schedules.ltx2(settings.steps or preset.steps, tokens)
    return Stage(
        contexts,
        sigmas,
        settings.guidance or Streams(preset.video, preset.audio),
        settings.sampler or sampler,
        batch_passes=settings.batch_passes,
    )


def unguided(contexts: Contexts, settings: Settings, sampler: str = "euler") -> Stage:
    """First stage of a distilled model: the fixed table, one evaluation a step."""
    sigmas = schedules.table("distilled") if settings.sigmas is None else settings.sigmas
    guidance = settings.guidance or Streams()
    return Stage(contexts, sigmas, guidance, settings.sampler or sampler)


def refining(contexts: Contexts, settings: Settings, sampler: str = "euler") -> Stage:
    """Second stage: re-noises the upsampled latent and runs the short table, without guidance."""
    sigmas = settings.refine_sigmas
    if sigmas is None:
        sigmas = schedules.table("stage_2")
    return Stage(contexts, sigmas, sampler=sampler, noise_scale=float(sigmas[0]))


def condition(
    run: Run, clip: AVLatent, guides: Sequence[Guide], reference: Reference = NEUTRAL
) -> Start:
    """Block I/A: guides encoded at the size of `clip`."""
    return encode_guides(guides, clip, encoders(run.networks, clip), reference)


def sample(
    run: Run, name: str, start: Start, stage: Stage, noise: Noise, loras: Sequence[Lora] = ()
) -> AVLatent:
    """Block D: the transformer with its LoRA set, built, run, disposed."""
    only = "audio" if start.latent.modalities == "audio" else None  # half of the weights
    recipe = run.networks.recipe("transformer", loras, only)
    need = sampling_need(recipe, start, stage.batch_passes)
    with run.networks.place(need, recipe) as placed:
        (model,) = placed.networks
        tell = run.tells(name)
        return run_stage(model, start, stage, noise, tell, run.on_block, placed)


def upscale(run: Run, clip: AVLatent) -> AVLatent:
    """Block U: twice the height and width."""
    recipe, statistics = run.networks.recipe("upsampler"), run.networks.statistics()
    with run.networks.place(upsampling_need(recipe, clip), recipe) as placed:
        upsampled = placed.run(lambda upsampler: upsample(upsampler, statistics, clip))
    run.tell("upsampled", upsampled)
    return upsampled
