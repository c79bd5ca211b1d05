"""Writing with a text decoder: token after token, over the keys and values of what it has read.

The language-model head is the embedding table, so nothing is added to the weights. Positions count
over the padded row, as in encoding; padding is never attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import NonFiniteError, SizeError
from .decoder import AttentionConfig, AttentionTables, TextDecoder
from .tokenizer import IMAGE


@dataclass(frozen=True)
class Chat:
    """What the decoder answers: `ids` and `mask` (1, T), `image` (N, D) if N ids are `IMAGE`."""

    ids: Tensor
    mask: Tensor
    image: Tensor | None = None

    def __post_init__(self) -> None:
        wanted = int((self.ids == IMAGE).sum())
        given = 0 if self.image is None else len(self.image)
        if wanted != given:
            raise SizeError(f"the chat has places for {wanted} rows of a picture, got {given}")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: `temperature` 0 takes the most probable one, `top_k` 0 knows all.

    Of the `top_k` most probable tokens those stay that together reach the probability `top_p`.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise SizeError(
                "temperature and top_k must be at least 0 and top_p must lie in (0, 1], got "
                f"{self.temperature}, {self.top_k} and {self.top_p}"
            )

    def draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """A token for `logits` (vocabulary,); `generator` is a CPU one, so devices agree."""
        if self.temperature == 0:
            return int(logits.argmax())
        scores = logits.cpu() / self.temperature
        scores, tokens = scores.topk(min(self.top_k or len(scores), len(scores)))  # best first
        probabilities = scores.softmax(0)
        better = probabilities.cumsum(0) - probabilities  # what is more probable, together
        probabilities = probabilities.masked_fill(better >= self.top_p, 0)
        return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


class KeyValues:
    """Keys and values (1, kv_heads, T, head_dim) of one layer, with room for `length` tokens."""

    def __init__(self, kind: AttentionConfig, length: int, like: Tensor) -> None:
        self.keys = like.new_zeros(1, kind.kv_heads, length, kind.head_dim)
        self.values = torch.zeros_like(self.keys)
        self.count = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the given ones last."""
        start, self.count = self.count, self.count + k.shape[2]
        self.keys[:, :, start : self.count] = k
        self.values[:, :, start : self.count] = v
        return self.keys[:, :, : self.count], self.values[:, :, : self.count]


@dataclass(frozen=True)
class CachedTables(AttentionTables):
    """Tables of the tokens that are read now, before them what the `cache` of one layer holds."""

    cache: KeyValues

    def remember(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.append(k, v)


class Continuation:
    """A decoder that has read a chat and goes on for at most `room` tokens.

    `logits` (vocabulary,) in float32 are those of the token that comes next.
    """

    def __init__(self, decoder: TextDecoder, chat: Chat, room: int) -> None:
        device = decoder.norm.weight.device
        ids = chat.ids.to(device)
        mask = F.pad(chat.mask.to(device), (0, room), value=1)
        is_image = F.pad(ids == IMAGE, (0, room))
        x = _embedded(decoder, ids, chat.image)
        kinds = decoder.config.layers
        self._decoder = decoder
        # The head reads the whole table for every token: where the table stays on the CPU, it
        # visits the device for as long as this object lives.
        self._table = decoder.embed_tokens.weight.to(device)
        self._tables = {
            kind: _seeing(AttentionTables.build(kind, mask, x.dtype), is_image)
            for kind in set(kinds)
        }
        self._caches = [KeyValues(kind, mask.shape[1], x) for kind in kinds]
        self._count = 0
        self.logits = self._read(x)

    def append(self, token: int) -> None:
        """Read one more token."""
        ids = torch.tensor([[token]], device=self._table.device)
        self.logits = self._read(self._decoder.embed(ids))

    def _read(self, x: Tensor) -> Tensor:
        """Logits behind the last row of `x` (1, T, D), which follows all that was read before."""
        start, self._count = self._count, self._count + x.shape[1]
        rows = {kind: _rows(tables, start, self._count) for kind, tables in self._tables.items()}
        decoder = self._decoder
        layers = decoder.ready_blocks(decoder.layers)
        for kind, cache, layer in zip(decoder.config.layers, self._caches, layers, strict=True):
            now = rows[kind]
            x = layer(x, CachedTables(now.cos, now.sin, now.allowed, cache))
        logits = F.linear(decoder.norm(x[:, -1]), self._table)[0].float()  # (vocabulary,)
        if not logits.isfinite().all():
            raise NonFiniteError(
                f"the text encoder's logits must be finite, those of token {self._count} are not; "
                "choose a text encoder that is stored in bfloat16"
            )
        return logits


def generate(
    continuation: Continuation,
    draw: Callable[[Tensor], int],
    stop_ids: Collection[int],
    max_tokens: int,
    on_token: Callable[[int], None] | None = None,
) -> list[int]:
    """Ids of the answer, without the one that ends it.

    `on_token` is told how many are written after each of them and may raise to cancel.
    """
    written: list[int] = []
    while (token := draw(continuation.logits)) not in stop_ids:
        written.append(token)
        if on_token is not None:
            on_token(len(written))
        if len(written) == max_tokens:
            break
        continuation.append(token)
    return written


def _embedded(decoder: TextDecoder, ids: Tensor, image: Tensor | None) -> Tensor:
    """Embeddings (1, T, D); the rows of a picture go in as they are, without the scale."""
    is_image = ids == IMAGE
    x = decoder.embed(ids.masked_fill(is_image, 0))
    return x if image is None else x.index_put((is_image,), image.to(x))


def _seeing(tables: AttentionTables, is_image: Tensor) -> AttentionTables:
    """The tables with rows of the picture (B, T) seeing each other, whatever the direction."""
    both = is_image[:, None, :, None] & is_image[:, None, None, :]  # (B, 1, T, T)
    return replace(tables, allowed=tables.allowed | both)


def _rows(tables: AttentionTables, start: int, stop: int) -> AttentionTables:
    """The part for queries start .. stop - 1; they see no key from `stop` on."""
    return AttentionTables(
        tables.cos[start:stop], tables.sin[start:stop], tables.allowed[:, :, start:stop, :stop]
    )
