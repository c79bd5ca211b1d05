"""What each phase of a run needs on the device, from headers and sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from .. import timing
from ..errors import UnsupportedConfig
from ..memory import estimate
from ..memory.estimate import PROBE_CELLS, PROBES_AT_ONCE, StreamSize
from ..memory.plan import Need, Plan, Way, plan
from ..models.diffusion_vae import DiffusionDecoderConfig
from ..models.text.tokenizer import MAX_LENGTH
from ..types import AVLatent, TokenState
from ..weights.recipe import Recipe
from .decode import decode_ways
from .encode import encode_ways
from .forward import NoiseLevels, SamplingWay
from .stage import Start, initial_states
from .stored import config_of, itemsize_of, rebuilt_bytes, stored_weights

_SHORTER = "lower frames"
_PARTS = 4  # of a feed-forward; with more of them an attention would still need as much
_CHAT_TOKENS = 2048  # what a system prompt, a picture and a long idea take at most
_TEXT = "shorten the text"


@dataclass(frozen=True)
class RunShape:
    """What decides the memory of a run beside its files.

    `clip` is what the first stage samples; `passes` guidance passes share one call of the
    transformer where they fit. A prompt of at most `written_tokens` is written first; `is_watched`
    by live previews. `device` is where networks run whose recipe names none.
    """

    clip: AVLatent
    passes: int = 1
    prompts: int = 1
    written_tokens: int = 0
    is_watched: bool = False
    device: torch.device | str = "cpu"


def plan_run(recipes: Mapping[str, Recipe], shape: RunShape, free_bytes: float) -> Plan:
    """Plan every phase whose networks are among `recipes` (by kind) within `free_bytes`."""
    return plan(list(_needs(recipes, shape)), free_bytes)


def _needs(recipes: Mapping[str, Recipe], shape: RunShape) -> Iterator[Need]:
    """The phases in their order; the transformer is always there."""
    clip, model = shape.clip, recipes["transformer"]
    if "text_encoder" in recipes and shape.written_tokens:
        yield writing_need(recipes["text_encoder"], shape.written_tokens)
    if "text_encoder" in recipes:
        yield prompt_need(recipes["text_encoder"], shape.prompts)
    if "text_connector" in recipes:
        yield connector_need(recipes["text_connector"], shape.prompts)
    if "video_encoder" in recipes:
        yield guides_need(recipes["video_encoder"], clip, shape.device)
    if "audio_encoder" in recipes:
        yield listening_need(recipes["audio_encoder"], clip.frames / clip.fps)
    if "video_decoder" in recipes and shape.is_watched:
        with suppress(UnsupportedConfig):  # then there is no preview
            yield preview_need(recipes["video_decoder"])
    yield sampling_need(model, Start(clip), shape.passes)
    if "upsampler" in recipes:
        yield upsampling_need(recipes["upsampler"], clip)
        clip = upsampled(recipes["upsampler"], clip)
        yield replace(sampling_need(model, Start(clip)), name="sample again")
    if "video_decoder" in recipes:
        yield decoding_need(recipes["video_decoder"], clip, device=shape.device)
    if "audio_decoder" in recipes:
        yield sound_need(recipes["audio_decoder"], recipes["vocoder"], clip)


# One function per phase -------------------------------------------------------------------------


def looking_need(vision: Recipe) -> Need:
    """Gemma's tower sees the first frame of a prompt that is to be written."""
    needed = estimate.text_vision(config_of(vision), itemsize_of(vision))
    return _need("look at the picture", [vision], needed, "give no picture", may_leave=True)


def writing_need(encoder: Recipe, tokens: int) -> Need:
    """Gemma writes a prompt of at most `tokens`."""
    length, itemsize = _CHAT_TOKENS + tokens, itemsize_of(encoder)
    needed = estimate.text_writer(config_of(encoder), _CHAT_TOKENS, length, itemsize)
    needed += rebuilt_bytes(encoder)
    remedy = "lower max_tokens or leave out Enhance Prompt"
    return _need("write prompt", [encoder], needed, remedy, may_leave=True)


def prompt_need(encoder: Recipe, prompts: int = 1) -> Need:
    """Gemma reads prompts one after the other."""
    itemsize = itemsize_of(encoder)
    needed = estimate.text_decoder(config_of(encoder), MAX_LENGTH, itemsize, prompts)
    needed += rebuilt_bytes(encoder)
    return _need("encode prompt", [encoder], needed, _TEXT, may_leave=True)


def connector_need(connector: Recipe, prompts: int = 1) -> Need:
    """Projection and connectors, after Gemma has left."""
    itemsize = itemsize_of(connector)
    rows = (MAX_LENGTH, MAX_LENGTH)
    needed = estimate.text_connector(config_of(connector), *rows, itemsize, prompts)
    return _need("connect prompt", [connector], needed, _TEXT, may_leave=True)


def guides_need(encoder: Recipe, clip: AVLatent, device: torch.device | str = "cpu") -> Need:
    """The ways of `encode_ways` for pictures of the clip's size, however many."""
    itemsize, place = itemsize_of(encoder), encoder.device or device
    ways = encode_ways(config_of(encoder), clip.height, clip.width, itemsize, place)
    held = (stored_weights(encoder),)
    return Need("encode guides", held, ways, "lower width or height", may_leave=True)


def listening_need(encoder: Recipe, seconds: float) -> Need:
    """A sound of `seconds`; its spectrogram is made on the CPU."""
    mel_frames = timing.encoded_mel_frames(math.ceil(seconds * timing.AUDIO_RATE))
    needed = estimate.audio_encoder(config_of(encoder), mel_frames, itemsize_of(encoder))
    remedy = "lower frames, or give a shorter sound"
    return _need("encode sound", [encoder], needed, remedy, may_leave=True)


def preview_need(decoder: Recipe) -> Need:
    """The decoder looks at probes, to which the live preview is fitted."""
    config, probe = config_of(decoder), (1, PROBE_CELLS, PROBE_CELLS)
    if isinstance(config, DiffusionDecoderConfig):
        raise UnsupportedConfig(
            "a live preview is fitted to a convolutional decoder, but this video VAE has a "
            "diffusion decoder; connect the 2.5 conv video VAE to see one"
        )
    needed = PROBES_AT_ONCE * estimate.decode_untiled(config, probe, itemsize_of(decoder))
    return _need("fit preview", [decoder], needed, "disconnect video_vae", may_leave=True)


def sampling_need(model: Recipe, start: Start, batch: int = 1) -> Need:
    """The transformer on the tokens of a stage; up to `batch` guidance passes in one call."""
    config, itemsize = config_of(model), itemsize_of(model)
    states = initial_states(config, start)
    sizes = (_stream_size(states.video), _stream_size(states.audio))
    rebuilt = rebuilt_bytes(model)

    def way(passes: int, parts: int) -> SamplingWay:
        name = f"{passes} passes at once" if passes > 1 else "one pass at a time"
        if parts > 1:
            name += f", feed-forward in {parts} parts"
        needed = estimate.transformer(config, *sizes, itemsize, passes, parts) + rebuilt
        return SamplingWay(name, needed, math.ceil(batch / passes), passes, parts)

    ways = tuple(way(passes, parts) for passes in _halves(batch) for parts in (1, _PARTS))
    return Need("sample", (stored_weights(model),), ways)


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        yield count
        count //= 2
    yield 1


def _stream_size(state: TokenState | None) -> StreamSize | None:
    if state is None:
        return None
    mask, is_masked = state.denoise_mask, state.attention_mask is not None
    return StreamSize(mask.shape[1], MAX_LENGTH, is_masked, NoiseLevels.of(mask).count)


def upsampling_need(upsampler: Recipe, clip: AVLatent) -> Need:
    """The whole latent at once: group norms span the clip."""
    needed = estimate.upsampler(config_of(upsampler), latent_size(clip), itemsize_of(upsampler))
    return _need("upsample", [upsampler], needed, may_leave=True)


def decoding_need(
    decoder: Recipe, clip: AVLatent, tiling: str = "auto", device: torch.device | str = "cpu"
) -> Need:
    """The ways of `decode_ways`."""
    size, itemsize = latent_size(clip), itemsize_of(decoder)
    place = decoder.device or device
    ways = decode_ways(config_of(decoder), size, itemsize, tiling, device=place)
    plain = tuple(Way(way.name, way.activations) for way in ways)
    held = (stored_weights(decoder),)
    return Need("decode video", held, plain, "lower width or height", may_leave=True)


def sound_need(decoder: Recipe, vocoder: Recipe, clip: AVLatent) -> Need:
    """The whole track at once: spectrogram, then waveform."""
    latents = timing.audio_latents(clip.frames, clip.fps)
    needed = max(
        estimate.audio_decoder(config_of(decoder), latents, itemsize_of(decoder)),
        estimate.vocoder(config_of(vocoder), timing.mel_frames(latents)),
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
    config, empty = config_of(upsampler), replace(clip, video=None, audio=None)
    if config.temporal_upsample:
        frames = timing.pixel_frames(2 * timing.latent_frames(clip.frames) - 1)
        return replace(empty, frames=frames, fps=clip.fps * 2)
    height, width = (int(side * config.spatial_scale) for side in (clip.height, clip.width))
    return replace(empty, height=height, width=width)
