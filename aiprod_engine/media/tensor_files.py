"""Clips and encoded prompts as safetensors files, so that no finished work has to be repeated."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..types import AVLatent, NoiseState, TextContext

FORMAT = "1"
CLIP, PROMPT = "aiprod_clip", "aiprod_prompt"


def save_clip(path: Path, clip: AVLatent) -> None:
    """Write the latents of a clip with its size and time; streams that are empty are left out."""
    tensors = {"video": clip.video, "audio": clip.audio}
    if clip.noise is not None:
        tensors["noise_state"] = clip.noise.state
    numbers = {key: repr(getattr(clip, key)) for key in ("frames", "height", "width", "fps")}
    words = {"modalities": clip.modalities} | ({"version": clip.version} if clip.version else {})
    if clip.noise is not None:
        words["seed"] = str(clip.noise.seed)
    _save(path, CLIP, tensors, numbers | words)


def load_clip(path: Path) -> AVLatent:
    """The clip that `save_clip` wrote."""
    tensors, metadata = _load(path, CLIP)
    noise = None
    if "seed" in metadata:
        noise = NoiseState(int(metadata["seed"]), tensors["noise_state"])
    return AVLatent(
        tensors.get("video"),
        tensors.get("audio"),
        frames=int(metadata["frames"]),
        height=int(metadata["height"]),
        width=int(metadata["width"]),
        fps=float(metadata["fps"]),
        version=metadata.get("version"),
        modalities=metadata["modalities"],
        noise=noise,
    )


def save_context(path: Path, context: TextContext) -> None:
    """Write an encoded prompt as it enters the transformer, in bfloat16."""
    tensors = {
        "video_context": context.video.bfloat16(),
        "audio_context": context.audio.bfloat16(),
    }
    _save(path, PROMPT, tensors, {"stage": "contexts", "version": context.version})


def load_context(path: Path) -> TextContext:
    """The encoded prompt that `save_context` wrote."""
    tensors, metadata = _load(path, PROMPT)
    return TextContext(tensors["video_context"], tensors["audio_context"], metadata["version"])


def _save(path: Path, kind: str, tensors: dict[str, Tensor | None], words: dict) -> None:
    present = {key: t.contiguous().cpu() for key, t in tensors.items() if t is not None}
    save_file(present, path, {"format": FORMAT, "kind": kind, **words})


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} cannot be read as safetensors: {error}") from error
    if metadata.get("kind") != kind or metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name} must be of kind {kind}, format {FORMAT}; it is "
            f"{metadata.get('kind', 'something else')}: choose a file that this pack saved"
        )
    return tensors, metadata
