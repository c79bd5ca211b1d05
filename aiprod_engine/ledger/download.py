"""Fetches one file of the ledger from the hub, resumed where it stopped, put in place whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

from ..errors import EngineError
from .presence import fault
from .records import ModelFile


class DownloadError(EngineError):
    """A file could not be fetched; what had arrived is kept for the next try."""


def download(file: ModelFile, models: Path, endpoint: str | None = None) -> Path:
    """Put `file` into its folder below `models`; returns its path.

    The hub's own client shows the progress on stderr and resumes what an earlier try left in a
    hidden folder beside the target. The file takes its place by one rename, after its size and
    header were checked. `endpoint` names a mirror.
    """
    target = models / file.folder / file.name
    if target.exists() and fault(target) is None:
        return target
    hub = _client()
    staging = target.parent / ".aiprod-download"
    staging.mkdir(parents=True, exist_ok=True)
    _check_offer(hub, file, endpoint)
    arrived = _fetch(hub, file, staging, endpoint)
    if why := fault(arrived, file.name):
        arrived.unlink()
        raise DownloadError(why)
    arrived.replace(target)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def _client() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadError(
            "downloads need the package huggingface_hub, which is not installed: "
            "run `pip install huggingface_hub`, or fetch the file in a browser"
        ) from None
    return huggingface_hub


def _check_offer(hub: ModuleType, file: ModelFile, endpoint: str | None) -> None:
    """Refuse before the first byte if the hub offers something of another size."""
    url = hub.hf_hub_url(file.repository, file.path, endpoint=endpoint)
    try:
        offered = hub.get_hf_file_metadata(url, endpoint=endpoint).size
    except Exception as error:  # the client raises its transport's errors as they come
        raise _failed(file, error) from error
    if file.bytes is not None and offered not in (None, file.bytes):
        raise DownloadError(
            f"{file.name} must have {file.bytes} bytes, {file.repository} offers {offered}: "
            "it was replaced there; nothing was fetched"
        )


def _fetch(hub: ModuleType, file: ModelFile, staging: Path, endpoint: str | None) -> Path:
    try:
        path = hub.hf_hub_download(file.repository, file.path, local_dir=staging, endpoint=endpoint)
    except Exception as error:
        raise _failed(file, error) from error
    return Path(path)


def _failed(file: ModelFile, error: Exception) -> DownloadError:
    """One sentence for what went wrong; the client's exceptions are told apart by name."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    page = f"huggingface.co/{file.repository}"
    if "GatedRepoError" in kinds:
        why = f"accept the licence at {page} and log in with `hf auth login`"
    elif kinds & {"EntryNotFoundError", "RepositoryNotFoundError"}:
        why = f"{page} does not hold {file.path}; it was moved, or it needs a login"
    elif isinstance(error, OSError) and error.errno == 28:  # no space left on device
        why = f"the disk is full; it takes {file.size}"
    else:
        why = f"{type(error).__name__}; run the same command again and it continues"
    return DownloadError(f"{file.name} was not fetched: {why}")
