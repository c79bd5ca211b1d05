"""Configuration of the video VAE, read from the `vae` section of a checkpoint's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import UnsupportedConfig

Stride = tuple[int, int, int]  # frames, rows, columns

_ENCODER_STRIDES: dict[str, Stride] = {
    "compress_space_res": (1, 2, 2),
    "compress_time_res": (2, 1, 1),
    "compress_all_res": (2, 2, 2),
}
_DECODER_STRIDES: dict[str, Stride] = {
    "compress_space": (1, 2, 2),
    "compress_time": (2, 1, 1),
    "compress_all": (2, 2, 2),
}
_CLASSES = ("CausalVideoAutoencoder", "CausalDiffusionVAE")
_LEGAL = {
    "dims": (3,),
    "norm_layer": ("pixel_norm",),
    "scaling_factor": (1.0,),
    "use_quant_conv": (False,),
    "normalize_latent_channels": (False,),
    # Both store one log-variance channel, which nothing reads.
    "latent_log_var": ("uniform", "constant"),
    "spatial_padding_mode": ("zeros", "reflect", "replicate"),
    "encoder_spatial_padding_mode": ("zeros", "reflect", "replicate"),
    "decoder_spatial_padding_mode": ("zeros", "reflect", "replicate"),
    "causal_decoder": (False, True),
    "timestep_conditioning": (False, True),
}


@dataclass(frozen=True)
class ResStageConfig:
    """`layers` residual blocks of constant width."""

    channels: int
    layers: int


@dataclass(frozen=True)
class ResampleConfig:
    """One change of resolution by `stride`; `residual` is read by upsamplers only."""

    in_channels: int
    out_channels: int
    stride: Stride
    residual: bool = False


@dataclass(frozen=True)
class StackConfig:
    """Encoder or decoder: `blocks` in order of execution, widths after the first conv and before
    the last one, channels of the picture, padding mode of rows and columns."""

    blocks: tuple[ResStageConfig | ResampleConfig, ...]
    first_width: int
    last_width: int
    image_channels: int
    padding: str

    @property
    def time_factor(self) -> int:
        return prod(b.stride[0] for b in self.blocks if isinstance(b, ResampleConfig))

    @property
    def space_factor(self) -> int:
        """Compression of rows and columns, without the patch."""
        return prod(b.stride[1] for b in self.blocks if isinstance(b, ResampleConfig))


@dataclass(frozen=True)
class VideoVAEConfig:
    """Both halves of the VAE; `decoder` is None where the file holds a diffusion decoder (2.5)."""

    encoder: StackConfig
    decoder: StackConfig | None
    latent_channels: int = 128
    patch_size: int = 4
    causal_decoder: bool = False
    timestep_conditioning: bool = False

    @classmethod
    def from_metadata(cls, section: Mapping[str, Any]) -> VideoVAEConfig:
        """Parse `config["vae"]`, flat (2.0, 2.3, 2.5 conv) or nested (2.5 diffusion)."""
        found = section.get("_class_name", _CLASSES[0])
        if found not in _CLASSES:
            raise UnsupportedConfig(
                f"vae._class_name is {found!r}; supported: {', '.join(_CLASSES)}"
            )
        _check_legal(section, "vae")
        return _from_nested(section) if found == _CLASSES[1] else _from_flat(section)


def _from_flat(raw: Mapping[str, Any]) -> VideoVAEConfig:
    latent_channels = _count(raw.get("latent_channels", 128), "vae.latent_channels")
    # 2.0 writes no encoder width; ltx-core ties it to the latent width.
    encoder_width = _count(
        raw.get("encoder_base_channels", latent_channels), "vae.encoder_base_channels"
    )
    decoder_width = _count(raw.get("decoder_base_channels", 128), "vae.decoder_base_channels")
    return VideoVAEConfig(
        encoder=_encoder(
            _blocks(raw, "encoder_blocks"),
            encoder_width,
            _count(raw.get("in_channels", 3), "vae.in_channels"),
            _padding(raw, "encoder", "zeros"),
        ),
        decoder=_decoder(
            _blocks(raw, "decoder_blocks"),
            decoder_width,
            _count(raw.get("out_channels", 3), "vae.out_channels"),
            _padding(raw, "decoder", "reflect"),  # 2.0 has no key and reflects
        ),
        latent_channels=latent_channels,
        patch_size=_count(raw.get("patch_size", 4), "vae.patch_size"),
        causal_decoder=raw.get("causal_decoder", False),
        # ltx-core defaults to true, which no LTX-2 file means; a 0.9.x file without the key shows
        # itself by `decoder.timestep_scale_multiplier`, which strict loading then reports.
        timestep_conditioning=raw.get("timestep_conditioning", False),
    )


def _from_nested(section: Mapping[str, Any]) -> VideoVAEConfig:
    raw = section.get("encoder") or {}
    _check_legal(raw, "vae.encoder")
    latent_channels = _count(raw.get("out_channels", 128), "vae.encoder.out_channels")
    padding = raw.get("spatial_padding_mode", section.get("spatial_padding_mode", "zeros"))
    encoder = _encoder(
        _blocks(raw, "blocks"),
        _count(raw.get("base_channels", latent_channels), "vae.encoder.base_channels"),
        _count(raw.get("in_channels", 3), "vae.encoder.in_channels"),
        padding,
    )
    patch_size = _count(raw.get("patch_size", 4), "vae.encoder.patch_size")
    return VideoVAEConfig(encoder, None, latent_channels, patch_size)


def _check_legal(raw: Mapping[str, Any], where: str) -> None:
    for key, legal in _LEGAL.items():
        if key in raw and raw[key] not in legal:
            choices = ", ".join(repr(value) for value in legal)
            raise UnsupportedConfig(f"{where}.{key} is {raw[key]!r}; supported: {choices}")


def _padding(raw: Mapping[str, Any], side: str, default: str) -> str:
    """ltx-core reads the common key only; 2.0 test configurations name the sides."""
    return raw.get("spatial_padding_mode", raw.get(f"{side}_spatial_padding_mode", default))


def _blocks(raw: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and parameters of each listed block.

    A bare integer is a number of layers, whatever the block; a resampler does not look at it.
    """
    listed = raw.get(key)
    if not isinstance(listed, Sequence) or not listed:
        raise UnsupportedConfig(f"vae.{key} must list the blocks, found {listed!r}")
    blocks = []
    for entry in listed:
        match entry:
            case [str(name), int(layers)]:
                blocks.append((name, {"num_layers": layers}))
            case [str(name), {**parameters}]:
                blocks.append((name, parameters))
            case _:
                raise UnsupportedConfig(f"vae.{key} holds {entry!r}; supported: [name, parameters]")
    return blocks


def _encoder(listed, width: int, image_channels: int, padding: str) -> StackConfig:
    first, blocks = width, []
    for name, parameters in listed:
        if name == "res_x":
            blocks.append(_res_stage(parameters, width))
            continue
        stride = _stride(name, _ENCODER_STRIDES, "encoder_blocks")
        _check_parameters(name, parameters, ("num_layers", "multiplier"))
        out = width * _count(parameters.get("multiplier", 2), f"{name}.multiplier")
        if out % prod(stride) or width * prod(stride) % out:
            raise UnsupportedConfig(
                f"{name} from {width} to {out} channels does not divide into {prod(stride)} parts"
            )
        blocks.append(ResampleConfig(width, out, stride))
        width = out
    return StackConfig(tuple(blocks), first, width, image_channels, padding)


def _decoder(listed, base: int, image_channels: int, padding: str) -> StackConfig:
    """The file lists decoder blocks from the pixel side; execution starts at the latent side."""
    multipliers = [_multiplier(name, parameters) for name, parameters in listed]
    width = first = base * prod(multipliers)
    blocks = []
    for name, parameters in reversed(listed):
        if name == "res_x":
            blocks.append(_res_stage(parameters, width))
            continue
        stride = _stride(name, _DECODER_STRIDES, "decoder_blocks")
        _check_parameters(name, parameters, ("num_layers", "multiplier", "residual"))
        out = width // _multiplier(name, parameters)
        # Only `compress_all` looks at the flag.
        residual = name == "compress_all" and bool(parameters.get("residual", False))
        if residual and (width % prod(stride) or out % (width // prod(stride))):
            raise UnsupportedConfig(
                f"residual {name} from {width} to {out} channels does not divide into "
                f"{prod(stride)} parts"
            )
        blocks.append(ResampleConfig(width, out, stride, residual))
        width = out
    return StackConfig(tuple(blocks), first, width, image_channels, padding)


def _multiplier(name: str, parameters: Mapping[str, Any]) -> int:
    if name == "res_x":
        return 1
    return _count(parameters.get("multiplier", 1), f"{name}.multiplier")


def _res_stage(parameters: Mapping[str, Any], width: int) -> ResStageConfig:
    _check_parameters("res_x", parameters, ("num_layers", "inject_noise"))
    if parameters.get("inject_noise", False):
        raise UnsupportedConfig("res_x.inject_noise is true; supported: false")
    return ResStageConfig(width, _count(parameters.get("num_layers"), "res_x.num_layers"))


def _stride(name: str, known: Mapping[str, Stride], where: str) -> Stride:
    if name not in known:
        raise UnsupportedConfig(f"vae.{where} holds {name!r}; supported: res_x, {', '.join(known)}")
    return known[name]


def _check_parameters(name: str, found: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known:
            raise UnsupportedConfig(f"{name} has parameter {key!r}; supported: {', '.join(known)}")


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedConfig(f"{what} must be a positive integer, found {value!r}")
    return value
