"""Our networks as objects of the host's memory manager, one for all who want the same weights."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from ..aiprod_engine.errors import MismatchError
from ..aiprod_engine.memory.residency import Residency
from ..aiprod_engine.weights.recipe import Origin, Recipe, stamp
from ..aiprod_engine.weights.swap import AdaptedNetwork

logger = logging.getLogger("aiprod")


class Handle:
    """One network as the host's memory manager sees it (the contract it calls, nothing more)."""

    parent = None

    def __init__(self, recipe: Recipe, load_device: torch.device):
        self.network = AdaptedNetwork(recipe, Residency)
        self.load_device = load_device
        self.offload_device = torch.device("cpu")
        self.runs = 0  # that use it now

    def adapt(self, recipe: Recipe) -> None:
        """Have the adapters and the residency of `recipe`; what is on the device follows."""
        if self.runs and not self.network.has(recipe.loras):
            raise MismatchError(
                "a model has one set of LoRAs at a time; end the run that uses another set first"
            )
        self.residency.policy = recipe.residency
        self.network.use(recipe.loras)

    @property
    def residency(self) -> Residency:
        return self.network.holder

    @property
    def model(self) -> nn.Module:
        return self.network.module

    def model_size(self) -> int:
        return self.residency.total_bytes

    def loaded_size(self) -> int:
        return self.residency.placed_bytes

    def current_loaded_device(self) -> torch.device:
        return self.residency.device or self.offload_device

    def model_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def model_patches_to(self, target) -> None:
        """Nothing: adapters are made by the device in its copies of the weights."""

    def model_patches_models(self) -> list:
        return []

    def lowvram_patch_counter(self) -> int:
        return 0

    def is_clone(self, other) -> bool:
        return getattr(other, "model", None) is self.model

    def partially_load(self, device, extra_memory=0, force_patch_weights=False) -> int:
        """Keep as many blocks on the device as fit `extra_memory` more bytes; the rest stream."""
        budget = self.residency.placed_bytes + extra_memory
        return self.residency.place(torch.device(device), budget)

    def partially_unload(self, device, memory_to_free=0, force_patch_weights=False) -> int:
        """Let more blocks stream; what is then still on the device is the least that works."""
        return self.residency.shrink(memory_to_free)

    def detach(self, unpatch_all: bool = True) -> None:
        """Release device memory; `unpatch_all=False` is the host re-sorting its list: keep all."""
        if unpatch_all:
            self.residency.release()

    def get_ram_usage(self) -> int:
        return self.residency.total_bytes

    # newer hosts
    def is_dynamic(self) -> bool:
        return False

    def model_mmap_residency(self, free: bool = False) -> tuple[int, int]:
        return 0, self.residency.total_bytes

    def pinned_memory_size(self) -> int:
        return self.residency.locked_bytes

    def partially_unload_ram(self, ram_to_unload: int) -> int:
        return self.residency.unlock()


class Handles:
    """One handle for all recipes that differ only in adapters and residency.

    It lives as long as a recipe of its origin is on a wire; the host frees both together. A file
    that was replaced makes another network.
    """

    def __init__(self, device_of: Callable[[Recipe], torch.device]):
        self._device_of = device_of
        self._of_origin: weakref.WeakKeyDictionary[Origin, Handle] = weakref.WeakKeyDictionary()
        self._of_network: weakref.WeakValueDictionary[tuple, Handle] = weakref.WeakValueDictionary()
        self._lock = RLock()

    def __len__(self) -> int:
        """How many networks are loaded."""
        return len(self._of_network)

    def get(self, recipe: Recipe) -> Handle:
        """The handle of the recipe's network, which has the recipe's adapters from now on."""
        device = self._device_of(recipe)
        with self._lock:
            key = (recipe.network, device, tuple(map(stamp, recipe.files)))
            handle = self._of_network.get(key)
            if handle is None:
                handle = self._of_network[key] = Handle(recipe, device)
                names = ", ".join(Path(file).name for file in recipe.files)
                logger.info("loaded the %s of %s", recipe.kind, names)
            self._of_origin[recipe.origin] = handle
            handle.adapt(recipe)
        return handle

    @contextlib.contextmanager
    def in_use(self, recipes: Sequence[Recipe]) -> Iterator[list[Handle]]:
        """Yield the handles of `recipes`; meanwhile nobody changes their adapters."""
        handles: list[Handle] = []
        try:
            for recipe in recipes:
                handle = self.get(recipe)
                handle.runs += 1
                handles.append(handle)
            yield handles
        finally:
            for handle in handles:
                handle.runs -= 1
