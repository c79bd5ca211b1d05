"""Guidance presets by model version, as the authors ship them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .guidance import Guidance


@dataclass(frozen=True)
class Preset:
    """Steps and guidance of undistilled sampling, and the CRF that images are degraded with."""

    steps: int
    video: Guidance
    audio: Guidance
    crf: int


def _row(steps: int, block: int, crf: int) -> Preset:
    video = Guidance(cfg=3.0, stg=1.0, stg_blocks=(block,), rescale=0.7, modality=3.0)
    return Preset(steps, video, replace(video, cfg=7.0), crf)


# Newest first. STG perturbs block 29 in 2.0 and block 28 since 2.3.
_ROWS: tuple[tuple[tuple[int, ...], Preset], ...] = (
    ((2, 4), _row(30, 28, 18)),
    ((2, 3), _row(30, 28, 33)),
    ((2, 0), _row(40, 29, 33)),
)


def parse_version(text: str | None) -> tuple[int, ...]:
    """Return the leading integers of a version, "2.3.rc1" -> (2, 3); () if there are none."""
    numbers = []
    for part in (text or "").replace("-", ".").split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def preset(version: str | None) -> Preset:
    """Return the newest row that is not newer than `version`; unreadable or unknown means 2.0."""
    wanted = parse_version(version)
    return next((row for since, row in _ROWS if since <= wanted), _ROWS[-1][1])


def hq_preset(version: str | None) -> Preset:
    """Return the fixed preset of the HQ two-stage pipeline (res_2s); only the CRF has a version."""
    video = Guidance(cfg=3.0, rescale=0.45, modality=3.0)
    return Preset(15, video, replace(video, cfg=7.0, rescale=1.0), preset(version).crf)


def distilled_is_ancestral(version: str | None) -> bool:
    """Whether the first distilled stage samples with ancestral Euler: since 2.5."""
    return parse_version(version) >= (2, 5)
