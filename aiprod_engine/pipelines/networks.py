"""The networks of a run: each is loaded when a block needs it and gone when the block ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from ..weights.lora.stack import Strength, load_loras, strength_by_stream
from ..weights.meta import on_meta
from ..weights.recipe import LoraUse, Recipe
from ..weights.swap import AdaptedNetwork

logger = logging.getLogger(__name__)

Files = str | Path | Sequence[str | Path]
Lora = tuple[str | Path, Strength]

# A network that converted more bytes than this for the CPU is not kept for the next stage.
_KEPT = 1 << 30

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
    `check_values` as in a recipe.

    Only a transformer is kept between its stages, as views of its file, and gets other adapters
    there; its copies stay on the device until another phase needs the room.
    """

    files: Mapping[str, Files]
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    policy: str = "auto"
    budget: float | None = None
    check_values: bool = True
    _kept: list[AdaptedNetwork[Residency]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

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
        used = (Path(use.path) for use in _uses(loras) if use.video or use.audio)
        return merge_references(read_reference(inspect(path).metadata, path.name) for path in used)

    def check(self, kinds: Iterable[str], loras: Sequence[Lora] = ()) -> tuple[str, ...]:
        """Raise if a network of `kinds` is not where it should be, or files do not fit together.

        Reads headers, and of LoRAs what their keys apply to; returns what could not be checked.
        """
        configs = {kind: configuration(kind, self._files(kind)) for kind in kinds}
        with on_meta():
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
        names = tuple(str(file) for file in files)
        return Recipe(
            kind, names, dtype, _uses(loras), modalities,
            residency=self.policy, check_values=self.check_values,
        )  # fmt: skip

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
        held: list[AdaptedNetwork[Residency]] = []
        is_done = False
        try:
            for recipe in recipes:
                held.append(self._network(recipe))
            placed = self._placed(need, held)
            if need.networks:
                logger.info("%s", placed.describe())
            yield placed
            is_done = True
        finally:
            for network in held:
                self._leave(network, is_done)

    def _placed(self, need: Need, held: Sequence[AdaptedNetwork[Residency]]) -> Placed:
        device, residencies = torch.device(self.device), [network.holder for network in held]
        free = self._free(residencies)
        wanted = sum(weights.total for weights in need.networks) + need.ways[0].activations
        if free * (1 - MARGIN) < wanted and self._evict():
            free = self._free(residencies)
        usable = free * (1 - MARGIN)
        way = need.way(usable)

        def put() -> None:
            left = usable - way.activations
            for residency in residencies:
                residency.place(device, left)
                left -= residency.placed_bytes

        placed = Placed(need, residencies, free, self._evict)
        placed.begin(put)
        placed.settle(max(free - placed.weights, 0), way)
        return placed

    def _free(self, residencies: Iterable[Residency]) -> float:
        """Bytes for a phase, those included that its own networks have on the device already."""
        if self.budget is not None:
            return self.budget - sum(network.holder.placed_bytes for network in self._kept)
        own = sum(residency.placed_bytes for residency in residencies)
        return free_bytes(torch.device(self.device)) + own

    def _network(self, recipe: Recipe) -> AdaptedNetwork[Residency]:
        """The network of a recipe with its adapters, the one that was kept if there is one."""
        found = next((n for n in self._kept if n.recipe == recipe.without_loras()), None)
        if found is not None:
            self._kept.remove(found)
        else:
            if recipe.kind == "transformer":
                self._drop()
            is_copy = self.budget is not None
            found = AdaptedNetwork(
                recipe, lambda module: Residency(module, recipe.residency, always_copies=is_copy)
            )
        found.use(recipe.loras)
        return found

    def _leave(self, network: AdaptedNetwork[Residency], may_stay: bool) -> None:
        is_known = self.budget is not None or torch.device(self.device).type == "cuda"
        if not (may_stay and is_known):
            network.holder.release()
        if may_stay and network.recipe.kind == "transformer" and network.own_bytes <= _KEPT:
            self._kept.append(network)
            return
        network.holder.release()
        dispose(network.module)

    def _evict(self) -> bool:
        """Take what is kept off the device; whether anything was there."""
        return sum(network.holder.release() for network in self._kept) > 0

    def _drop(self) -> None:
        for network in self._kept:
            network.holder.release()
            dispose(network.module)
        self._kept.clear()

    def _files(self, kind: str) -> Files:
        if kind not in self.files:
            raise CheckpointError(f"this pipeline needs a file for the {kind}; none was given")
        return self.files[kind]


def _uses(loras: Sequence[Lora]) -> tuple[LoraUse, ...]:
    return tuple(
        LoraUse(str(path), **strength_by_stream(strength, Path(path).name))
        for path, strength in loras
    )


def dispose(network: nn.Module) -> None:
    """Give a network's memory back at once, also while somebody still holds the network."""
    network.to("meta")
    release_cached()
