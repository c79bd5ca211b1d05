"""A short prompt -> the paragraph that the models were trained on, written by the text encoder.

Never part of a pipeline by itself: whoever wants it calls it first, sees the text, and encodes
that. Only the positive prompt is meant for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MismatchError, SizeError
from ..media.images import prompt_image
from ..models.text.decoder import TextDecoder
from ..models.text.gemma3 import Gemma3
from ..models.text.generate import Chat, Continuation, Sampling, generate
from ..models.text.tokenizer import Tokenizer
from ..models.text.vision import Gemma3Vision
from .networks import Networks
from .planning import looking_need, writing_need

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("system_prompts")
# Typographic signs that captions never had.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u2032", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2014\u2013\u2212", "-"),
        "\u00a0": " ",
    }
)


@dataclass(frozen=True)
class Idea:
    """What a prompt is written from: `text` and, if there is a first frame, its rows (N, D).

    `version` is that of the model that will sample: 2.5 was trained on another kind of caption.
    """

    text: str
    image: Tensor | None = None
    version: str | None = None

    def chat(self, tokenizer: Tokenizer) -> Chat:
        """The request as Gemma 3 reads it; both forms are the reference's."""
        form, style = "text_to_video", "_caption" if self.version == "2.5" else ""
        rows, asked = 0, f"user prompt: {self.text}"
        if self.image is not None:
            form, rows = "image_to_video", len(self.image)
            asked = f"User Raw Input Prompt: {self.text}."
        system = (_FOLDER / f"{form}{style}.txt").read_text(encoding="utf-8").strip()
        return Chat(*tokenizer.encode_chat(system, asked, rows), self.image)


@dataclass(frozen=True)
class Writing:
    """How a prompt is written: at most `max_tokens` long, drawn by `sampling` from `seed`."""

    max_tokens: int = 512
    sampling: Sampling = Sampling()
    seed: int = 10

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise SizeError(f"max_tokens must be at least 1, got {self.max_tokens}")


def enhance(
    networks: Networks,
    text: str,
    image: Tensor | None = None,
    writing: Writing = Writing(),
    on_token: Callable[[int], None] | None = None,
) -> str:
    """The prompt that the text encoder makes of `text` and of the first frame, if there is one.

    `image` (H, W, 3) uint8. Tower and decoder are loaded one after the other and disposed.
    """
    tokenizer, rows = networks.tokenizer(), None
    if image is not None:
        recipe = networks.recipe("text_vision")
        with networks.place(looking_need(recipe), recipe) as placed:
            rows = placed.run(lambda vision: look_at(vision, image))
    recipe, idea = networks.recipe("text_encoder"), Idea(text, rows, networks.version)
    with networks.place(writing_need(recipe, writing.max_tokens), recipe) as placed:
        return placed.run(lambda encoder: write(tokenizer, encoder, idea, writing, on_token))


@torch.inference_mode()
def look_at(vision: Gemma3Vision, image: Tensor) -> Tensor:
    """What the decoder reads of `image` (H, W, 3) uint8: rows (N, D) on the CPU."""
    return vision(vision.pixels(prompt_image(image)))[0].cpu()


@torch.inference_mode()
def write(
    tokenizer: Tokenizer,
    encoder: TextDecoder,
    idea: Idea,
    writing: Writing = Writing(),
    on_token: Callable[[int], None] | None = None,
) -> str:
    """The prompt that Gemma writes, cleaned; the idea's own text if no word is in it.

    `on_token` is told how many tokens are written, 0 before the first, and may raise to cancel.
    """
    if not isinstance(encoder, Gemma3):
        raise MismatchError(
            "prompts are written by a Gemma 3 text encoder; that of 2.5 was never trained to "
            "write: leave out Enhance Prompt"
        )
    if on_token is not None:
        on_token(0)
    generator = torch.Generator().manual_seed(writing.seed)
    ids = generate(
        Continuation(encoder, idea.chat(tokenizer), writing.max_tokens),
        lambda logits: writing.sampling.draw(logits, generator),
        tokenizer.stop_ids,
        writing.max_tokens,
        on_token,
    )
    if len(ids) == writing.max_tokens:
        logger.warning("the prompt was cut after %d tokens; raise max_tokens", len(ids))
    return cleaned(tokenizer.decode(ids)) or idea.text


def cleaned(text: str) -> str:
    """`text` with ASCII quotes, dashes and spaces, from its first letter on."""
    text = text.translate(_PLAIN)
    first = next((i for i, sign in enumerate(text) if sign.isalpha()), len(text))
    return text[first:]
