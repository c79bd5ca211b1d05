"""This pack's model, guider and clip in the shape that the host's samplers expect.

The host calls `HostGuider.sample`, which lets a host sampler call the guider back for every x0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.memory.placed import Placed
from ..aiprod_engine.pipelines.outside import OutsideDenoiser
from ..aiprod_engine.pipelines.planning import sampling_need
from ..aiprod_engine.pipelines.stage import Start
from ..aiprod_engine.sampling.noise import CpuNoise
from ..aiprod_engine.types import Streams
from . import _host as host
from . import _sockets as sockets
from ._preview import latent_rgb
from .sampling import stage_of, transformer_of

_NONE: Mapping[str, Any] = MappingProxyType({})
STREAMS = ("video", "audio")


@dataclass(frozen=True)
class Job:
    """What is sampled: the inputs of the Sampler node, guides encoded."""

    model: sockets.ModelPayload
    guider: sockets.GuiderPayload
    start: Start
    guides: sockets.GuidesPayload | None = None
    video_vae: sockets.VideoVAEPayload | None = None


class Core:
    """What the host's samplers ask a model for; latents are stored as they are sampled."""

    def __init__(self, job: Job, channels: int, axes: int) -> None:
        self.model_sampling = host.FlowSampling()
        self.denoised: list[Tensor] | None = None  # of the last step; waits to be asked for once
        self._job, self._channels, self._axes = job, channels, axes

    @property
    def latent_format(self):
        """Read when a run begins, so that its preview setting counts."""
        rgb = latent_rgb(self._job.video_vae, self._job.start.latent)
        return host.latent_format(self._channels, self._axes, rgb)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent

    def process_latent_out(self, latent: Tensor):
        """After a run: the last x0 of all streams; the host only holds what was shown of it."""
        last, self.denoised = self.denoised, None
        if last is None:
            return latent
        return host.joined([stream.to(latent.device) for stream in last], host.Denoised)

    def scale_latent_inpaint(self, latent_image: Tensor, **_: Any) -> Tensor:
        """Kept places are clean at every level."""
        return latent_image


class Patcher:
    """Stands where the host has the wrapper of a model; weights are placed by `host.placed`."""

    def __init__(self, model: Core, device: torch.device) -> None:
        self.model = model
        self.load_device = device
        self.offload_device = torch.device("cpu")
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def get_model_object(self, name: str):
        return getattr(self.model, name)

    def model_dtype(self) -> torch.dtype:
        return torch.float32


@dataclass(frozen=True)
class _Run:
    """One call of a sampler: what predicts, and how packed latents come apart."""

    denoise: OutsideDenoiser
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sigmas: tuple[float, ...]

    def streams(self, packed: Tensor) -> Streams:
        return Streams(**dict(zip(self.names, host.unpack(packed, self.shapes), strict=True)))

    def packed(self, streams: Streams) -> Tensor:
        return host.pack([getattr(streams, name) for name in self.names])

    def step(self, sigma: float) -> int:
        """Index of the step in which a level lies; samplers also ask between two levels."""
        return max(sum(level >= sigma for level in self.sigmas) - 1, 0)

    def shown(self, packed: Tensor) -> Tensor:
        """What previews take: one frame from the middle, or the sound."""
        first = host.unpack(packed, self.shapes)[0]
        return first if first.ndim < 5 else first[:, :, first.shape[2] // 2, None]


class HostGuider:
    """A GUIDER of the host; `shapes` are those of the streams that it samples, (C, ...)."""

    def __init__(self, job: Job, shapes: Mapping[str, Sequence[int]]) -> None:
        self._job, self._shapes = job, {name: tuple(shape) for name, shape in shapes.items()}
        self._recipe = transformer_of(job.model, job.start.latent)
        first = next(iter(self._shapes.values()))
        self.inner_model = Core(job, channels=first[0], axes=len(first) - 1)
        self.model_patcher = Patcher(self.inner_model, host.device_of(self._recipe))
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"host guider of {self._job.model!r}"

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None,
        disable_pbar=False, seed=None,
    ):  # fmt: skip
        """The latent after the host's sampler; the signature is the host's."""
        if len(sigmas) < 2:
            return latent_image
        device = self.model_patcher.load_device
        latents = [t.to(device, torch.float32) for t in host.members(latent_image)]
        self._check(latents)
        masks = None if denoise_mask is None else _masks(denoise_mask, latents)
        extra = {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": seed}
        with host.placed(sampling_need(self._recipe, self._job.start), self._recipe) as placed:
            self._run = run = self._begin(placed, latents, masks, sigmas, seed or 0)
            try:
                samples = sampler.sample(
                    self, sigmas.to(device), extra, self._watched(callback),
                    host.pack(_noises(noise, latents)), host.pack(latents),
                    None if masks is None else host.pack(masks), disable_pbar,
                )  # fmt: skip
            finally:
                self._run = None
        return host.joined(host.unpack(samples.float(), run.shapes))

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: Mapping = _NONE, seed: int | None = None
    ) -> Tensor:
        """x0 of packed latents, before the sampler blends kept places; for host samplers."""
        host.check_cancelled()
        run, level = self._run, float(sigma.flatten()[0])
        prediction = run.denoise(
            run.streams(x), level, run.step(level),
            needs_uncond=model_options.get("disable_cfg1_optimization", False),
        )  # fmt: skip
        denoised = run.packed(prediction)
        hooks = model_options.get("sampler_post_cfg_function", ())
        if not hooks:
            return denoised
        uncond = None if prediction.uncond is None else run.packed(prediction.uncond)
        for hook in hooks:  # CFG++ samplers read the unconditional prediction here
            denoised = hook({
                "denoised": denoised, "uncond_denoised": uncond, "input": x, "sigma": sigma,
                "model": self.inner_model, "model_options": model_options,
            })  # fmt: skip
        return denoised

    def _begin(
        self, placed: Placed, latents: list[Tensor], masks: list[Tensor] | None, sigmas: Tensor,
        seed: int,
    ) -> _Run:  # fmt: skip
        job, names = self._job, tuple(self._shapes)
        clip = dict(zip(names, (latent.cpu() for latent in latents), strict=True))
        denoise = OutsideDenoiser(
            placed.networks[0],
            replace(job.start, latent=replace(job.start.latent, **clip)),
            stage_of(job.model, job.guider, sigmas, job.guides),
            CpuNoise(seed),
            masks=Streams() if masks is None else Streams(**dict(zip(names, masks, strict=True))),
            on_block=lambda _: host.check_cancelled(),
            placed=placed,
        )
        return _Run(denoise, names, tuple(t.shape for t in latents), tuple(sigmas.tolist()))

    def _watched(self, callback: Callable | None) -> Callable | None:
        """The host's callback, which would fail at packed latents."""
        if callback is None:
            return None
        shapes, shown = self._run.shapes, self._run.shown
        self.inner_model.denoised = None

        def told(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            self.inner_model.denoised = host.unpack(x0, shapes)
            callback(step, shown(x0), shown(x), total)

        return told

    def _check(self, latents: Sequence[Tensor]) -> None:
        found, wanted = [tuple(t.shape[1:]) for t in latents], list(self._shapes.values())
        if found != wanted:
            raise MismatchError(
                f"Host Guider was made for latents of {wanted}, got {found}; wire its latent into "
                "the sampler"
            )


def _noises(noise, latents: list[Tensor]) -> list[Tensor]:
    """Noise of every stream; the oldest host has one tensor of zeros for a joint latent."""
    given = [n.to(latent) for n, latent in zip(host.members(noise), latents, strict=False)]
    return given + [torch.zeros_like(latent) for latent in latents[len(given) :]]


def _masks(mask, latents: list[Tensor]) -> list[Tensor]:
    """Masks in the shape of every stream; one of pixels says nothing of the sound."""
    given = [host.fit_mask(m, t) for m, t in zip(host.members(mask), latents, strict=False)]
    return given + [torch.ones_like(latent) for latent in latents[len(given) :]]
