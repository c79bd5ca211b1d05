"""Text to token ids, with either of the two files in which a Gemma tokenizer is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import CheckpointError

PAD, EOS, BOS, UNK = 0, 1, 2, 3  # ids up to UNK are special; the same in Gemma 3 and Gemma 4
IMAGE = -1  # stands in a chat for one row of a picture; it is no row of the embedding table
START_OF_IMAGE, END_OF_IMAGE, END_OF_TURN = "<start_of_image>", "<end_of_image>", "<end_of_turn>"
MAX_LENGTH = 1024


class Tokenizer:
    """Gemma tokenizer; `encode_ids` and `decode_ids` come from the library that read the file."""

    def __init__(
        self,
        encode_ids: Callable[[str], Sequence[int]],
        decode_ids: Callable[[Sequence[int]], str],
        vocabulary: int,
    ) -> None:
        self._encode_ids, self._decode_ids = encode_ids, decode_ids
        self._vocabulary = vocabulary

    @classmethod
    def from_json(cls, data: bytes) -> Tokenizer:
        """Read `tokenizer.json` (2.5: the tensor `tokenizer_json`)."""
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_str(bytes(data).decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"tokenizer.json must be a tokenizer, found: {error}") from error
        library.no_truncation()
        library.no_padding()
        _check_special(library.token_to_id("<pad>"), library.token_to_id("<bos>"))
        return cls(
            lambda text: library.encode(text).ids,
            lambda ids: library.decode(ids, skip_special_tokens=True),
            library.get_vocab_size(),
        )

    @classmethod
    def from_sentencepiece(cls, data: bytes) -> Tokenizer:
        """Read `tokenizer.model` (single-file Gemma: the tensor `spiece_model`)."""
        import sentencepiece

        try:
            library = sentencepiece.SentencePieceProcessor(model_proto=bytes(data), add_bos=True)
        except RuntimeError as error:
            raise CheckpointError(f"tokenizer.model must be a tokenizer, found: {error}") from error
        _check_special(library.pad_id(), library.bos_id())
        return cls(library.encode, library.decode, library.vocab_size())

    def ids(self, text: str) -> list[int]:
        """Ids of the stripped text behind one <bos>, which Gemma 4 tokenizers leave to us."""
        return self._with_bos(text.strip())

    def count(self, text: str) -> int:
        """Number of tokens including <bos>, before truncation."""
        return len(self.ids(text))

    def lost_text(self, text: str, max_length: int = MAX_LENGTH) -> str:
        """The end of the text that `encode` drops; empty when all of it fits."""
        return self.decode(self.ids(text)[max_length:])

    def encode(self, text: str, max_length: int = MAX_LENGTH) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (1, max_length) int64: padded on the left, cut at the end."""
        return _left_padded(self.ids(text)[:max_length], max_length)

    def encode_chat(
        self, system: str, user: str, image_rows: int = 0, multiple: int = 8
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (1, T) that ask Gemma 3 for an answer; T is padded to a `multiple`.

        There are two leading <bos>, because the reference renders one as text and adds another.
        A picture of `image_rows` rows, each an `IMAGE`, comes before the user's text.
        """
        image = f"\n\n{START_OF_IMAGE}{END_OF_IMAGE}\n\n" if image_rows else ""
        turn = f"<start_of_turn>user\n{system}\n\n{image}{user.strip()}{END_OF_TURN}\n"
        ids = [BOS, *self._with_bos(turn + "<start_of_turn>model\n")]
        if image_rows:
            inside = ids.index(self.special_id(START_OF_IMAGE)) + 1
            ids[inside:inside] = [IMAGE] * image_rows
        return _left_padded(ids, -(-len(ids) // multiple) * multiple)

    def special_id(self, token: str) -> int:
        """Id of a control token such as <end_of_turn>, which is 106 in Gemma 3."""
        ids = self.ids(token)[1:]  # behind <bos>
        if len(ids) != 1:
            raise CheckpointError(
                f"a Gemma tokenizer has one id for {token}, found {len(ids)}; "
                "choose the tokenizer that came with the text encoder"
            )
        return ids[0]

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Ids that end an answer."""
        return EOS, self.special_id(END_OF_TURN)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return self._decode_ids([i for i in ids if UNK < i < self._vocabulary])

    def _with_bos(self, text: str) -> list[int]:
        ids = list(self._encode_ids(text))
        return ids if ids[:1] == [BOS] else [BOS, *ids]


def _left_padded(ids: list[int], length: int) -> tuple[Tensor, Tensor]:
    padding = length - len(ids)
    mask = [0] * padding + [1] * len(ids)
    return torch.tensor([[PAD] * padding + ids]), torch.tensor([mask])


def _check_special(pad: int | None, bos: int | None) -> None:
    if (pad, bos) != (PAD, BOS):
        raise CheckpointError(
            f"a Gemma tokenizer has <pad> at {PAD} and <bos> at {BOS}, found {pad} and {bos}; "
            "choose the tokenizer that came with the text encoder"
        )
