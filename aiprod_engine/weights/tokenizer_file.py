"""Finds the tokenizer that belongs to a text encoder and hands its bytes to the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import CheckpointError
from ..models.text.tokenizer import Tokenizer
from .containers.read import MAX_PAYLOAD, read_bytes
from .files import TOKENIZER_FILES, Files, open_headers

_READERS: dict[str, Callable[[bytes], Tokenizer]] = {
    "tokenizer_json": Tokenizer.from_json,
    "spiece_model": Tokenizer.from_sentencepiece,
    "tokenizer.json": Tokenizer.from_json,
    "tokenizer.model": Tokenizer.from_sentencepiece,
}


def load_tokenizer(files: Files) -> Tokenizer:
    """Tokenizer of a text encoder: a tensor of its file, or a file in or next to its folder."""
    paths = [Path(p) for p in ([files] if isinstance(files, str | Path) else files)]
    searched: list[str] = []
    for path in _beside(paths):
        searched.append(str(path))
        if path.is_file():
            return _READERS[path.name](_bounded(path))
    weights = [path for path in paths if path.name not in TOKENIZER_FILES]
    for header in open_headers(weights) if weights else ():
        for name in ("tokenizer_json", "spiece_model"):
            searched.append(f"tensor {name} of {header.path.name}")
            if name in header.tensors:
                return _READERS[name](read_bytes(header, name))
    raise CheckpointError(f"no tokenizer was found; searched: {'; '.join(searched) or 'nothing'}")


def _beside(paths: list[Path]) -> Iterator[Path]:
    """Named tokenizer files first, then those of each folder and of its `tokenizer` folder."""
    yield from (path for path in paths if path.name in TOKENIZER_FILES)
    for path in paths:
        if path.is_dir():
            for folder in (path, path / "tokenizer", path.parent / "tokenizer"):
                yield from (folder / name for name in TOKENIZER_FILES)


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_PAYLOAD:
        raise CheckpointError(f"{path.name} has more than {MAX_PAYLOAD} bytes; no tokenizer does")
    return path.read_bytes()
