"""What each phase of a run needs on the device, from headers and sizes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch

from .. import timing
from ..memory import estimate
from ..memory.estimate import StreamSize
from ..memory.plan import Need, Plan, Way, Weights, plan
from ..models.text.decoder import TextDecoder
from ..models.text.tokenizer import MAX_LENGTH
from ..models.transformer import Transformer
from ..types import AVLatent, TokenState
from ..weights import configuration
from ..weights.components import COMPONENTS
from ..weights.quant.fp8 import is_storage_target
from ..weights.quant.precision import BFLOAT16, FP8_STORAGE
from ..weights.recipe import Recipe
from ..weights.source import Stored, find
from .decode import decode_ways
from .stage import Start, initial_states

_BLOCKS = {"transformer": Transformer.streamable, "text_encoder": TextDecoder.streamable}
_STAYS_HOME = {"text_encoder": TextDecoder.stays_home}
_SHORTER = "lower frames"
_TEXT = "shorten the text"


@dataclass(frozen=True)
class RunShape:
    """What decides the memory of a run beside its files.

    `clip` is what the first stage samples; `passes` guidance passes share one call of the
    transformer where they fit. `guide_frames` are encoded in one go.
    """

    clip: AVLatent
    passes: int = 1
    prompts: int = 1
    guide_frames: int = 1


def plan_run(recipes: Mapping[str, Recipe], shape: RunShape, free_bytes: float) -> Plan:
    """Plan every phase whose networks are among `recipes` (by kind) within `free_bytes`."""
    return plan(list(_needs(recipes, shape)), free_bytes)


def _needs(recipes: Mapping[str, Recipe], shape: RunShape) -> Iterator[Need]:
    """The phases in their order; the transformer is always there."""
    clip, model = shape.clip, recipes["transformer"]
    if "text_encoder" in recipes:
        yield prompt_need(recipes["text_encoder"], shape.prompts)
    if "text_connector" in recipes:
        yield connector_need(recipes["text_connector"], shape.prompts)
    if "video_encoder" in recipes:
        yield guides_need(recipes["video_encoder"], clip, shape.guide_frames)
    yield sampling_need(model, Start(clip), shape.passes)
    if "upsampler" in recipes:
        yield upsampling_need(recipes["upsampler"], clip)
        clip = upsampled(recipes["upsampler"], clip)
        yield replace(sampling_need(model, Start(clip)), name="sample again")
    if "video_decoder" in recipes:
        yield decoding_need(recipes["video_decoder"], clip)
    if "audio_decoder" in recipes:
        yield sound_need(recipes["audio_decoder"], recipes["vocoder"], clip)


# One function per phase -------------------------------------------------------------------------


def prompt_need(encoder: Recipe, prompts: int = 1) -> Need:
    """Gemma reads prompts one after the other."""
    itemsize = _itemsize(encoder)
    needed = estimate.text_decoder(_config(encoder), MAX_LENGTH, itemsize, prompts)
    needed += rebuilt_bytes(encoder)
    return _need("encode prompt", [encoder], needed, _TEXT, may_leave=True)


def connector_need(connector: Recipe, prompts: int = 1) -> Need:
    """Projection and connectors, after Gemma has left."""
    itemsize = _itemsize(connector)
    rows = (MAX_LENGTH, MAX_LENGTH)
    needed = estimate.text_connector(_config(connector), *rows, itemsize, prompts)
    return _need("connect prompt", [connector], needed, _TEXT, may_leave=True)


def guides_need(encoder: Recipe, clip: AVLatent, frames: int = 1) -> Need:
    """Pictures of the clip's size, frame by frame."""
    pixels = (frames, clip.height, clip.width)
    needed = estimate.encode_streamed(_config(encoder), pixels, _itemsize(encoder))
    way = Way("frame by frame", needed)
    return Need("encode guides", (stored_weights(encoder),), (way,))


def sampling_need(model: Recipe, start: Start, batch: int = 1) -> Need:
    """The transformer on the tokens of a stage; up to `batch` guidance passes in one call."""
    config, itemsize = _config(model), _itemsize(model)
    states = initial_states(config, start)
    sizes = (_stream_size(states.video), _stream_size(states.audio))
    rebuilt = rebuilt_bytes(model)

    def way(name: str, batch: int) -> Way:
        return Way(name, estimate.transformer(config, *sizes, itemsize, batch) + rebuilt)

    ways, remedy = (way("one pass at a time", 1),), Need.remedy
    if batch > 1:
        ways = (way(f"{batch} passes at once", batch), *ways)
        remedy += ", or the passes per forward"
    return Need("sample", (stored_weights(model),), ways, remedy)


def _stream_size(state: TokenState | None) -> StreamSize | None:
    if state is None:
        return None
    mask = state.denoise_mask
    is_uniform = bool((mask == mask[:, :1]).all())
    is_masked = state.attention_mask is not None
    return StreamSize(mask.shape[1], MAX_LENGTH, is_masked, is_uniform)


def upsampling_need(upsampler: Recipe, clip: AVLatent) -> Need:
    """The whole latent at once: group norms span the clip."""
    needed = estimate.upsampler(_config(upsampler), latent_size(clip), _itemsize(upsampler))
    return _need("upsample", [upsampler], needed, may_leave=True)


def decoding_need(decoder: Recipe, clip: AVLatent, tiling: str = "auto") -> Need:
    """The ways of `decode_ways`."""
    ways = decode_ways(_config(decoder), latent_size(clip), _itemsize(decoder), tiling)
    plain = tuple(Way(way.name, way.activations) for way in ways)
    held = (stored_weights(decoder),)
    return Need("decode video", held, plain, "lower width or height", may_leave=True)


def sound_need(decoder: Recipe, vocoder: Recipe, clip: AVLatent) -> Need:
    """The whole track at once: spectrogram, then waveform."""
    latents = timing.audio_latents(clip.frames, clip.fps)
    needed = max(
        estimate.audio_decoder(_config(decoder), latents, _itemsize(decoder)),
        estimate.vocoder(_config(vocoder), timing.mel_frames(latents)),
    )
    return _need("decode audio", [decoder, vocoder], needed, _SHORTER, may_leave=True)


def _need(
    name: str, recipes: list[Recipe], needed: int, remedy: str = "", may_leave: bool = False
) -> Need:
    weights = tuple(stored_weights(recipe) for recipe in recipes)
    remedy = remedy or Need.remedy
    return Need(name, weights, (Way("", needed),), remedy, may_leave)


# Sizes ------------------------------------------------------------------------------------------


def latent_size(clip: AVLatent) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip."""
    side = timing.SPACE_FACTOR
    return timing.latent_frames(clip.frames), clip.height // side, clip.width // side


def upsampled(upsampler: Recipe, clip: AVLatent) -> AVLatent:
    """Size, length and rate of the clip after a latent upsampler; it holds no latents."""
    config, empty = _config(upsampler), replace(clip, video=None, audio=None)
    if config.temporal_upsample:
        frames = timing.pixel_frames(2 * timing.latent_frames(clip.frames) - 1)
        return replace(empty, frames=frames, fps=clip.fps * 2)
    height, width = (int(side * config.spatial_scale) for side in (clip.height, clip.width))
    return replace(empty, height=height, width=width)


def stored_weights(recipe: Recipe) -> Weights:
    """Device bytes of a network, block by block where it may stream."""
    kind = recipe.kind
    outside, blocks = 0, {}
    prefix = f"{_BLOCKS[kind]}." if kind in _BLOCKS else None
    home = tuple(f"{name}." for name in _STAYS_HOME.get(kind, ()))
    for name, tensor in find(kind, recipe.files).tensors.items():
        size = _device_bytes(recipe, name, tensor)
        if home and name.startswith(home):
            continue
        if prefix and name.startswith(prefix):
            index = int(name[len(prefix) :].partition(".")[0])
            blocks[index] = blocks.get(index, 0) + size
        else:
            outside += size
    sizes = tuple(blocks[index] for index in sorted(blocks))
    return Weights(outside, sizes, recipe.residency)


def _device_bytes(recipe: Recipe, name: str, tensor: Stored) -> int:
    """Packed tensors as they lie in the file, the others in the dtype that they are loaded in."""
    info = tensor.header.tensors[tensor.key]
    component = COMPONENTS[recipe.kind]
    is_plain = name.startswith(component.plain or "\0") or recipe.precision == BFLOAT16
    is_packed = tensor.format is not None and not is_plain
    if tensor.shape is None:
        return 0 if recipe.precision == BFLOAT16 else info.end - info.start
    if is_packed:
        return info.end - info.start
    if recipe.precision == FP8_STORAGE and is_storage_target(name.removesuffix(".weight")):
        return prod(tensor.shape)
    dtype = torch.float32 if component.float32 else recipe.dtype
    return info.end - info.start if dtype is None else prod(tensor.shape) * dtype.itemsize


def rebuilt_bytes(recipe: Recipe) -> int:
    """What the largest packed layer takes while it is used: decoded twice in float32, then cast."""
    if recipe.precision == BFLOAT16:
        return 0
    tensors = find(recipe.kind, recipe.files).tensors.items()
    is_cast = recipe.precision == FP8_STORAGE
    packed = (
        tensor.shape
        for name, tensor in tensors
        if tensor.format or (is_cast and is_storage_target(name.removesuffix(".weight")))
    )
    return max(map(prod, packed), default=0) * (4 + 4 + _itemsize(recipe))


def _itemsize(recipe: Recipe) -> int:
    return (recipe.dtype or torch.bfloat16).itemsize  # Gemma keeps what is stored, bfloat16


def _config(recipe: Recipe) -> object:
    modalities = recipe.modalities if recipe.kind == "transformer" else None
    return configuration(recipe.kind, recipe.files, modalities)
