"""What became of the keys of a LoRA file, in words, and what the file was made for."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import MismatchError
from ..containers.header import Header, short
from .names import is_text_side, split_key

_SHOWN = 5  # keys named in a report
_ADALN = (".adaln_single.linear", ".time_embed.linear", "unet_adaln_single_linear")


@dataclass(frozen=True)
class LoraReport:
    """How one file fits one model.

    `matched` modules; `unmatched` keys without a target; `elsewhere` keys of another component
    (the text encoding when the model is a transformer), which are no error; `mis_shaped`
    sentences; `ranks` smallest and largest; `linears` of the model; `targets` what the file was
    made for, as far as it tells.
    """

    file: str
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    elsewhere: tuple[str, ...]
    mis_shaped: tuple[str, ...]
    ranks: tuple[int, int] | None
    linears: int
    targets: str

    def describe(self) -> str:
        """One line for the log."""
        text = f"{self.file}: {len(self.matched)} of {self.linears} linears"
        if self.ranks:
            low, high = self.ranks
            text += f", rank {low}" if low == high else f", ranks {low} to {high}"
        if self.elsewhere:
            text += f"; {len(self.elsewhere)} keys of another component, not applied"
        if self.mis_shaped:
            text += f"; {len(self.mis_shaped)} of another shape: {self.mis_shaped[0]}"
        if self.unmatched:
            shown = ", ".join(short(key) for key in self.unmatched[:_SHOWN])
            more = ", ..." if len(self.unmatched) > _SHOWN else ""
            text += f"; {len(self.unmatched)} keys without a target: {shown}{more}"
        return text

    def check(self) -> None:
        """Raise if the file was made for another model."""
        if self.mis_shaped:
            total = len(self.mis_shaped) + len(self.matched)
            raise MismatchError(
                f"{self.file}: this LoRA targets {self.targets}, not this model: "
                f"{len(self.mis_shaped)} of {total} tensors have another shape, the first: "
                f"{self.mis_shaped[0]}"
            )
        if not self.matched:
            keys = len(self.unmatched) + len(self.elsewhere)
            raise MismatchError(
                f"{self.file}: this LoRA targets {self.targets}; none of its {keys} keys belongs "
                "to this model"
            )


def targets(header: Header) -> str:
    """The model that the keys point at, for messages."""
    if version := header.metadata.get("model_version"):
        return f"LTX {short(version, 20)}"
    bases = [found[0] for key in header.tensors if (found := split_key(key))]
    if bases and all(map(is_text_side, bases)):
        return "the text encoding"
    rows = _adaln_tables(header)
    if rows == 9 or any("to_gate_logits" in base or "prompt_adaln" in base for base in bases):
        return "LTX-2.3 or 2.5"
    if rows == 6 or any("caption_projection" in base for base in bases):
        return "LTX-2.0"
    return "another model" + (f" ({short(bases[0])}, ...)" if bases else "")


def _adaln_tables(header: Header) -> float | None:
    """Rows over width of adaln_single.linear: 6 in 2.0, 9 since 2.3."""
    sides: dict[str, tuple[int, ...]] = {}
    for key, info in header.tensors.items():
        base, role = split_key(key) or ("", "")
        if f".{base}".endswith(_ADALN) and len(info.shape) == 2:
            sides[role] = info.shape
    return sides["up"][0] / sides["down"][1] if {"up", "down"} <= sides.keys() else None
