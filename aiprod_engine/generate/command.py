"""`python -m aiprod_engine generate`: its arguments and what it does with them."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from .table import PIPELINES

_log = logging.getLogger(__name__)


def add_generate(commands: argparse._SubParsersAction) -> None:
    """Add the command; nothing heavy is imported before it runs."""
    command = commands.add_parser("generate", help="make a clip with sound from a prompt")
    command.set_defaults(run=generate)
    command.add_argument("--pipeline", choices=PIPELINES, default="one_stage")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt", help="default: a list of common faults")
    command.add_argument("--output", type=Path, required=True, help=".mp4; .wav for sound alone")
    command.add_argument("--save-latent", type=Path, metavar="FILE", help="for --pipeline extend")
    _add_files(command.add_argument_group("files"))
    _add_clip(command.add_argument_group("clip"))
    _add_sampling(command.add_argument_group("sampling"))
    _add_guidance(command.add_argument_group("guidance; defaults are the authors'"))
    _add_guides(command.add_argument_group("guides"))
    _add_machine(command.add_argument_group("machine"))


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE")
    group.add_argument("--text-encoder", nargs="+", required=True, metavar="FILE")
    group.add_argument("--upsampler", metavar="FILE", help="latent x2, for two stages")
    group.add_argument("--lora", action="append", default=[], nargs="+",
                       metavar="FILE [STRENGTH]",
                       help="once per LoRA; STRENGTH: a number, or video=V,audio=A for what makes "
                       "the picture and the sound; default 1")  # fmt: skip
    group.add_argument("--distilled-lora", nargs="+", metavar="FILE [STRENGTH]",
                       help="for the second stage")  # fmt: skip


def _add_clip(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--width", type=int, default=768)
    group.add_argument("--height", type=int, default=512)
    group.add_argument("--frames", type=int, help="8k + 1, default 121; extend: 8k, default 80")
    group.add_argument("--fps", type=float, default=24.0)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=10)
    group.add_argument("--steps", type=int, help="default: the authors' for the version")
    group.add_argument("--schedule", choices=("ltx2", "linear_quadratic", "beta"))
    group.add_argument("--sampler", help="of the first stage; default: the authors'")
    group.add_argument("--is-distilled", action="store_true",
                       help="retake, extend: fixed table, no guidance")  # fmt: skip
    group.add_argument("--skip-stage-2", action="store_true", help="ic_lora: half the size")


def _add_guidance(group: argparse._ArgumentGroup) -> None:
    for name in ("cfg", "stg", "modality", "rescale"):
        for stream in ("video", "audio"):
            group.add_argument(f"--{stream}-{name}", type=float)
    group.add_argument("--stg-blocks", type=int, nargs="*", metavar="BLOCK")
    group.add_argument("--skip-step", type=int, metavar="K", help="evaluate one step in K + 1")
    group.add_argument("--batch-passes", type=int, default=1, help="passes per forward")


def _add_guides(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", action="append", default=[], nargs="+",
                       metavar="FILE [FRAME [STRENGTH]]", help="once per picture")  # fmt: skip
    group.add_argument("--crf", type=int, help="recompression of pictures; 0: none")
    group.add_argument("--reference-video", metavar="FILE", help="ic_lora, dub")
    group.add_argument("--reference-strength", type=float, default=1.0)
    group.add_argument("--attention", type=float, default=1.0, help="ic_lora: 0 to 1")
    group.add_argument("--attention-mask", metavar="FILE", help="ic_lora: grey video")
    group.add_argument("--audio", metavar="FILE", help="sound to see, or voice to speak with")
    group.add_argument("--audio-start", type=float, default=0.0, metavar="SECONDS")
    group.add_argument("--source", metavar="FILE", help="retake: video; extend: saved latent")
    group.add_argument("--window", type=float, nargs=2, metavar=("START", "END"),
                       help="retake: seconds")  # fmt: skip
    group.add_argument("--keep-video", action="store_true", help="retake the sound only")
    group.add_argument("--keep-audio", action="store_true", help="retake the picture only")
    group.add_argument("--overlap", type=int, default=3, help="extend: latents carried over")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="default: cuda if there is one")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: by device")
    group.add_argument("--tiling", choices=("auto", "tiled", "off"), default="auto")
    group.add_argument(
        "--residency",
        choices=("auto", "resident", "stream"),
        default="auto",
        help="of transformer and text encoder: stay on the device, or stream",
    )
    group.add_argument(
        "--check-values",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse weights that no training can have produced",
    )
    group.add_argument("--vram", type=float, metavar="GIB",
                       help="device memory to use; default: what is free")  # fmt: skip


def generate(options: argparse.Namespace) -> None:
    """Check all that headers and sizes tell, then run the pipeline and write the file."""
    from ..media.tensor_files import save_clip
    from .calls import sample
    from .output import write
    from .request import Request

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    request = Request.of(options)
    request.check()
    clip = sample(request, _progress)
    if options.save_latent:  # before decoding: what was sampled is never lost
        save_clip(options.save_latent, clip)
    try:
        write(request, clip)
    except Exception:
        if not options.save_latent:
            kept = options.output.with_suffix(".latent.safetensors")
            save_clip(kept, clip)
            _log.error("what was sampled is in %s", kept)
        raise
    _log.info("wrote %s", options.output)


def _progress(event: str, value: Any) -> None:
    stage, _, what = event.partition(".")
    if what == "step":
        _log.info("%s: step %d of %d", stage, value.index + 1, value.count)
