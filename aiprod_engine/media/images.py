"""Pictures and clips on their way to the video encoder.

Order for a still: decode, recompress at source size, resize to fill, crop, range. Frames of a clip
are not recompressed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

_ORIENTATION = 0x0112
_TURNS = {3: 180, 6: 270, 8: 90}  # degrees counter-clockwise; mirrored orientations are ignored
PROMPT_IMAGE_SIDE = 896  # long side of the picture that prompt enhancement looks at


def decode_image(source: str | Path | BinaryIO) -> Tensor:
    """sRGB pixels (H, W, 3) uint8 of a picture file, upright, without alpha."""
    with Image.open(source) as image:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION), 0)
        image = _to_srgb(image)
    if turn:
        image = image.rotate(turn, expand=True)
    return torch.from_numpy(np.array(image))


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert(
            "L" if image.mode == "LA" else "RGB"
        )  # alpha is dropped, not mixed in
    if profile:
        try:
            target = ImageCms.createProfile("sRGB")
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, embedded, target, outputMode="RGB")
        except (OSError, ImageCms.PyCMSError):
            pass  # a broken profile, or one for another mode: take the pixels as they are
    return image.convert("RGB")


def recompress(image: Tensor, crf: int) -> Tensor:
    """`image` (H, W, 3) uint8 after one frame of H.264; sides cut to even.

    Training stills were frames of compressed video; a pristine one tends to freeze the motion.
    Unchanged if `crf` is 0 or a side is shorter than 2.
    """
    import av

    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if crf == 0 or not height or not width:
        return image
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream(
            "libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        pixels = np.ascontiguousarray(image[:height, :width].cpu().numpy())
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as coded:
        return torch.from_numpy(next(coded.decode(video=0)).to_ndarray(format="rgb24"))


def fill_resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """`pixels` (N, 3, H, W) scaled to cover height x width, then cut out of the centre; float32.

    Bilinear without antialias. The size is rounded up in double precision; the pixel that rounding
    noise may add is part of the convention.
    """
    source_height, source_width = pixels.shape[-2:]
    scale = max(height / source_height, width / source_width)
    new_height, new_width = math.ceil(source_height * scale), math.ceil(source_width * scale)
    resized = _bilinear(pixels, new_height, new_width)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return resized[..., top : top + height, left : left + width]


def fit_and_pad(pixels: Tensor, height: int, width: int) -> Tensor:
    """`pixels` (N, 3, H, W) shrunk to fit if needed, padded right and below by reflection (HDR).

    Where the padding is not smaller than the picture, the edge is repeated instead.
    """
    source_height, source_width = pixels.shape[-2:]
    if height < source_height or width < source_width:
        scale = min(height / source_height, width / source_width)
        source_height, source_width = round(source_height * scale), round(source_width * scale)
        pixels = _bilinear(pixels, source_height, source_width)
    right, bottom = width - source_width, height - source_height
    reflects = right < source_width and bottom < source_height
    mode = "reflect" if reflects else "replicate"
    return F.pad(pixels.float(), (0, right, 0, bottom), mode=mode)


def _bilinear(pixels: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    return F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False)


def frames_to_video(
    frames: Iterable[Tensor], height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Clip (1, 3, F, height, width) in [-1, 1] of frames (H, W, 3) in 0 .. 255, resized to fill.

    Frames are taken one by one, so a decoder may feed them. A still is a list of one.
    """
    resized = (fill_resize(f.movedim(-1, 0)[None], height, width) for f in frames)
    return torch.stack([(x / 127.5 - 1).to(dtype) for x in resized], dim=2)


def prompt_image(image: Tensor) -> Tensor:
    """`image` (H, W, 3) uint8 with its long side at 896, for prompt enhancement."""
    height, width = image.shape[:2]
    scale = PROMPT_IMAGE_SIDE / max(height, width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    resized = fill_resize(image.movedim(-1, 0)[None], *size)[0]
    return resized.round().clamp(0, 255).to(torch.uint8).movedim(0, -1)
