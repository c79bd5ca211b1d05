"""Menus of model files: what is known to be something else is left out.

The host asks for every menu when the page is loaded or refreshed, and around each run, and must
not wait. So a thread looks at headers, and a menu goes by what is known when it is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..aiprod_engine.weights import Info, sniff
from ..aiprod_engine.weights.containers.header import SUFFIXES
from . import _host as host

# every folder in which a file of ours may lie
FOLDERS = (
    "checkpoints", "diffusion_models", "text_encoders", "vae", "latent_upscale_models", "loras",
    "upscale_models",
)  # fmt: skip
GGUF = ".gguf"
PAUSE = 3.0  # seconds between two looks

Fits = Callable[[Info], bool]


class Menus:
    """What the model folders hold, as far as it has been looked at."""

    def __init__(self) -> None:
        # folder -> name -> what it is; None where that cannot be told. Tables are replaced whole.
        self._known: dict[str, Mapping[str, Info | None]] = {}
        self._sniffed: dict[Path, tuple[tuple[int, int], Info | None]] = {}
        self._looking = threading.Lock()
        self._last = -PAUSE

    def names(self, usual: Sequence[str], fits: Fits = lambda _: True) -> list[str]:
        """Files that may fit in the `usual` folders, then those that do in any other folder."""
        self._look()
        offered: dict[str, bool] = {}  # a name means the first file that has it
        for folder in usual:
            for name, info in self._listed(folder):
                offered.setdefault(name, info is None or fits(info))
        for folder in FOLDERS:
            for name, info in self._listed(folder):
                offered.setdefault(name, info is not None and fits(info))
        return [name for name, is_offered in offered.items() if is_offered]

    def _listed(self, folder: str) -> Iterator[tuple[str, Info | None]]:
        """Files of a folder that can be ours, and what each is known to be."""
        known = self._known.get(folder, {})
        for name in host.list_files(folder):
            if name.lower().endswith(SUFFIXES):
                yield name, known.get(name)
        for name, info in known.items():
            if name.lower().endswith(GGUF):  # the host lists none
                yield name, info

    def _look(self) -> None:
        """Let a thread look at the folders again, unless one does or just did."""
        if time.monotonic() - self._last < PAUSE or not self._looking.acquire(blocking=False):
            return
        threading.Thread(target=self._sniff_all, name="aiprod-menus", daemon=True).start()

    def _sniff_all(self) -> None:
        seen = {}
        try:
            for folder in FOLDERS:
                files = host.walk_files(folder, SUFFIXES)
                seen |= {path: self._sniff(path) for path in files.values()}
                self._known[folder] = {name: seen[path][1] for name, path in files.items()}
        except Exception:  # the menus then show more than they need to; no reason to alarm anybody
            host.logger.debug("the model folders could not be looked through", exc_info=True)
        self._sniffed = seen
        self._last = time.monotonic()
        self._looking.release()

    def _sniff(self, path: Path) -> tuple[tuple[int, int], Info | None]:
        """Size and time of a file, and what it is; unchanged files are not opened again."""
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns)
            before = self._sniffed.get(path)
            return before if before and before[0] == stamp else (stamp, sniff(path))
        except Exception:  # gone, or worse than any reader expects
            return (0, 0), None


MENUS = Menus()
