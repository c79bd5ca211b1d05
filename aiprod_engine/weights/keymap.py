"""Which component each key of a file belongs to, and its name inside that component.

Names inside are those of the single files without their prefix, because the module trees carry
those names: `transformer_blocks.0.attn1.to_q.weight`, `video_embeddings_connector....`,
`text_embedding_projection....`, `encoder....` of either VAE, `layers.0....` of Gemma. Every rule
is anchored at the start of a key or at whole dot-separated segments; a key is used at most once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from ..errors import CheckpointError
from .containers.header import Header, short

TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
GEMMA_PREFIXES = ("language_model.model.", "model.language_model.", "model.", "")
STATISTICS = "per_channel_statistics."

# (prefix in the file, component, what replaces the prefix). First match wins.
_CONNECTORS = (
    *(
        (f"{p}{side}_embeddings_connector.", "connectors", f"{side}_embeddings_connector.")
        for p in TRANSFORMER_PREFIXES
        for side in ("video", "audio")
    ),
    # Video-only files.
    *(
        (f"{p}embeddings_connector.", "connectors", "video_embeddings_connector.")
        for p in TRANSFORMER_PREFIXES
    ),
)
_PROJECTION = "text_embedding_projection."
_PROJECTIONS = (
    (_PROJECTION, "text_projection", _PROJECTION),
    *(
        (f"{name}.", "text_projection", f"{_PROJECTION}{name}.")  # old bare files
        for name in ("aggregate_embed", "video_aggregate_embed", "audio_aggregate_embed")
    ),
)
_SINGLE = (
    *_CONNECTORS,
    *_PROJECTIONS,
    ("audio_vae.", "audio_vae", ""),
    ("vocoder.", "vocoder", ""),
    ("vae.", "video_vae", ""),
    ("duration_head.", "duration_head", ""),
)
# Gemma 3: what it sees pictures with, as the hub, transformers 4 and 5, and single files name it.
_VISION = (
    *(
        (f"{p}{tower}", "text_vision", "vision_model.")
        for p in ("", "model.")
        for tower in ("vision_tower.vision_model.", "vision_tower.", "vision_model.")
    ),
    *(
        (f"{p}multi_modal_projector.", "text_vision", "multi_modal_projector.")
        for p in ("", "model.")
    ),
)
_NOT_TEXT = (
    *("spiece_model", "tokenizer_json", "hf_asset__", "lm_head.", "language_model.lm_head."),
    *("vision_", "model.vision_", "multi_modal_projector.", "model.multi_modal_projector."),
    *("audio_", "model.audio_"),  # Gemma 4 hears, too
)

# Whole-segment renames of the diffusers folders, theirs -> ours.
_NORMS = {"norm_q": "q_norm", "norm_k": "k_norm"}
_DIFFUSERS = {
    "transformer": {
        "proj_in": "patchify_proj",
        "audio_proj_in": "audio_patchify_proj",
        "time_embed": "adaln_single",
        "audio_time_embed": "audio_adaln_single",
        "prompt_adaln": "prompt_adaln_single",
        "audio_prompt_adaln": "audio_prompt_adaln_single",
        "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
        "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
        "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
        "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
        "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
        "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
        **_NORMS,
    },
    "connectors": {
        "video_connector": "video_embeddings_connector",
        "audio_connector": "audio_embeddings_connector",
        "transformer_blocks": "transformer_1d_blocks",
        "text_proj_in": f"{_PROJECTION}aggregate_embed",
        "video_text_proj_in": f"{_PROJECTION}video_aggregate_embed",
        "audio_text_proj_in": f"{_PROJECTION}audio_aggregate_embed",
        **_NORMS,
    },
    "video_vae": {
        "latents_mean": f"{STATISTICS}mean-of-means",
        "latents_std": f"{STATISTICS}std-of-means",
        "resnets": "res_blocks",
    },
    "audio_vae": {
        "latents_mean": f"{STATISTICS}mean-of-means",
        "latents_std": f"{STATISTICS}std-of-means",
    },
    "vocoder": {
        "upsamplers": "ups",
        "resnets": "resblocks",
        "conv_in": "conv_pre",
        "conv_out": "conv_post",
        "act_out": "act_post",
    },
}

# llama.cpp names of a Gemma decoder.
_GGUF_GEMMA = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Part:
    """What a network takes from a component: keys under `prefixes`, each replaced by its value.

    Keys that match `ignored` (whole keys after the prefix) are known and not needed, those under
    `others` belong to another network of the component. Anything else counts as taken, so that
    strict loading reports it.
    """

    component: str
    prefixes: Mapping[str, str]
    others: tuple[str, ...] = ()
    ignored: re.Pattern[str] = re.compile("(?!)")


_OLD_STATISTICS = rf"{re.escape(STATISTICS)}(channel|mean-of-stds|mean-of-stds_over_std-of-means)"
_VAE_IGNORED = re.compile(rf"{_OLD_STATISTICS}|type_emb|coarse_.*")

# The resampler's filters are computed; the inverse STFT basis is never read.
_VOCODER_IGNORED = re.compile(r"mel_stft\.stft_fn\.inverse_basis|resampler\..*")


def _half(component: str, name: str) -> tuple[Part, ...]:
    """One half of a VAE with its own copy of the statistics."""
    other = "decoder." if name == "encoder" else "encoder."
    prefixes = {f"{name}.": "", STATISTICS: STATISTICS}
    return (Part(component, prefixes, (other,), _VAE_IGNORED),)


# kind -> where its tensors come from.
PARTS: dict[str, tuple[Part, ...]] = {
    "transformer": (Part("transformer", {"": ""}),),
    "text_connector": (Part("connectors", {"": ""}), Part("text_projection", {"": ""})),
    "video_encoder": _half("video_vae", "encoder"),
    "video_decoder": _half("video_vae", "decoder"),
    "audio_encoder": _half("audio_vae", "encoder"),
    "audio_decoder": _half("audio_vae", "decoder"),
    "vocoder": (Part("vocoder", {"": ""}, (), _VOCODER_IGNORED),),
    "text_encoder": (Part("text_encoder", {"": ""}),),
    "text_vision": (Part("text_vision", {"": ""}),),
    "upsampler": (Part("upsampler", {"": ""}),),
}


@lru_cache(maxsize=32)
def rooms(
    header: Header, layout: str, prefix: str, components: tuple[str, ...]
) -> Mapping[str, Mapping[str, str]]:
    """`split` of a file's keys, done once for all networks that are taken from it."""
    found = split(header.tensors, layout, prefix, components)
    return MappingProxyType({room: MappingProxyType(names) for room, names in found.items()})


def split(keys: Iterable[str], layout: str, prefix: str, components: Iterable[str]) -> dict:
    """Component -> {name inside: file key}; keys of nobody we know are left out.

    `layout` is "single", "diffusers" or "llama.cpp"; `prefix` is the transformer's.
    """
    components = set(components)
    if layout == "diffusers":
        named = _diffusers(list(keys), components)
    elif layout == "llama.cpp":
        named = (("text_encoder", _llama_cpp(key), key) for key in keys)
    else:
        named = _single(list(keys), prefix, components)
    result: dict[str, dict[str, str]] = {}
    for component, name, key in named:
        table = result.setdefault(component, {})
        if name in table:
            raise CheckpointError(f"{short(key)} and {short(table[name])} name the same tensor")
        table[name] = key
    return result


def take(part: Part, names: Mapping[str, str]) -> dict[str, str]:
    """{name in the network: file key} of one part of a component's {name: file key}."""
    taken = {}
    for name, key in names.items():
        if name.startswith(part.others):
            continue
        prefix = next((p for p in part.prefixes if name.startswith(p)), None)
        inner = name if prefix is None else part.prefixes[prefix] + name[len(prefix) :]
        if not part.ignored.fullmatch(inner):
            taken[inner] = key
    return taken


def _single(keys: list[str], prefix: str, components: set[str]) -> Iterable[tuple[str, str, str]]:
    rules = list(_SINGLE)
    if "transformer" in components:
        rules.append((prefix, "transformer", ""))
    elif _is_bare_vae(keys, components):
        rules.append(("", "video_vae", ""))
    if "gemma3_12b" in components:
        rules += _VISION
    if components & {"gemma3_12b", "gemma4_12b"}:
        rules += [(start, "", "") for start in _NOT_TEXT]
        rules.append((_gemma_prefix(keys), "text_encoder", ""))
    if any(name.startswith(("spatial_", "temporal_")) for name in components):
        rules = [("", "upsampler", "")]
    for key in keys:
        for start, component, replacement in rules:
            if key.startswith(start):
                if component:
                    yield component, replacement + key[len(start) :], key
                break


def _is_bare_vae(keys: list[str], components: set[str]) -> bool:
    has_vae = bool(components & {"video_vae", "video_vae_diffusion"})
    return has_vae and not any(key.startswith("vae.") for key in keys)


def _gemma_prefix(keys: list[str]) -> str:
    layers = [key for key in keys if ".self_attn.q_norm." in key or "layernorm" in key]
    prefixes = (p for p in GEMMA_PREFIXES if any(key.startswith(f"{p}layers.") for key in layers))
    return next(prefixes, "")


def _llama_cpp(key: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`."""
    segments = key.split(".")
    renamed = [_GGUF_GEMMA.get(segment, segment) for segment in segments]
    return ".".join(["layers", *renamed[1:]] if segments[0] == "blk" else renamed)


def _diffusers(keys: list[str], components: set[str]) -> Iterable[tuple[str, str, str]]:
    if components & {"connectors", "text_projection"}:
        part = "connectors"
    else:
        part = next((name for name in _DIFFUSERS if name in components), None)
    if part is None:  # upsampler: same names as the single file
        part = "upsampler"
    table = _DIFFUSERS.get(part, {})
    levels = [int(m[1]) for key in keys if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", key))]
    for key in keys:
        name = ".".join(table.get(segment, segment) for segment in key.split("."))
        if part == "video_vae":
            name = _vae_blocks(name, max(levels, default=-1) + 1)
        if part == "vocoder":
            name = name.replace(".downsample.filter", ".downsample.lowpass.filter")
        is_projection = part == "connectors" and name.startswith(_PROJECTION)
        yield "text_projection" if is_projection else part, name, key


def _vae_blocks(name: str, encoder_levels: int) -> str:
    """Block numbers: theirs pair residual blocks with a resampler, ours count both in a row."""
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    ours, resampler = ("down", "downsamplers") if half == "encoder" else ("up", "upsamplers")
    if rest.startswith("mid_block."):
        index, rest = (2 * encoder_levels if half == "encoder" else 0), rest[len("mid_block.") :]
    elif match := re.match(rf"{ours}_blocks\.(\d+)\.({resampler}\.0\.)?", rest):
        # encoder: blocks 2i, resampler 2i + 1; decoder after its mid block 0: resampler 2i + 1,
        # blocks 2i + 2.
        index = 2 * int(match[1]) + (1 if match[2] else 0 if half == "encoder" else 2)
        rest = rest[match.end() :]
    else:
        return name
    return f"{half}.{ours}_blocks.{index}.{rest}"
