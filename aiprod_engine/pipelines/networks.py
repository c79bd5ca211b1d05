"""The networks of a run: each is loaded when a block needs it and gone when the block ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..memory.free import free_bytes, release_cached
from ..memory.placed import Placed
from ..memory.plan import MARGIN, Need, Way
from ..memory.residency import Residency
from ..models.text.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..models.video_vae import PerChannelStatistics
from ..weights import Info, check_fit, configuration, inspect, load, load_tokenizer
from ..weights.lora.ic_lora import Reference, merge_references, read_reference
from ..weights.lora.stack import load_loras
from ..weights.recipe import LoraUse, Recipe

logger = logging.getLogger(__name__)

Files = str | Path | Sequence[str | Path]
Lora = tuple[str | Path, float]

CHECKPOINT_KINDS = (
    *("transformer", "text_connector", "video_encoder", "video_decoder"),
    *("audio_encoder", "audio_decoder", "vocoder"),
)


@dataclass(frozen=True)
class Networks:
    """Where every network lies, by kind, and where and in which dtype it runs (None = as stored).

    `with networks.use("video_encoder") as encoder:` is the only way to one, so that nothing heavy
    stays resident between the blocks of a pipeline. Weights go from the mapped file to the device,
    block by block as `policy` (see `memory.residency`) and memory allow. `budget` are the bytes
    that a phase may take, what is free if None; with one, even the CPU holds copies.
    """

    files: Mapping[str, Files]
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    policy: str = "auto"
    budget: float | None = None

    @classmethod
    def of(
        cls,
        checkpoint: Files,
        text_encoder: Files | None = None,
        upsampler: Files | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Networks:
        """Networks of a complete checkpoint (one file or its parts) and what does not lie in it."""
        files = dict.fromkeys(CHECKPOINT_KINDS, checkpoint)
        gemma = dict.fromkeys(("text_encoder", "text_vision"), text_encoder)
        others = gemma | {"upsampler": upsampler}
        return cls(files | {k: f for k, f in others.items() if f is not None}, device, dtype)

    @cached_property
    def version(self) -> str | None:
        """Release of the transformer, from its header."""
        found = self.info("transformer").version
        return found and found.partition("|")[0]

    def info(self, kind: str) -> Info:
        """Header facts of the files that hold `kind`."""
        return inspect(self._files(kind))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the text encoder."""
        return load_tokenizer(self._files("text_encoder"))

    def statistics(self) -> PerChannelStatistics:
        """What un-normalises video latents; the rest of the encoder stays in its file."""
        return load("video_encoder", self._files("video_encoder")).per_channel_statistics

    def reference(self, loras: Sequence[Lora]) -> Reference:
        """How IC-LoRAs place reference videos, from their headers."""
        used = (path for path, strength in loras if strength)
        return merge_references(
            read_reference(inspect(path).metadata, Path(path).name) for path in used
        )

    def check(self, kinds: Iterable[str], loras: Sequence[Lora] = ()) -> tuple[str, ...]:
        """Raise if a network of `kinds` is not where it should be, or files do not fit together.

        Reads headers, and of LoRAs what their keys apply to; returns what could not be checked.
        """
        configs = {kind: configuration(kind, self._files(kind)) for kind in kinds}
        with torch.device("meta"):
            model = Transformer(configs["transformer"])
        load_loras(loras, {name: t.shape for name, t in model.state_dict().items()})
        lead = {str(self.files[kind]): kind for kind in configs}  # one kind per distinct file
        return check_fit(*(self.info(kind) for kind in lead.values()))

    def recipe(
        self, kind: str, loras: Sequence[Lora] = (), modalities: str | None = None
    ) -> Recipe:
        """The network `kind` with `loras` (file, strength) as a record."""
        found = self._files(kind)
        files = (found,) if isinstance(found, (str, Path)) else found
        # Gemma keeps its stored dtype: a float32 copy of 12 B weights would not fit.
        dtype = None if kind == "text_encoder" else self.dtype
        uses = tuple(LoraUse(str(path), strength, strength) for path, strength in loras)
        names = tuple(str(file) for file in files)
        return Recipe(kind, names, dtype, uses, modalities, residency=self.policy)

    def recipes(self) -> dict[str, Recipe]:
        """Every network by kind, without adapters."""
        return {kind: self.recipe(kind) for kind in self.files}

    @contextmanager
    def use(
        self, kind: str, loras: Sequence[Lora] = (), modalities: str | None = None
    ) -> Iterator[nn.Module]:
        """Yield the network `kind` with `loras` (file, strength) applied; it is disposed after."""
        recipe = self.recipe(kind, loras, modalities)
        with self.place(Need(kind, (), (Way("", 0),)), recipe) as placed:
            yield placed.networks[0]

    @contextmanager
    def place(self, need: Need, *recipes: Recipe) -> Iterator[Placed]:
        """Yield the networks of a phase on the device; they are disposed after."""
        device, held = torch.device(self.device), []
        free = free_bytes(device) if self.budget is None else self.budget
        usable = free * (1 - MARGIN)
        room = usable - need.way(usable - need.least).activations

        def put() -> None:
            left = room
            for residency in held:
                left -= residency.place(device, left)

        try:
            for recipe in recipes:
                network = self._load(recipe)
                is_copy = self.budget is not None
                held.append(Residency(network, recipe.residency, always_copies=is_copy))
            placed = Placed(need, held, free)
            placed.begin(put)
            placed.free = max(free - placed.weights, 0)
            if need.networks:
                logger.info("%s", placed.describe())
            yield placed
        finally:
            for residency in held:
                residency.release()
                dispose(residency.module)

    def _load(self, recipe: Recipe) -> nn.Module:
        loras = [(use.path, use.video) for use in recipe.loras]
        files = list(recipe.files)
        return load(recipe.kind, files, "cpu", recipe.dtype, loras, recipe.modalities)

    def _files(self, kind: str) -> Files:
        if kind not in self.files:
            raise CheckpointError(f"this pipeline needs a file for the {kind}; none was given")
        return self.files[kind]


def dispose(network: nn.Module) -> None:
    """Give a network's memory back at once, also while somebody still holds the network."""
    network.to("meta")
    release_cached()
