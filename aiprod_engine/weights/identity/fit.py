"""Whether files belong together, from what their headers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from ...errors import MismatchError
from ..quant.formats import parse_json
from .info import Info, release

_NAMED = (2, 4)  # the first release whose files name their Gemma


def check_fit(*infos: Info) -> tuple[str, ...]:
    """Raise MismatchError if files do not belong together; returns what could not be checked."""
    for one, other in combinations(infos, 2):
        _check_versions(one, other)
    for info in infos:
        for other in infos:
            if info is not other:
                _check_pair(info, other)
    return tuple(_unknown(infos))


def _check_versions(one: Info, other: Info) -> None:
    left, right = _versions(one), _versions(other)
    if left and right and not left & right:
        raise MismatchError(
            f"{one.name} is of version {'|'.join(sorted(left))}, {other.name} of "
            f"{'|'.join(sorted(right))}; latents and text features of one version mean nothing to "
            "another, take both from the same"
        )


def _versions(info: Info) -> set[str]:
    """Generations that a file may belong to; empty if nothing tells."""
    if info.version:
        return set(info.version.split("|"))
    return set(info.facts.get("versions", ()))


def _check_pair(info: Info, other: Info) -> None:
    """Widths and names that the first file asks of the second."""
    pairs = (
        ("context_width", "connector_width", "text contexts"),
        ("connector_width", "projection_width", "text features"),
        ("projection_inputs", "hidden_states", "stacked hidden states"),
        ("in_channels", "latent_channels", "latent channels"),
    )
    for wanted, given, what in pairs:
        needs, has = info.facts.get(wanted), other.facts.get(given)
        if needs and has and needs != has:
            raise MismatchError(
                f"{info.name} needs {what} of {needs}, {other.name} gives {has}; "
                "take both from the same version"
            )
    if "transformer" in info.components and other.kind == "text_encoder":
        _check_gemma(info, other)


def _check_gemma(model: Info, encoder: Info) -> None:
    """2.5 names the Gemma it was trained with; 2.0 and 2.3 use Gemma 3.

    Without a name and without a `model_version` nothing is wrong: many repackings carry neither.
    """
    wanted = _object(model.metadata.get("gemma_source_checkpoint")).get("gemma_version")
    found = _object(encoder.metadata.get("gemma_config")).get("gemma_version")
    must_name = release(model.metadata.get("model_version")) >= _NAMED
    if must_name and wanted is None and found is not None:
        raise MismatchError(
            f"{model.name} does not name the Gemma that it was trained with "
            f"(gemma_source_checkpoint), as files of its version must; {encoder.name} is "
            f"{str(found)[:60]!r}: take both from the same release"
        )
    if wanted is not None and wanted != found:
        raise MismatchError(
            f"{model.name} was trained with {str(wanted)[:60]!r}, {encoder.name} is "
            f"{str(found)[:60]!r}; take the text encoder of the same release"
        )


def _unknown(infos: tuple[Info, ...]) -> Iterator[str]:
    for info in infos:
        if "video_vae" in info.components and not _versions(info):
            yield f"{info.name}: the version of this VAE is unknown; 2.0 latents differ from 2.3"
        if info.kind == "latent_upsampler" and not _versions(info):
            yield f"{info.name}: nothing tells which version this upsampler was trained for"
        if (
            "2.5" in _versions(info)
            and info.kind == "checkpoint"
            and "gemma_source_checkpoint" not in info.metadata
        ):
            yield f"{info.name}: the Gemma that this 2.5 file was trained with is not stated"


def _object(text: str | None) -> Mapping:
    value = parse_json(text, "metadata") if text else {}
    return value if isinstance(value, dict) else {}
