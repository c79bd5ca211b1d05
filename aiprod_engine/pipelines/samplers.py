"""Samplers by name, and where each run takes its random numbers from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..sampling.loops import euler, euler_ancestral, euler_cfg_pp, gradient_estimation, heun
from ..sampling.noise import CpuNoise, NoiseSource, WhitenedNoise, ancestral_noise
from ..sampling.res2s import res_2s
from ..types import NoiseState, Streams

SAMPLERS: dict[str, Callable[..., Streams]] = {
    "euler": euler,
    "heun": heun,
    "euler_ancestral": euler_ancestral,
    "euler_cfg_pp": partial(euler_cfg_pp, eta=0.0),
    "euler_ancestral_cfg_pp": euler_cfg_pp,
    "res_2s": res_2s,
    "gradient_estimation": gradient_estimation,
}
# Samplers that draw noise in every step -> source for the seed of the run.
STEP_NOISE: dict[str, Callable[[int], NoiseSource]] = {
    "euler_ancestral": ancestral_noise,
    "euler_ancestral_cfg_pp": ancestral_noise,
    "res_2s": lambda seed: WhitenedNoise(),  # noqa: ARG005 - the reference never seeds it
}
NEEDS_UNCOND = ("euler_cfg_pp", "euler_ancestral_cfg_pp")


@dataclass(frozen=True)
class Noise:
    """Random numbers of one run: `initial` serves all stages in turn, `steps` starts anew in each.

    `steps(sampler)` is the source of noise within a stage, None for samplers that draw none.
    """

    initial: NoiseSource
    steps: Callable[[str], NoiseSource | None]

    @classmethod
    def seeded(cls, seed: int, before: NoiseState | None = None) -> Noise:
        """The default: CPU generators, so that results do not depend on the device.

        A stage that follows one of the same seed goes on where that one ended.
        """
        initial = CpuNoise(seed)
        if before is not None and before.seed == seed:
            initial.generator.set_state(before.state)

        def steps(sampler: str) -> NoiseSource | None:
            return STEP_NOISE[sampler](seed) if sampler in STEP_NOISE else None

        return cls(initial, steps)

    @classmethod
    def injected(cls, source: NoiseSource) -> Noise:
        """Every draw, of every purpose, from one source."""
        return cls(source, lambda sampler: source)  # noqa: ARG005
