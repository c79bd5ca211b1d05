"""The networks of a run: each is loaded when a block needs it and gone when the block ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..models.text.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..models.video_vae import PerChannelStatistics
from ..weights import Info, check_fit, configuration, inspect, load, load_tokenizer
from ..weights.ic_lora import Reference, merge_references, read_reference
from ..weights.lora import load_loras

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
    stays resident between the blocks of a pipeline.
    """

    files: Mapping[str, Files]
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None

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

    @contextmanager
    def use(
        self, kind: str, loras: Sequence[Lora] = (), modalities: str | None = None
    ) -> Iterator[nn.Module]:
        """Yield the network `kind` with `loras` (file, strength) applied; it is disposed after."""
        # Gemma keeps its stored dtype: a float32 copy of 12 B weights would not fit.
        dtype = None if kind == "text_encoder" else self.dtype
        network = load(kind, self._files(kind), self.device, dtype, loras, modalities)
        try:
            yield network
        finally:
            dispose(network)

    def _files(self, kind: str) -> Files:
        if kind not in self.files:
            raise CheckpointError(f"this pipeline needs a file for the {kind}; none was given")
        return self.files[kind]


def dispose(network: nn.Module) -> None:
    """Give a network's memory back at once, also while somebody still holds the network."""
    network.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
