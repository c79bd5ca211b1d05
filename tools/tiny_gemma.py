"""A tiny Gemma 3 with a real tokenizer, as a Hugging Face folder and as a ComfyUI single file.

Same layouts, key names and tokenizer formats as the published 12B model; only the sizes differ.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

CORPUS = [
    "A steam train crosses a stone viaduct at dawn, whistle echoing through the valley.",
    "Rain falls on a tin roof while a woman hums softly and pours tea into two cups.",
    "The camera follows a red fox running over fresh snow; its paws crunch at every step.",
    'He says: "We leave at 7:45, don\'t be late" and closes the heavy wooden door.',
    "Waves roll onto a pebble beach, gulls cry, and 3 children build a castle of wet sand.",
]
SYMBOLS = [
    "<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n",
    "<start_of_image>", "<end_of_image>",
]  # fmt: skip
IMAGE_TOKEN = "<image_soft_token>"  # lives in tokenizer.json only, as in the published tokenizer
SPACE = "\u2581"


def train_sentencepiece(pieces: int = 420) -> bytes:
    """A byte-fallback BPE model with Gemma's settings and special ids (pad 0 eos 1 bos 2 unk 3)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=pieces,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", unk_piece="<unk>", user_defined_symbols=SYMBOLS, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def tokenizer_json(model: bytes) -> bytes:
    """The same tokenizer in the format of the `tokenizers` library."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *SYMBOLS]
    added = [(i, piece) for i, piece in enumerate(pieces) if piece in special]
    added.append((len(pieces), IMAGE_TOKEN))
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i, "content": piece, "single_word": False, "lstrip": False,
                    "rstrip": False, "normalized": False, "special": piece.startswith("<"),
                }
                for i, piece in added
            ],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            "pre_tokenizer": split | {"invert": False},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE", "dropout": None, "unk_token": "<unk>",
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                "vocab": {piece: i for i, piece in enumerate(pieces)},
                "merges": _merges(processor, pieces),
            },
        },
        ensure_ascii=False,
    ).encode()  # fmt: skip


def _merges(processor, pieces: list[str]) -> list[list[str]]:
    """Every split of a piece into two known pieces, best pieces first."""
    known = set(pieces)
    ranked = sorted(range(len(pieces)), key=lambda i: (-processor.get_score(i), i))
    return [
        [pieces[i][:cut], pieces[i][cut:]]
        for i in ranked
        if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
        and pieces[i] not in SYMBOLS
        for cut in range(1, len(pieces[i]))
        if pieces[i][:cut] in known and pieces[i][cut:] in known
    ]


def text_config(vocabulary: int, width: int = 32, layers: int = 7) -> dict:
    """The published text configuration with small sizes: 5 sliding layers to 1 global one."""
    return {
        "model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "cache_implementation":
        "hybrid", "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": width,
        "initializer_range": 0.02, "intermediate_size": 64, "max_position_embeddings": 131072,
        "num_attention_heads": 4, "num_hidden_layers": layers, "num_key_value_heads": 2,
        "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_theta": 1000000.0,
        "sliding_window": 1024, "sliding_window_pattern": 6, "use_cache": True,
        "vocab_size": vocabulary,
    }  # fmt: skip


def random_weights(config: dict, seed: int) -> dict[str, Tensor]:
    """bf16 weights under canonical names, scaled so that hidden states stay of order one."""
    from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config

    with torch.device("meta"):
        shapes = Gemma3(Gemma3Config.from_metadata(config)).state_dict()
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        spread = 0.12 if name == "embed_tokens.weight" else 0.2 if len(shape) == 1 else 0.15
        return (torch.randn(shape, generator=generator) * spread).bfloat16()

    return {name: draw(name, tensor.shape) for name, tensor in shapes.items()}


def write_gemma(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `gemma_tiny/` (HF folder) and `gemma_tiny.safetensors`; returns both paths."""
    pieces = train_sentencepiece()
    # the embedding has rows beyond the tokenizer's ids, as the published one
    config = text_config(vocabulary=424)
    weights = random_weights(config, seed)

    single = folder / "gemma_tiny.safetensors"
    stored = {f"model.{name}": tensor for name, tensor in weights.items()}
    stored["spiece_model"] = torch.frombuffer(bytearray(pieces), dtype=torch.uint8)
    save_file(stored, single, {"format": "pt"})

    hub = folder / "gemma_tiny"
    hub.mkdir(exist_ok=True)
    shard = "model-00001-of-00001.safetensors"
    stored = {f"language_model.model.{name}": tensor for name, tensor in weights.items()}
    save_file(stored, hub / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(sorted(stored), shard)}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    top = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    (hub / "config.json").write_text(json.dumps(top | {"text_config": config}))
    (hub / "tokenizer.model").write_bytes(pieces)
    (hub / "tokenizer.json").write_bytes(tokenizer_json(pieces))
    return hub, single
