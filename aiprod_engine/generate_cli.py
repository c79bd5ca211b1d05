"""`generate`: a prompt becomes an MP4 with sound, with no host around."""

from __future__ import annotations

import argparse
import logging
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EngineError, MismatchError

if TYPE_CHECKING:
    from .generate_request import Request

_log = logging.getLogger(__name__)

PIPELINES = (
    *("one_stage", "two_stage", "two_stage_hq", "distilled", "keyframes", "ic_lora"),
    *("audio_to_video", "retake", "text_to_audio", "dub", "extend"),
)


def add_generate(commands: argparse._SubParsersAction) -> None:
    """Add the command; nothing heavy is imported before it runs."""
    command = commands.add_parser("generate", help="generate a clip with sound from a prompt")
    command.set_defaults(run=generate)
    command.add_argument("--pipeline", choices=PIPELINES, default="one_stage")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt", help="default: a list of common faults")
    command.add_argument("--output", type=Path, required=True, help=".mp4; .wav for sound alone")
    _add_files(command.add_argument_group("files"))
    _add_clip(command.add_argument_group("clip"))
    _add_sampling(command.add_argument_group("sampling"))
    _add_guides(command.add_argument_group("guides"))
    _add_machine(command.add_argument_group("machine"))


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE")
    group.add_argument("--text-encoder", nargs="+", required=True, metavar="FILE")
    group.add_argument("--upsampler", metavar="FILE", help="latent x2, for two stages")
    lora = {"nargs": "+", "metavar": ("FILE", "STRENGTH")}
    group.add_argument("--lora", action="append", default=[], **lora)
    group.add_argument("--distilled-lora", help="for the second stage", **lora)


def _add_clip(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--width", type=int, default=768)
    group.add_argument("--height", type=int, default=512)
    group.add_argument("--frames", type=int, default=121, help="8k + 1; extend: frames to add")
    group.add_argument("--fps", type=float, default=24.0)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=10)
    group.add_argument("--steps", type=int, help="default: the authors' for the version")
    group.add_argument("--schedule", choices=("ltx2", "linear_quadratic", "beta"))
    group.add_argument("--sampler", help="of the first stage; default: the authors'")
    for name in ("cfg", "stg", "modality", "rescale"):
        for stream in ("video", "audio"):
            group.add_argument(f"--{stream}-{name}", type=float)
    group.add_argument("--stg-blocks", type=int, nargs="*", metavar="BLOCK")
    group.add_argument("--skip-step", type=int, metavar="K")
    group.add_argument("--batch-passes", type=int, default=1, help="guidance passes per forward")
    group.add_argument("--is-distilled", action="store_true", help="retake, extend: use the table")
    group.add_argument("--skip-stage-2", action="store_true", help="ic_lora: half the size")


def _add_guides(group: argparse._ArgumentGroup) -> None:
    image = ("FILE", "FRAME", "STRENGTH")
    group.add_argument("--image", action="append", default=[], nargs="+", metavar=image[0],
                       help="FILE [FRAME [STRENGTH]], once per picture")  # fmt: skip
    group.add_argument("--crf", type=int, help="recompression of pictures; 0: none")
    group.add_argument("--reference-video", metavar="FILE", help="ic_lora, dub")
    group.add_argument("--reference-strength", type=float, default=1.0)
    group.add_argument("--attention", type=float, default=1.0, help="0 to 1, for ic_lora")
    group.add_argument("--attention-mask", metavar="FILE", help="grey video, for ic_lora")
    group.add_argument("--audio", metavar="FILE", help="sound to see, or voice to speak with")
    group.add_argument("--audio-start", type=float, default=0.0, metavar="SECONDS")
    group.add_argument("--source", metavar="FILE", help="retake: video; extend: saved latent")
    group.add_argument("--window", type=float, nargs=2, metavar=("START", "END"), help="retake")
    group.add_argument("--keep-video", action="store_true", help="retake the sound only")
    group.add_argument("--keep-audio", action="store_true", help="retake the picture only")
    group.add_argument("--overlap", type=int, default=3, help="extend: latents carried over")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="default: cuda if there is one")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: by device")
    group.add_argument("--tiling", choices=("auto", "tiled", "off"), default="auto")
    group.add_argument("--save-latent", type=Path, metavar="FILE", help="kept for extend")


def generate(options: argparse.Namespace) -> None:
    """Check everything that headers and sizes tell, then run the pipeline and write the file."""
    from .generate_request import Request

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    request = Request.of(options)
    request.check()
    clip = request.sample(_progress)
    if options.save_latent:
        from .media.tensor_files import save_clip

        save_clip(options.save_latent, clip)
    write(request, clip)
    _log.info("%s", options.output)


def _progress(event: str, value: Any) -> None:
    stage, _, what = event.partition(".")
    if what == "step":
        _log.info("%s: step %d of %d", stage, value.index + 1, value.count)


def write(request: Request, clip) -> None:
    """Decode the sound, then stream the picture into the file."""
    from .media.mp4 import write_mp4
    from .media.pixels import to_uint8
    from .pipelines.decode import pixel_chunks

    options, networks = request.options, request.networks
    sound = request.given_sound or _decoded_sound(networks, clip)
    if clip.video is None:
        _write_wav(options.output, sound)
        return
    with networks.use("video_decoder") as decoder:
        chunks = map(to_uint8, pixel_chunks(decoder, clip, options.tiling))
        facts = {"prompt": options.prompt, "seed": str(options.seed), "pipeline": options.pipeline}
        write_mp4(options.output, chunks, clip.fps, sound, metadata=facts)


def _decoded_sound(networks, clip):
    from .media.mp4 import Sound
    from .pipelines.decode import decode_track

    with networks.use("audio_decoder") as decoder, networks.use("vocoder") as vocoder:
        waveform, rate = decode_track(decoder, vocoder, clip)
    return Sound(waveform[0], rate)


def _write_wav(path: Path, sound) -> None:
    samples = (sound.waveform.clamp(-1, 1) * 32767).round().short().T.contiguous()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(samples.numpy().tobytes())
