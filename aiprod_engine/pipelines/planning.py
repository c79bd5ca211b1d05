"""The memory plan of a run, from the headers of its files and the size of its clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch

from .. import timing
from ..memory import estimate
from ..memory.estimate import StreamSize
from ..memory.plan import Need, Plan, Way, Weights, plan
from ..models.text.decoder import TextDecoder
from ..models.transformer import Transformer
from ..tiling import TileSizes, decode_plan
from ..types import AVLatent
from ..weights import configuration
from ..weights.components import COMPONENTS
from ..weights.source import Stored, find
from .networks import Networks
from .prompts import MAX_LENGTH

_BLOCKS = {"transformer": Transformer.streamable, "text_encoder": TextDecoder.streamable}
_STAYS_HOME = {"text_encoder": TextDecoder.stays_home}


@dataclass(frozen=True)
class RunShape:
    """What decides the memory of a run beside its files.

    `passes` guidance passes share one call of the transformer where they fit. A run with an
    upsampler samples at half height and width first. `guide_frames` are encoded in one go.
    """

    clip: AVLatent
    passes: int = 1
    prompts: int = 1
    guide_frames: int = 1
    policy: str = "auto"


def plan_run(networks: Networks, shape: RunShape, free_bytes: float) -> Plan:
    """Plan every phase of a run within `free_bytes` of the device; reads headers only."""
    return plan(list(_needs(networks, shape)), free_bytes, shape.policy)


def stored_weights(networks: Networks, kind: str) -> Weights:
    """Device bytes of a network, block by block where it may stream."""
    outside, blocks = 0, {}
    prefix = f"{_BLOCKS[kind]}." if kind in _BLOCKS else None
    home = tuple(f"{name}." for name in _STAYS_HOME.get(kind, ()))
    for name, tensor in find(kind, networks.files[kind]).tensors.items():
        size = _device_bytes(networks, kind, name, tensor)
        if home and name.startswith(home):
            continue
        if prefix and name.startswith(prefix):
            index = int(name[len(prefix) :].partition(".")[0])
            blocks[index] = blocks.get(index, 0) + size
        else:
            outside += size
    return Weights(outside, tuple(blocks[index] for index in sorted(blocks)))


def _device_bytes(networks: Networks, kind: str, name: str, tensor: Stored) -> int:
    """Packed tensors as they lie in the file, the others in the dtype that they are loaded in."""
    info = tensor.header.tensors[tensor.key]
    component = COMPONENTS[kind]
    is_packed = tensor.format is not None and not name.startswith(component.plain or "\0")
    if tensor.shape is None or is_packed:
        return info.end - info.start
    dtype = torch.float32 if component.float32 else _dtype(networks, kind)
    return info.end - info.start if dtype is None else prod(tensor.shape) * dtype.itemsize


def rebuilt_bytes(networks: Networks, kind: str, itemsize: int) -> int:
    """What the largest packed layer takes while it is used: decoded twice in float32, then cast."""
    packed = [t.shape for t in find(kind, networks.files[kind]).tensors.values() if t.format]
    return max(map(prod, packed), default=0) * (4 + 4 + itemsize)


def _dtype(networks: Networks, kind: str) -> torch.dtype | None:
    return None if kind == "text_encoder" else networks.dtype  # Gemma keeps what is stored


def _needs(networks: Networks, shape: RunShape) -> Iterator[Need]:
    """The phases in their order; those without a file are left out."""

    def config(kind: str) -> object:
        return configuration(kind, networks.files[kind])

    def weights(*kinds: str) -> tuple[Weights, ...]:
        return tuple(stored_weights(networks, kind) for kind in kinds)

    itemsize = (networks.dtype or torch.bfloat16).itemsize
    clip, texts = shape.clip, {"itemsize": itemsize, "prompts": shape.prompts}
    if "text_encoder" in networks.files:
        needed = estimate.text_decoder(config("text_encoder"), MAX_LENGTH, **texts)
        needed += rebuilt_bytes(networks, "text_encoder", itemsize)
        yield Need("encode prompt", weights("text_encoder"), (Way("", needed),))
    needed = estimate.text_connector(config("text_connector"), MAX_LENGTH, MAX_LENGTH, **texts)
    yield Need("connect prompt", weights("text_connector"), (Way("", needed),))
    pixels = (shape.guide_frames, clip.height, clip.width)
    needed = estimate.encode_streamed(config("video_encoder"), pixels, itemsize)
    yield Need("encode guides", weights("video_encoder"), (Way("frame by frame", needed),))

    held, rebuilt = weights("transformer"), rebuilt_bytes(networks, "transformer", itemsize)

    def sampling(size: AVLatent, passes: int) -> tuple[Way, ...]:
        return _sampling(config("transformer"), size, passes, itemsize, rebuilt)

    if "upsampler" in networks.files:
        half = replace(clip, height=clip.height // 2, width=clip.width // 2)
        yield Need("sample half size", held, sampling(half, shape.passes))
        needed = estimate.upsampler(config("upsampler"), _latent(half), itemsize)
        yield Need("upsample", weights("upsampler"), (Way("", needed),))
        yield Need("sample full size", held, sampling(clip, 1))
    else:
        yield Need("sample", held, sampling(clip, shape.passes))

    yield Need("decode video", weights("video_decoder"), _decoding(networks, clip, itemsize))
    sound = timing.audio_latents(clip.frames, clip.fps)
    needed = max(
        estimate.audio_decoder(config("audio_decoder"), sound, itemsize),
        estimate.vocoder(config("vocoder"), timing.mel_frames(sound)),
    )
    yield Need("decode audio", weights("audio_decoder", "vocoder"), (Way("", needed),))


def _latent(clip: AVLatent) -> tuple[int, int, int]:
    side = timing.SPACE_FACTOR
    return timing.latent_frames(clip.frames), clip.height // side, clip.width // side


def _sampling(
    config: object, clip: AVLatent, passes: int, itemsize: int, rebuilt: int
) -> tuple[Way, ...]:
    """All passes in one call, or one after the other."""
    video = StreamSize(prod(_latent(clip))) if config.modalities != "audio" else None
    audio = StreamSize(timing.audio_latents(clip.frames, clip.fps))
    audio = audio if config.modalities != "video" else None

    def way(name: str, batch: int) -> Way:
        needed = estimate.transformer(config, video, audio, itemsize, batch)
        return Way(name, needed + rebuilt)

    if passes == 1:
        return (way("", 1),)
    return way(f"{passes} passes at once", passes), way("one pass at a time", 1)


def _decoding(networks: Networks, clip: AVLatent, itemsize: int) -> tuple[Way, ...]:
    """Exact, frame by frame; or overlap tiles where not even one frame fits."""
    config, latent = configuration("video_decoder", networks.files["video_decoder"]), _latent(clip)
    streamed = estimate.decode_streamed(config, latent, itemsize)
    tiles = decode_plan(latent, TileSizes())
    axes = (tiles.time, tiles.rows, tiles.columns)
    tile = [max(span.stop - span.start for span in axis) for axis in axes]
    tiled = estimate.decode_tiled(config, latent, tile, itemsize)
    return Way("frame by frame", streamed), Way(f"{tiles.count} tiles", tiled)
