"""Command line of the engine: `python -m aiprod_engine <command>`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, EngineError
from .generate.command import add_generate
from .ledger.command import add_files

if TYPE_CHECKING:
    from .weights import Info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 after an error, which is one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="aiprod_engine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in _COMMANDS:
        add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "inspect", help="say what a file is, whether it fits with others, and what is in it"
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="weight file or folder")
    command.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    from .weights import check_fit, inspect

    infos = []
    for file in options.files:
        infos.append(info := inspect(file))
        sys.stdout.write(f"{file}\n{info.summary()}\n")
        for line in _configurations(file, info):
            sys.stdout.write(f"{line}\n")
    for note in check_fit(*infos):
        sys.stdout.write(f"note        {note}\n")
    if len(infos) > 1:
        sys.stdout.write("fit         these files belong together\n")


def _configurations(files: Sequence[str], info: Info) -> list[str]:
    """The plain values of each section that describes the networks of the file, wrapped."""
    from .weights.configure import SECTIONS, component_section
    from .weights.files import open_headers
    from .weights.keymap import PARTS

    (header,) = open_headers(files)
    sections = {}
    for kind, parts in PARTS.items():
        if all(part.component in info.tensors for part in parts):
            try:
                text = " ".join(_values(component_section(info, header, kind)))
            except CheckpointError as error:
                text = str(error)
            sections.setdefault(SECTIONS[kind], text)
    lines = (f"config {name}: {text}" for name, text in sections.items())
    return [part for line in lines for part in textwrap.wrap(line, 100, subsequent_indent="    ")]


def _values(section: Mapping[str, Any]) -> Iterator[str]:
    """`name=value` of every number, word and switch, nested ones too."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif isinstance(value, (str, int, float)):
            yield f"{name}={value}"


def _add_plan(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "plan", help="say what a run will hold on the device, phase by phase; reads headers only"
    )
    command.set_defaults(run=_plan)
    command.add_argument("--checkpoint", nargs="+", required=True, metavar="FILE")
    command.add_argument("--text-encoder", nargs="+", metavar="FILE")
    command.add_argument("--upsampler", metavar="FILE", help="latent x2: plans two stages")
    command.add_argument("--width", type=int, default=768)
    command.add_argument("--height", type=int, default=512)
    command.add_argument("--frames", type=int, default=121)
    command.add_argument("--fps", type=float, default=24.0)
    command.add_argument("--vram", type=float, required=True, metavar="GIB", help="free memory")
    command.add_argument("--passes", type=int, default=1, help="guidance passes in one call")
    command.add_argument("--residency", default="auto", help="auto, resident or stream")
    command.add_argument("--enhance", action="store_true", help="the prompt is written first")


def _plan(options: argparse.Namespace) -> None:
    import torch

    from .latents.rules import check_clip
    from .memory.plan import GIB
    from .pipelines.enhance import Writing
    from .pipelines.networks import Networks
    from .pipelines.planning import RunShape, plan_run
    from .pipelines.run import halved
    from .types import AVLatent

    check_clip(options.frames, options.height, options.width, options.upsampler is not None)
    clip = AVLatent(None, None, options.frames, options.height, options.width, options.fps)
    networks = Networks.of(
        options.checkpoint, options.text_encoder, options.upsampler, dtype=torch.bfloat16
    )
    recipes = replace(networks, policy=options.residency).recipes()
    written = Writing().max_tokens if options.enhance else 0
    first = halved(clip) if options.upsampler else clip
    shape = RunShape(first, options.passes, written_tokens=written, device="cuda")
    sys.stdout.write(f"{plan_run(recipes, shape, options.vram * GIB).describe()}\n")


# One entry per command: a function that adds its parser and names what runs.
_COMMANDS = (_add_inspect, add_generate, _add_plan, add_files)
