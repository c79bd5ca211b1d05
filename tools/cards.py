"""Plans runs of full-size files on cards of many sizes: tables of `docs/memory.md` and the README.

Run `python tools/cards.py` to print them, `--write` to put them into both pages. The files are
sparse: names, shapes and number formats of the published ones, with nothing in them. Nothing is
computed and no GPU is needed; `python -m aiprod_engine plan` does the same for files that you have.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # appended: the host owns a module called `nodes`

from aiprod_engine.ledger.records import record  # noqa: E402
from aiprod_engine.memory.plan import GIB, Need, Phase, plan  # noqa: E402
from aiprod_engine.pipelines import planning  # noqa: E402
from aiprod_engine.pipelines.networks import Networks  # noqa: E402
from aiprod_engine.pipelines.stage import Start  # noqa: E402
from aiprod_engine.types import AVLatent  # noqa: E402

CARDS = (8, 12, 16, 24, 32, 48, 80)  # GiB
TAKEN = 1  # GiB that desktop and driver hold
CLIPS = ((768, 512, 121), (1280, 704, 121), (1920, 1088, 121), (1280, 704, 481))
FPS = 24.0
USUAL = CLIPS[1]
TEXT = [f"{part}-2.3" for part in ("text", "video-vae", "audio-vae", "vocoder")]
FP8_BLOCKS = range(1, 44)  # of 48: as many as the published file has, by its count of scales
SIZES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


def in_fp8(key: str) -> bool:
    """Whether a published fp8 checkpoint holds this tensor in fp8: linears of the inner blocks."""
    before, found, rest = key.partition("transformer_blocks.")
    is_linear = key.endswith(".weight") and "norm" not in key
    is_inside = found and "connector" not in before
    return bool(is_inside and is_linear and int(rest.partition(".")[0]) in FP8_BLOCKS)


def in_gemma_fp8(key: str) -> bool:
    """All linears of Gemma; the embedding stays."""
    return key.endswith(".weight") and "norm" not in key and "embed" not in key


def in_bfloat16(_: str) -> bool:
    """Nothing is quantised."""
    return False


# file of the ledger -> manifests, and which of its matrices are in fp8
FILES: dict[str, tuple[list[str], Callable[[str], bool]]] = {
    "ltx-2.3-22b-dev.safetensors": (["transformer-2.3-22b", *TEXT], in_bfloat16),
    "ltx-2.3-22b-dev-fp8.safetensors": (["transformer-2.3-22b", *TEXT], in_fp8),
    "gemma_3_12B_it.safetensors": (["gemma3-12b-text-comfy"], in_bfloat16),
    "gemma_3_12B_it_fp8_scaled.safetensors": (["gemma3-12b-text-comfy"], in_gemma_fp8),
}
SETS = {
    "fp8": ("ltx-2.3-22b-dev-fp8.safetensors", "gemma_3_12B_it_fp8_scaled.safetensors"),
    "bf16": ("ltx-2.3-22b-dev.safetensors", "gemma_3_12B_it.safetensors"),
}
FROM_BF16 = 48  # GiB; the card from which the unquantised files are the better choice


def tensors(name: str) -> Iterator[tuple[str, str, list[int]]]:
    """(key, number format, shape) of everything in a published file."""
    parts, is_fp8 = FILES[name]
    for part in parts:
        table = json.loads(gzip.decompress((ROOT / f"tests/manifests/{part}.json.gz").read_bytes()))
        for key, shape in table.items():
            if min(shape, default=0) < 0:
                continue
            if len(shape) == 2 and is_fp8(key):
                yield key, "F8_E4M3", shape
                yield f"{key}_scale", "F32", []
            else:
                yield key, "F32" if "scale_shift_table" in key else "BF16", shape


def write_sparse(folder: Path, name: str) -> Path:
    """The header of a published file in front of nothing."""
    head: dict = {"__metadata__": {"model_version": "2.3.0"} if "ltx" in name else {}}
    end = 0
    for key, kind, shape in tensors(name):
        start, end = end, end + prod(shape) * SIZES[kind]
        head[key] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    path = folder / name
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def needs(files: list[Path]) -> dict[tuple[int, int, int], list[Need]]:
    """What each phase of a run needs, by the size of the clip."""
    checkpoint, encoder = files
    recipes = Networks.of(checkpoint, encoder, dtype=torch.bfloat16).recipes()
    text = [planning.prompt_need(recipes["text_encoder"]),
            planning.connector_need(recipes["text_connector"])]  # fmt: skip
    found = {}
    for width, height, frames in CLIPS:
        clip = AVLatent(None, None, frames, height, width, FPS)
        sampling = planning.sampling_need(recipes["transformer"], Start(clip))
        decoding = planning.decoding_need(recipes["video_decoder"], clip)
        found[width, height, frames] = [*text, sampling, decoding]
    return found


Table = dict[tuple[int, str], dict]  # (card, set of files) -> clip -> its plan


def plans() -> Table:
    """Every card with every set of files."""
    logging.disable(logging.WARNING)  # the sparse files have no configuration, and say so
    with tempfile.TemporaryDirectory() as folder:
        by_set = {
            name: needs([write_sparse(Path(folder), file) for file in files])
            for name, files in SETS.items()
        }
    logging.disable(logging.NOTSET)
    return {
        (card, name): {clip: plan(phases, (card - TAKEN) * GIB) for clip, phases in found.items()}
        for card in CARDS
        for name, found in by_set.items()
    }


def blocks(phase: Phase) -> str:
    """How many blocks of a network stay on the device."""
    if not phase.fits:
        return "does not fit"
    return f"{phase.resident} of {phase.resident + phase.streamed}" if phase.streamed else "all"


def full_table(found: Table) -> list[str]:
    """For `docs/memory.md`: blocks of Gemma, and of the transformer by size of the clip."""
    clips = [f"{w} x {h}, {f / FPS:.0f} s" for w, h, f in CLIPS]
    lines = [_row("card", "files", "Gemma", *clips), _row(*["---"] * (3 + len(clips)))]
    for (card, name), by_clip in found.items():
        gemma = blocks(by_clip[USUAL].phase("encode prompt"))
        cells = [blocks(planned.phase("sample")) for planned in by_clip.values()]
        lines.append(_row(f"{card} GB", name, gemma, *cells))
    return lines


def short_table(found: Table) -> list[str]:
    """For the README: one choice of files per card, and what the usual clip then does."""
    lines = [_row("card", "files", "to download", "blocks on the card, 5 s of 1280 x 704")]
    lines.append(_row(*["---"] * 4))
    for card in CARDS:
        name = "bf16" if card >= FROM_BF16 else "fp8"
        size = sum(record(file).approximate_bytes for file in SETS[name]) / 1e9
        planned = found[card, name][USUAL]
        cell = f"{blocks(planned.phase('sample'))}; Gemma {blocks(planned.phase('encode prompt'))}"
        lines.append(_row(f"{card} GB", name, f"{size:.0f} GB", cell))
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


PAGES = {ROOT / "docs" / "memory.md": full_table, ROOT / "README.md": short_table}
MARKS = "<!-- cards: `python tools/cards.py --write` -->", "<!-- end of cards -->"


def renewed(page: Path, found: Table) -> str:
    """The page's text with the table of today."""
    before, begin, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise ValueError(f"{page.name} must have a place for the table, between {MARKS}")
    return "\n".join([before + begin, "", *PAGES[page](found), "", end + after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    options, found = parser.parse_args(), plans()
    for page, table in PAGES.items():
        if options.write:
            page.write_text(renewed(page, found))
        sys.stdout.write("\n".join([page.name, *table(found), ""]))


if __name__ == "__main__":
    main()
