"""Live preview of a sampler: which video VAE it is fitted to, and when there is none."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor

from ..aiprod_engine.pipelines.planning import preview_need
from ..aiprod_engine.pipelines.stage import grid_of
from ..aiprod_engine.preview import LatentRGB, LivePreview, fit_latent_to_rgb
from ..aiprod_engine.sampling.loops import StepInfo
from ..aiprod_engine.types import AVLatent
from ..aiprod_engine.weights.recipe import Recipe
from . import _host as host
from . import _sockets as sockets

# A map of some hundred numbers; it lives as long as a loader's output that names its file.
_maps: weakref.WeakKeyDictionary[Recipe, LatentRGB] = weakref.WeakKeyDictionary()


def no_picture(step: StepInfo) -> None:
    """The preview that shows nothing."""


def live_preview(
    video_vae: sockets.VideoVAEPayload | None, latent: AVLatent
) -> Callable[[StepInfo], Tensor | None]:
    """What makes a picture of a step, or of none where the user or the files do not want it.

    Call it before the transformer is placed: a new VAE is fitted here, which takes its decoder.
    """
    rgb = latent_rgb(video_vae, latent)
    return no_picture if rgb is None else LivePreview(rgb, grid_of(latent), host.preview_side())


def latent_rgb(video_vae: sockets.VideoVAEPayload | None, latent: AVLatent) -> LatentRGB | None:
    """Colours of the clip's latents, None where the user or the files want no picture."""
    if video_vae is None or host.preview_side() is None or latent.modalities == "audio":
        return None
    try:
        host.require_version("video VAE", video_vae.info.version, latent.version)
        return _fitted(video_vae.decoder)
    except host.Cancelled:
        raise
    except Exception as error:  # a picture is never worth a run
        host.logger.warning("no live preview: %s", error)
        return None


def _fitted(decoder: Recipe) -> LatentRGB:
    rgb = _maps.get(decoder)
    if rgb is None:
        with host.placed(preview_need(decoder), decoder) as placed:
            rgb = placed.run(lambda network: fit_latent_to_rgb(network, host.check_cancelled))
        _maps[decoder] = rgb
    return rgb
