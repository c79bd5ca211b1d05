"""The tests that tell what a file holds, in the order of the checkpoint page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..containers.header import Header
from ..keymap import TRANSFORMER_PREFIXES
from ..lora.names import SUFFIXES
from ..quant.formats import parse_json
from .info import Info

_ADAPTER_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".alpha")
_ADAPTER_PREFIXES = (
    *("base_model.model.diffusion_model.", "base_model.model.", "model.diffusion_model."),
    *("diffusion_model.", "lora_unet_", "transformer."),
)
_ADAPTER_TEXT_SIDE = (
    *("text_embedding_projection", "text_encoders.", "lora_te", "diffusion_model.connectors."),
    *("connectors.", "base_model.model.text_embedding_projection"),
)
_REFERENCE_KEYS = ("reference_", "hdr_transform", "use_hdr_transform")  # starts of metadata keys
_GEMMA_LAYER = re.compile(
    r"(model\.|language_model\.model\.|model\.language_model\.|)layers\.(\d{1,4})\."
    r"(self_attn\.q_norm|pre_feedforward_layernorm|input_layernorm)\.weight"
)
_OTHER_GEMMA_WIDTHS = (640, 1152, 1536, 2048, 2304, 2560, 5376)  # Gemma 3 and its smaller kin


class Keys:
    """Names and shapes of a file with the questions that the tests ask."""

    def __init__(self, header: Header):
        self.header, self.tensors, self.metadata = header, header.tensors, header.metadata

    def shape(self, key: str) -> tuple[int, ...] | None:
        info = self.tensors.get(key)
        return None if info is None else info.shape

    def rows(self, key: str) -> int:
        """First size of a tensor; 0 if it is absent or a scalar."""
        return (self.shape(key) or (0,))[0]

    def has(self, *keys: str) -> bool:
        return all(key in self.tensors for key in keys)

    def any(self, *starts: str) -> bool:
        return any(key.startswith(starts) for key in self.tensors)

    def last(self, start: str) -> int:
        """Largest N of `<start>N.`, or -1."""
        numbers = (
            key[len(start) :].partition(".")[0] for key in self.tensors if key.startswith(start)
        )
        return max((int(n[:9]) for n in numbers if n.isascii() and n.isdigit()), default=-1)


def adapter(found: Keys) -> Info | None:
    """Test 1: adapter suffixes and no plain weight; `.alpha` is no sign, vocoders hold it too."""
    adapters = [key for key in found.tensors if key.endswith(_ADAPTER_SUFFIXES)]
    plain = any(
        key.endswith(".weight") and not key.endswith(_ADAPTER_SUFFIXES) for key in found.tensors
    )
    if not adapters or plain:
        return None
    is_reference = any(key.startswith(_REFERENCE_KEYS) for key in found.metadata)
    own = [key for key in adapters if not key.startswith(_ADAPTER_TEXT_SIDE)] or adapters
    starts = [next((p for p in _ADAPTER_PREFIXES if key.startswith(p)), "") for key in own]
    prefix = max(dict.fromkeys(starts), key=starts.count)
    return Info("lora", components=("ic_lora" if is_reference else "lora",), prefix=prefix)


def _transformer(found: Keys) -> Info | None:
    """Tests 2 to 4."""
    start = next((p for p in TRANSFORMER_PREFIXES if found.has(f"{p}patchify_proj.weight")), None)
    if start is None or not found.has(f"{start}adaln_single.linear.weight"):
        return None
    width = max(found.rows(f"{start}patchify_proj.weight"), 1)
    rows = found.rows(f"{start}adaln_single.linear.weight") / width
    block = f"{start}transformer_blocks.0."
    version = _transformer_version(rows, found.has(f"{block}ff.net.0.proj.bias"))
    if found.has(f"{start}audio_adaln_single.linear.weight"):
        notes = () if version else (f"adaln_single has {rows:g} rows per channel; known: 6 and 9",)
        return Info("checkpoint", version, ("transformer",), "av", prefix=start, notes=notes)
    if rows == 9 and found.has(f"{block}attn1.to_gate_logits.weight"):
        return Info("checkpoint", version, ("transformer",), "video", prefix=start)
    if rows == 6:
        return _older(start)
    return None


def _older(prefix: str) -> Info:
    note = "LTX-Video 0.9.x is another family and is not supported; an LTX-2 file is needed"
    return Info("unsupported_ltxv", modalities="video", prefix=prefix, notes=(note,))


def _transformer_version(rows: float, has_bias: bool) -> str | None:
    return {6: "2.0", 9: "2.3" if has_bias else "2.5"}.get(rows)


def _diffusers_transformer(found: Keys) -> Info | None:
    """Test 5."""
    if not found.has("time_embed.linear.weight", "proj_in.weight", "audio_proj_in.weight"):
        return None
    rows = found.rows("time_embed.linear.weight") / max(found.rows("proj_in.weight"), 1)
    version = _transformer_version(rows, found.has("transformer_blocks.0.ff.net.0.proj.bias"))
    return Info("diffusers_transformer", version, ("transformer",), "av", layout="diffusers")


def _diffusers_part(found: Keys) -> Info | None:
    """Test 5a: the other parts of a diffusers folder."""

    def part(kind: str, version: str | None, *components: str) -> Info:
        return Info(kind, version, components, layout="diffusers")

    conv = found.shape("decoder.conv_in.conv.weight")
    if found.has("latents_mean") and conv is not None:
        if len(conv) == 4:
            return part("audio_vae", None, "audio_vae")
        version = {2: "2.0", 3: "2.3|2.5"}.get(found.last("decoder.up_blocks."))
        return part("video_vae", version, "video_vae")
    if found.has("upsamplers.0.weight"):
        return part("audio_vae", "2.0", "vocoder")
    if found.has("vocoder.conv_in.weight"):
        return part("audio_vae", "2.3|2.5", "vocoder")
    has_connectors = found.has("video_connector.learnable_registers")
    has_projection = found.any("text_proj_in.", "video_text_proj_in.")
    if not (has_connectors or has_projection):
        return None
    components = ["connectors"] * has_connectors + ["text_projection"] * has_projection
    return part("connectors", _text_version(found), *components)


def _upsampler(found: Keys) -> Info | None:
    """Test 6."""
    if not found.has("post_upsample_res_blocks.0.conv2.bias", "initial_conv.weight"):
        return None
    middle = max(found.rows("initial_conv.weight"), 1)
    plain = found.shape("upsampler.0.weight")
    if plain is not None:
        known = {(5, 2): ("temporal_x2",), (4, 4): ("spatial_x2",)}
        known[5, 8] = ("spatial_x2", "temporal_x2")
        return Info(
            "latent_upsampler",
            components=known.get((len(plain), found.rows("upsampler.0.weight") / middle), ()),
        )
    # 3 up with 2 or 4 down look the same.
    nine = "spatial_x0.75" if _flat_config(found).get("spatial_scale") == 0.75 else "spatial_x1.5"
    names = {4: "spatial_x2", 9: nine, 16: "spatial_x4"}
    name = names.get(found.rows("upsampler.conv.weight") / middle)
    return Info("latent_upsampler", components=(name,) if name else ())


def _flat_config(found: Keys) -> Mapping:
    config = parse_json(found.metadata.get("config", "{}"), "config")
    return config if isinstance(config, dict) else {}


def _video_vae(found: Keys) -> Info | None:
    """Tests 7 and 8."""
    for start in ("vae.", ""):
        old = (f"{start}decoder.last_time_embedder.", f"{start}decoder.timestep_scale_multiplier")
        if found.any(*old):
            return _older("")
        if found.has(f"{start}decoder.conv_in_x_t.weight"):
            return Info("video_vae", "2.5", ("video_vae_diffusion",), prefix=start)
        conv = found.shape(f"{start}decoder.conv_in.conv.weight")
        if conv is not None and len(conv) == 5:
            version = {6: "2.0", 8: "2.3|2.5"}.get(found.last(f"{start}decoder.up_blocks."))
            return Info("video_vae", version, ("video_vae",), prefix=start)
    return None


def _audio(found: Keys) -> Info | None:
    """Test 9."""
    conv = found.shape("audio_vae.decoder.conv_in.conv.weight")
    has_vae = conv is not None and len(conv) == 4
    nested, flat = "vocoder.vocoder.conv_pre.weight", "vocoder.conv_pre.weight"
    version = "2.3|2.5" if found.has(nested) else "2.0" if found.has(flat) else None
    if not has_vae and version is None:
        return None
    components = ["audio_vae"] * has_vae + ["vocoder"] * (version is not None)
    prefix = "audio_vae." if has_vae else "vocoder."
    return Info("audio_vae", version, tuple(components), prefix=prefix)


def _text_encoder(found: Keys) -> Info | None:
    """Test 10, before 11: the packed 2.5 file holds its projection too."""
    if found.header.container == "gguf" and found.has("blk.0.attn_q_norm.weight"):
        return _gemma3(found.shape("token_embd.weight"), "llama.cpp")
    layers: dict[tuple[int, str], tuple[int, ...]] = {}
    for key, info in found.tensors.items():
        if match := _GEMMA_LAYER.fullmatch(key):
            layers[int(match[2]), match[3]] = info.shape
    packed = found.has("tokenizer_json") or "gemma_config" in found.metadata
    if packed or layers.get((5, "self_attn.q_norm")) == (512,):
        return Info("text_encoder", "2.5", ("gemma4_12b",))
    names = {name for _, name in layers}
    # Small test models have fewer layers; four norms per layer tell Gemma from its look-alikes.
    is_gemma = (47, "self_attn.q_norm") in layers and layers[47, "self_attn.q_norm"] == (256,)
    is_gemma |= {"self_attn.q_norm", "pre_feedforward_layernorm"} <= names
    width = next((shape for (_, name), shape in layers.items() if name == "input_layernorm"), None)
    return _gemma3(width, "single") if is_gemma else None


def _gemma3(width: tuple[int, ...] | None, layout: str) -> Info | None:
    if width and width[-1] in _OTHER_GEMMA_WIDTHS:
        return None
    return Info("text_encoder", "2.0|2.3", ("gemma3_12b",), layout=layout)


def _connectors(found: Keys) -> Info | None:
    """Test 11."""
    names = ("video_embeddings_connector.", "audio_embeddings_connector.", "embeddings_connector.")
    start = next((p for p in TRANSFORMER_PREFIXES if found.any(*(p + n for n in names))), None)
    has_projection = found.any(
        *("text_embedding_projection.", "aggregate_embed.", "video_aggregate_embed.")
    )
    if start is None and not has_projection:
        return None
    components = ["connectors"] * (start is not None) + ["text_projection"] * has_projection
    return Info("connectors", _text_version(found), tuple(components), prefix=start or "")


def _text_version(found: Keys) -> str | None:
    """Version of connectors or projection: names first, then width, then gates."""
    if found.any(
        *("text_embedding_projection.aggregate_embed.", "aggregate_embed.", "text_proj_in.")
    ):
        return "2.0"
    if any(
        "video_aggregate_embed" in key or "audio_aggregate_embed" in key or "_text_proj_in" in key
        for key in found.tensors
    ):
        return "2.3|2.5"
    widths = {i.shape[-1] for k, i in found.tensors.items() if "_connector." in k and i.shape}
    if 3840 in widths:
        return "2.0"
    gated = any("connector" in k and "to_gate_logits" in k for k in found.tensors)
    return "2.3|2.5" if gated or widths & {4096, 2048} else "2.0"


def _duration_head(found: Keys) -> Info | None:
    """Test 12."""
    if not found.tensors or not all(key.startswith("duration_head.") for key in found.tensors):
        return None
    return Info("duration_head", "2.5", ("duration_head",), prefix="duration_head.")


# Tests 2 to 12.
COMPONENT_TESTS: tuple[Callable[[Keys], Info | None], ...] = (
    *(_transformer, _diffusers_transformer, _diffusers_part, _upsampler, _video_vae, _audio),
    *(_text_encoder, _connectors, _duration_head),
)
