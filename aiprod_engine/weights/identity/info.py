"""What identification says about a file, and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GENERATIONS = ("2.0", "2.3", "2.5")
COMPONENTS = (
    *("transformer", "connectors", "text_projection", "video_vae", "video_vae_diffusion"),
    *("audio_vae", "vocoder", "spatial_x2", "spatial_x1.5", "spatial_x4", "spatial_x0.75"),
    *("temporal_x2", "gemma3_12b", "gemma4_12b", "duration_head", "lora", "ic_lora"),
)


@dataclass(frozen=True)
class Info:
    """What a file, or several together, hold; the words are those of the checkpoint page.

    `tensors` and `parameters` count per component; `notes` are sentences for the user; `layout`
    is "single" (native names), "diffusers" or "llama.cpp"; `facts` is what `check_fit` compares.
    """

    kind: str
    version: str | None = None
    components: tuple[str, ...] = ()
    modalities: str | None = None
    quant: str = "none"
    prefix: str | None = ""
    distilled: bool | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layout: str = "single"
    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """The facts a user asks for, one per line."""
        lines = [f"kind        {self.kind}", f"version     {self.version or 'not applicable'}"]
        lines.append(f"components  {' '.join(self.components) or 'none'}")
        if self.modalities:
            lines.append(f"modalities  {self.modalities}")
        lines.append(f"quant       {self.quant}")
        lines.append(f"prefix      {self.prefix or '(none)'}")
        for component, count in self.parameters.items():
            tensors = self.tensors[component]
            lines.append(f"  {component:<20} {_amount(count):>9} in {tensors} tensors")
        lines += [f"note        {note}" for note in self.notes]
        return "\n".join(lines)


def release(text: str | None) -> tuple[int, ...]:
    """Leading integers of a version string ("2.3.rc1" -> (2, 3))."""
    numbers = []
    for word in (text or "").replace("-", ".").split("."):
        if not word.isascii() or not word.isdigit() or len(word) > 9:
            break
        numbers.append(int(word))
    return tuple(numbers)


def generation(text: str | None) -> str | None:
    """Newest generation that is not above a version string ("2.3.rc1" -> "2.3")."""
    known = [g for g in GENERATIONS if release(g) <= release(text)]
    return known[-1] if known else None


def ordered(components: Iterable[str]) -> tuple[str, ...]:
    """Component words without repetition, in the order of the vocabulary."""
    present = set(components)
    return tuple(name for name in COMPONENTS if name in present)


def _amount(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
