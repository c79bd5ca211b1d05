"""Opens weight files for what is not weights: their checked header, and small payloads."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...errors import CheckpointError
from .gguf_header import parse_gguf
from .header import SUFFIXES, Header, short
from .safetensors_header import parse_safetensors

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
MAX_PAYLOAD = 256_000_000  # bytes; a Gemma tokenizer.json has 33 MB


def read_header(path: str | Path, keep: bool = True) -> Header:
    """Checked header of one file; raises CheckpointError with the reason if anything is off.

    With `keep` it is read once as long as the file does not change; a header of some thousand
    tensors takes megabytes, so who looks through whole folders keeps none.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise CheckpointError(f"{path.name}: {suffix} files are not opened; convert to safetensors")
    if suffix not in SUFFIXES:
        raise CheckpointError(f"{path.name}: only {', '.join(SUFFIXES)} files are opened")
    try:
        stat = path.stat()
        if keep:
            return _kept(path.resolve(), stat.st_size, stat.st_mtime_ns)
        return _read(path.resolve(), stat.st_size)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error.strerror})") from error


def read_bytes(header: Header, name: str) -> bytes:
    """Raw bytes of a small payload tensor (layer record, tokenizer)."""
    info = header.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{header.path.name}: has no tensor {short(name)}")
    if info.end - info.start > MAX_PAYLOAD:
        raise CheckpointError(
            f"{header.path.name}: {short(name)} has {info.end - info.start} bytes; "
            f"a payload has at most {MAX_PAYLOAD}"
        )
    with header.path_of(name).open("rb") as file:
        file.seek(info.start)
        return file.read(info.end - info.start)


@lru_cache(maxsize=64)
def _kept(path: Path, size: int, mtime_ns: int) -> Header:  # noqa: ARG001 (mtime_ns: cache key)
    return _read(path, size)


def _read(path: Path, size: int) -> Header:
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return parse_gguf(path) if is_gguf else parse_safetensors(path, size)
