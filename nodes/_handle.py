"""One of our networks as an object of the host's memory manager."""

from __future__ import annotations

import torch
from torch import nn

from ..aiprod_engine.memory.residency import Residency


class Handle:
    """One network as the host's memory manager sees it (the contract it calls, nothing more)."""

    parent = None

    def __init__(self, module: nn.Module, load_device: torch.device, policy: str = "auto"):
        self.residency = Residency(module, policy)
        self.load_device = load_device
        self.offload_device = torch.device("cpu")

    @property
    def model(self) -> nn.Module:
        return self.residency.module

    def model_size(self) -> int:
        return self.residency.total_bytes

    def loaded_size(self) -> int:
        return self.residency.placed_bytes

    def current_loaded_device(self) -> torch.device:
        return self.residency.device or self.offload_device

    def model_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def model_patches_to(self, target) -> None:
        """Nothing: adapters are part of the weights when a recipe is loaded."""

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
