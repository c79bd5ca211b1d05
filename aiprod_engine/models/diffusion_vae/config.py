"""Configuration of the 2.5 diffusion decoder, read from the `vae` section of a file's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any, ClassVar

from ...errors import UnsupportedConfig

Size = tuple[int, int, int]  # frames, rows, columns

STAGES = 5  # four that only look at the latent, then the one that denoises

_ONLY: dict[str, tuple] = {
    "_class_name": ("CausalDiffusionVAE",),
    "dims": (3,),
    # A file without the key means "v", the class default of the reference, which nobody released.
    "model_output_type": ("x0",),
    # Windows are shifted at borders; nothing is ever padded with other values.
    "spatial_padding_mode": ("zeros",),
}
_DECODER_ONLY = {
    "_class_name": ("NADiffusionDecoder",),
    "spatial_padding_mode": ("zeros",),
    "resampler_kind": ("linear",),
}
_REQUIRED = ("_class_name", "model_output_type")


@dataclass(frozen=True)
class StageConfig:
    """`depth` attention blocks of one width; `window` counts cells along each axis."""

    channels: int
    depth: int
    window: Size


@dataclass(frozen=True)
class UpsampleConfig:
    """One change of resolution by `stride`, from `in_channels` to `out_channels`."""

    in_channels: int
    out_channels: int
    stride: Size


@dataclass(frozen=True)
class DiffusionDecoderConfig:
    """Five stages with four upsamplers between them; the last stage is the diffusion stage.

    `has_gates`: blocks of the diffusion stage carry a factor per channel for each of their sums,
    as some distilled files have it.

    `PIECE` bounds the elements that a layer takes at once. Queries attend in groups of `TILE`
    cells, and as many groups together as their keys have `GATHERED` elements.
    """

    PIECE: ClassVar[int] = 1 << 22
    # Smaller groups mask fewer keys away, larger ones copy each key less often.
    TILE: ClassVar[Size] = (4, 8, 8)
    GATHERED: ClassVar[int] = 1 << 25

    stages: tuple[StageConfig, ...]
    upsamples: tuple[UpsampleConfig, ...]
    latent_channels: int = 128
    image_channels: int = 3
    patch_size: int = 4
    head_dim: int = 64
    time_width: int = 384
    time_scale: float = 1.0
    steps: int = 2
    has_gates: bool = False

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any]) -> DiffusionDecoderConfig:
        """Parse `config["vae"]`; keys that are missing take the defaults of the reference class."""
        raw = section.get("decoder")
        if not isinstance(raw, Mapping):
            raise UnsupportedConfig(f"vae.decoder must describe the decoder, found {raw!r}")
        _check_only(section, _ONLY, "vae")
        _check_only(raw, _DECODER_ONLY, "vae.decoder")
        channels = _listed(raw, "stage_channels", STAGES)
        stages = tuple(
            StageConfig(_count(width, "stage_channels"), _count(depth, "stage_depths"), window)
            for width, depth, window in zip(
                channels, _listed(raw, "stage_depths", STAGES), _windows(raw), strict=True
            )
        )
        head_dim = _count(raw.get("head_dim", 64), "head_dim")
        _check_heads(stages, head_dim)
        return cls(
            stages,
            _upsamples(raw, [stage.channels for stage in stages]),
            _count(raw.get("in_channels", 128), "in_channels"),
            _count(raw.get("out_channels", 3), "out_channels"),
            _count(raw.get("patch_size", 4), "patch_size"),
            head_dim,
            _count(raw.get("t_emb_dim", 384), "t_emb_dim"),
            _number(raw.get("timestep_scale_multiplier", 1.0), "timestep_scale_multiplier"),
            _count(raw.get("default_num_inference_steps", 2), "default_num_inference_steps"),
            bool(raw.get("block_gates", False)),
        )

    @property
    def ghosts(self) -> int:
        """Copies of the last latent frame that are decoded behind it and cut off again."""
        return self.stages[0].window[0] // 2 * 2

    @property
    def ghost_cells(self) -> int:
        """The same in cells of the fourth stage."""
        return self.ghosts * prod(upsample.stride[0] for upsample in self.upsamples[:-1])

    @property
    def cell(self) -> Size:
        """Frames and pixels of a cell of the fourth stage, on which tiles are cut: 2, 8, 8."""
        frames, rows, columns = self.upsamples[-1].stride
        return frames, rows * self.patch_size, columns * self.patch_size

    def levels(self, latent: Sequence[int]) -> Iterator[Size]:
        """Cells (frames, rows, columns) of each stage for a latent (F, h, w), ghosts included.

        The diffusion stage comes last and without ghosts.
        """
        frames, rows, columns = latent
        size = (frames + self.ghosts, rows, columns)
        yield size
        for upsample in self.upsamples[:-1]:
            size = grown(size, upsample.stride)
            yield size
        for upsample in self.upsamples:
            frames, rows, columns = grown((frames, rows, columns), upsample.stride)
        yield frames, rows, columns

    def canvas(self, latent: Sequence[int]) -> Size:
        """Frames, height and width in pixels of a decoded latent (F, h, w)."""
        *_, (frames, rows, columns) = self.levels(latent)
        return frames, rows * self.patch_size, columns * self.patch_size

    @cached_property
    def minimum(self) -> Size:
        """Smallest latent in which every window finds room: 3 x 7 x 7 (17 frames, 224 px)."""
        return tuple(self._shortest(axis) for axis in range(3))

    def _shortest(self, axis: int) -> int:
        length = 1
        while any(
            level[axis] < stage.window[axis]
            for stage, level in zip(self.stages, self.levels((length,) * 3), strict=True)
        ):
            length += 1
        return length

    def extended(self, latent: Sequence[int]) -> Size:
        """Size of a latent (F, h, w) after it was extended to the least that windows need."""
        return tuple(map(max, latent, self.minimum))

    @property
    def tile_overlap(self) -> Size:
        """Least cells that tiles share: the reach of the diffusion stage; 20, 20, 20."""
        last, strides = self.stages[-1], self.upsamples[-1].stride
        return tuple(
            ceil(last.depth * (window // 2) / stride)
            for window, stride in zip(last.window, strides, strict=True)
        )

    @property
    def tile_minimum(self) -> Size:
        """Fewest cells of a tile: both last windows must find room; 6, 6, 6."""
        before, last = self.stages[-2:]
        strides = self.upsamples[-1].stride
        drops = (strides[0] - 1, 0, 0)  # the first tile in time loses its leading frames
        return tuple(
            max(small, ceil((large + drop) / stride))
            for small, large, drop, stride in zip(
                before.window, last.window, drops, strides, strict=True
            )
        )


def grown(size: Sequence[int], stride: Size, leads: bool = True) -> Size:
    """Size after an upsampler; a clip that begins here loses its leading frames."""
    frames, rows, columns = (cells * by for cells, by in zip(size, stride, strict=True))
    return frames - (stride[0] - 1) * leads, rows, columns


def _windows(raw: Mapping[str, Any]) -> list[Size]:
    """The diffusion stage has a key of its own, which repeats the last entry of the list."""
    listed = list(_listed(raw, "stage_kernels", STAGES, STAGES - 1))
    own = raw.get("stage5_kernel")
    if len(listed) < STAGES:
        listed.append(own if own is not None else (3, 7, 7))
    if own is not None and list(own) != list(listed[-1]):
        raise UnsupportedConfig(
            f"vae.decoder.stage5_kernel is {own!r}, but stage_kernels ends with {listed[-1]!r}"
        )
    windows = [_triple(window, "stage_kernels") for window in listed]
    if even := [window for window in windows if any(side % 2 == 0 for side in window)]:
        raise UnsupportedConfig(f"vae.decoder.stage_kernels must be odd, found {even[0]!r}")
    return windows


def _upsamples(raw: Mapping[str, Any], channels: list[int]) -> tuple[UpsampleConfig, ...]:
    upsamples = []
    for index, entry in enumerate(_listed(raw, "upsamples", STAGES - 1)):
        if not isinstance(entry, Sequence) or len(entry) != 2:
            raise UnsupportedConfig(
                f"vae.decoder.upsamples holds {entry!r}; supported: [stride, reduction]"
            )
        stride, reduction = _triple(entry[0], "upsamples"), _count(entry[1], "upsamples")
        before, after = channels[index], channels[index + 1]
        if stride[0] > 2 or before != after * reduction:
            raise UnsupportedConfig(
                f"vae.decoder.upsamples[{index}] is {entry!r}, which does not lead from {before} "
                f"to {after} channels with one or two frames"
            )
        upsamples.append(UpsampleConfig(before, after, stride))
    return tuple(upsamples)


def _check_heads(stages: Sequence[StageConfig], head_dim: int) -> None:
    if any(part % 2 or not part for part in head_parts(head_dim)):
        raise UnsupportedConfig(
            f"vae.decoder.head_dim is {head_dim}, which does not divide into pairs for three axes; "
            "supported: multiples of 16"
        )
    for stage in stages:
        if stage.channels % head_dim:
            raise UnsupportedConfig(
                f"vae.decoder.stage_channels holds {stage.channels}, not a multiple of "
                f"head_dim {head_dim}"
            )


def head_parts(head_dim: int) -> Size:
    """Channels of a head that turn with time, rows and columns: 16, 24, 24 of 64."""
    time = head_dim // 4 // 2 * 2
    side = (head_dim - time) // 2
    return head_dim - 2 * side, side, side


def _check_only(raw: Mapping[str, Any], only: Mapping[str, tuple], where: str) -> None:
    for key, legal in only.items():
        default = None if key in _REQUIRED else legal[0]
        if (found := raw.get(key, default)) not in legal:
            choices = ", ".join(repr(value) for value in legal)
            raise UnsupportedConfig(f"{where}.{key} is {found!r}; supported: {choices}")


def _listed(raw: Mapping[str, Any], key: str, *lengths: int) -> Sequence:
    found = raw.get(key)
    if not isinstance(found, Sequence) or len(found) not in lengths:
        raise UnsupportedConfig(f"vae.decoder.{key} must list {lengths[0]} entries, got {found!r}")
    return found


def _triple(value: Any, what: str) -> Size:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise UnsupportedConfig(f"vae.decoder.{what} must give three axes, found {value!r}")
    return tuple(_count(side, what) for side in value)


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedConfig(f"vae.decoder.{what} must be a positive integer, found {value!r}")
    return value


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise UnsupportedConfig(f"vae.decoder.{what} must be a positive number, found {value!r}")
    return float(value)
