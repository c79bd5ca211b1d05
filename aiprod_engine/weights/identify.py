"""What a file is, from names, shapes and metadata alone. File names decide nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ..errors import CheckpointError
from .facts import facts
from .files import Files, open_headers
from .header import Header, short
from .keymap import TRANSFORMER_PREFIXES, is_companion, split
from .quant_formats import LayerFormat, layer_formats, logical_shape, parse_json, summary

GENERATIONS = ("2.0", "2.3", "2.5")
COMPONENTS = (
    *("transformer", "connectors", "text_projection", "video_vae", "video_vae_diffusion"),
    *("audio_vae", "vocoder", "spatial_x2", "spatial_x1.5", "spatial_x4", "spatial_x0.75"),
    *("temporal_x2", "gemma3_12b", "gemma4_12b", "duration_head", "lora", "ic_lora"),
)
_EXPECTED = (
    "expected an LTX-2 checkpoint, transformer, VAE, audio VAE, text connectors, upsampler, "
    "Gemma text encoder or LoRA"
)

ADAPTER_SUFFIXES = (
    *(".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight"),
    *(".lora_A", ".lora_linear_layer.down.weight", "_lora.down.weight"),
    *(".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight"),
    *(".lora_B", ".lora_linear_layer.up.weight", "_lora.up.weight", ".lora_mid.weight"),
    *(".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    *(".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"),
    *(".diff", ".diff_b", ".set_weight", ".reshape_weight"),
)
_ADAPTER_PREFIXES = (
    *("base_model.model.diffusion_model.", "base_model.model.", "model.diffusion_model."),
    *("diffusion_model.", "lora_unet_", "transformer."),
)
_ADAPTER_TEXT_SIDE = (
    *("text_embedding_projection", "text_encoders.", "lora_te", "diffusion_model.connectors."),
    *("connectors.", "base_model.model.text_embedding_projection"),
)
_REFERENCE_KEYS = (
    *("reference_downscale_factor", "reference_spatial_scale_factor"),
    *("reference_temporal_scale_factor", "hdr_transform", "use_hdr_transform"),
)
_GEMMA_LAYER = re.compile(
    r"(model\.|language_model\.model\.|model\.language_model\.|)layers\.(\d+)\."
    r"(self_attn\.q_norm|pre_feedforward_layernorm|input_layernorm)\.weight"
)
_OTHER_GEMMA_WIDTHS = (640, 1152, 1536, 2048, 2304, 2560, 5376)  # Gemma 3 and its smaller kin


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


def inspect(files: Files) -> Info:
    """Identify what `files` hold together, from their headers."""
    return merged([identify(header) for header in open_headers(files)])


def identify(header: Header) -> Info:
    """Identify one file or sharded set; tests in the order of the checkpoint page."""
    found = _Keys(header)
    info = _adapter(found) or _by_components(found)
    info = replace(info, metadata=header.metadata, name=header.path.name)
    if info.kind == "unknown":
        note = f"{header.path.name}: not a file of the LTX-2 family; {_EXPECTED}"
        quant = "gguf" if header.container == "gguf" else "none"
        return replace(info, prefix=None, quant=quant, notes=(note,))
    try:
        formats = {} if info.kind == "lora" else layer_formats(header)
    except CheckpointError as error:
        raise CheckpointError(f"{header.path.name}: {error}") from None
    info = replace(info, quant=summary(formats, header.container))
    return _counted(_narrowed(info), header, formats)


def merged(infos: Sequence[Info]) -> Info:
    """One Info for files used together: the one with the transformer leads."""
    if len(infos) == 1:
        return infos[0]
    lead = min(infos, key=lambda info: _KINDS.index(info.kind))
    known = [info for info in infos if info.kind != "unknown"]
    quants = {info.quant for info in known} - {"none"}
    tensors: dict[str, int] = {}
    parameters: dict[str, int] = {}
    for info in known:
        for component, count in info.tensors.items():
            tensors[component] = tensors.get(component, 0) + count
            parameters[component] = parameters.get(component, 0) + info.parameters[component]
    return replace(
        lead,
        components=_ordered(c for info in infos for c in info.components),
        quant="none" if not quants else quants.pop() if len(quants) == 1 else "mixed",
        tensors=tensors,
        parameters=parameters,
        facts={},
        notes=tuple(dict.fromkeys(note for info in infos for note in info.notes)),
    )


def generation(text: str | None) -> str | None:
    """Newest generation that is not above a version string ("2.3.rc1" -> "2.3")."""
    numbers = []
    for word in (text or "").replace("-", ".").split("."):
        if not word.isascii() or not word.isdigit() or len(word) > 9:
            break
        numbers.append(int(word))
    if not numbers:
        return None
    known = [g for g in GENERATIONS if [int(n) for n in g.split(".")] <= numbers]
    return known[-1] if known else None


class _Keys:
    """Names and shapes of a file with the questions that the tests ask."""

    def __init__(self, header: Header):
        self.header, self.tensors, self.metadata = header, header.tensors, header.metadata

    def shape(self, key: str) -> tuple[int, ...] | None:
        info = self.tensors.get(key)
        return None if info is None else info.shape

    def has(self, *keys: str) -> bool:
        return all(key in self.tensors for key in keys)

    def any(self, *starts: str) -> bool:
        return any(key.startswith(starts) for key in self.tensors)

    def last(self, start: str) -> int:
        """Largest N of `<start>N.`, or -1."""
        numbers = (key[len(start) :].partition(".")[0] for key in self.tensors
                   if key.startswith(start))
        return max((int(n) for n in numbers if n.isascii() and n.isdigit()), default=-1)


def _adapter(found: _Keys) -> Info | None:
    """Test 1: adapter suffixes and no plain weight. Vocoders hold `.alpha` too, so it is no sign."""
    adapters = [key for key in found.tensors if key.endswith(ADAPTER_SUFFIXES)]
    plain = any(
        key.endswith(".weight") and not key.endswith(ADAPTER_SUFFIXES) for key in found.tensors
    )
    if not adapters or plain:
        return None
    is_reference = any(key in found.metadata for key in _REFERENCE_KEYS)
    own = [key for key in adapters if not key.startswith(_ADAPTER_TEXT_SIDE)] or adapters
    starts = [next((p for p in _ADAPTER_PREFIXES if key.startswith(p)), "") for key in own]
    prefix = max(dict.fromkeys(starts), key=starts.count)
    return Info("lora", components=("ic_lora" if is_reference else "lora",), prefix=prefix)


# A finding is (kind, version, components, prefix, layout, modalities).
def _by_components(found: _Keys) -> Info:
    """Tests 2 to 12: the first one names the kind, all together the components."""
    infos = [info for test in _TESTS if (info := test(found)) is not None]
    if not infos:
        return Info("unknown")
    lead = infos[0]
    if lead.kind == "unsupported_ltxv":
        return lead
    return replace(lead, components=_ordered(c for info in infos for c in info.components))


def _transformer(found: _Keys) -> Info | None:
    """Tests 2 to 4."""
    start = next((p for p in TRANSFORMER_PREFIXES if found.has(f"{p}patchify_proj.weight")), None)
    table = None if start is None else found.shape(f"{start}adaln_single.linear.weight")
    if table is None:
        return None
    rows = table[0] / max(found.shape(f"{start}patchify_proj.weight")[0], 1)
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


def _diffusers_transformer(found: _Keys) -> Info | None:
    """Test 5."""
    table = found.shape("time_embed.linear.weight")
    if table is None or not found.has("proj_in.weight", "audio_proj_in.weight"):
        return None
    rows = table[0] / max(found.shape("proj_in.weight")[0], 1)
    version = _transformer_version(rows, found.has("transformer_blocks.0.ff.net.0.proj.bias"))
    return Info("diffusers_transformer", version, ("transformer",), "av", layout="diffusers")


def _diffusers_part(found: _Keys) -> Info | None:
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


def _upsampler(found: _Keys) -> Info | None:
    """Test 6."""
    if not found.has("post_upsample_res_blocks.0.conv2.bias", "initial_conv.weight"):
        return None
    middle = max(found.shape("initial_conv.weight")[0], 1)
    plain, rational = found.shape("upsampler.0.weight"), found.shape("upsampler.conv.weight")
    if plain is not None:
        known = {(5, 2): ("temporal_x2",), (4, 4): ("spatial_x2",)}
        known[5, 8] = ("spatial_x2", "temporal_x2")
        components = known.get((len(plain), plain[0] / middle), ())
    elif rational is not None:
        nine = "spatial_x0.75" if _flat_config(found).get("spatial_scale") == 0.75 else None
        names = {4: "spatial_x2", 9: nine or "spatial_x1.5", 16: "spatial_x4"}
        name = names.get(rational[0] / middle)
        components = (name,) if name else ()
    else:
        components = ()
    return Info("latent_upsampler", components=components)


def _flat_config(found: _Keys) -> Mapping:
    config = parse_json(found.metadata.get("config", "{}"), "config")
    return config if isinstance(config, dict) else {}


def _video_vae(found: _Keys) -> Info | None:
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


def _audio(found: _Keys) -> Info | None:
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


def _text_encoder(found: _Keys) -> Info | None:
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
    if width is not None and width[-1] in _OTHER_GEMMA_WIDTHS:
        return None
    return Info("text_encoder", "2.0|2.3", ("gemma3_12b",), layout=layout)


def _connectors(found: _Keys) -> Info | None:
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


def _text_version(found: _Keys) -> str | None:
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
    registers = [i.shape for k, i in found.tensors.items() if k.endswith("learnable_registers")]
    widths = {shape[-1] for shape in registers if shape}
    if 3840 in widths:
        return "2.0"
    gated = any("connector" in k and "to_gate_logits" in k for k in found.tensors)
    return "2.3|2.5" if gated or widths & {4096, 2048} else "2.0"


def _duration_head(found: _Keys) -> Info | None:
    """Test 12."""
    if not found.tensors or not all(key.startswith("duration_head.") for key in found.tensors):
        return None
    return Info("duration_head", "2.5", ("duration_head",), prefix="duration_head.")


_TESTS: tuple[Callable[[_Keys], Info | None], ...] = (
    *(_transformer, _diffusers_transformer, _diffusers_part, _upsampler, _video_vae, _audio),
    *(_text_encoder, _connectors, _duration_head),
)
_KINDS = (
    *("checkpoint", "diffusers_transformer", "text_encoder", "connectors", "video_vae"),
    *("audio_vae", "latent_upsampler", "duration_head", "lora", "unsupported_ltxv", "unknown"),
)


def _narrowed(info: Info) -> Info:
    """Let `model_version` choose between versions that shapes cannot tell apart."""
    stated = generation(info.metadata.get("model_version"))
    if stated is None or info.version is None:
        return info
    if stated in info.version.split("|"):
        return replace(info, version=stated)
    said = short(info.metadata["model_version"], 20)
    note = f"model_version says {said}, the shapes say {info.version}; the shapes are trusted"
    return replace(info, notes=(*info.notes, note))


def _counted(info: Info, header: Header, formats: Mapping[str, LayerFormat]) -> Info:
    if info.kind == "lora":
        rooms = {"lora": {key: key for key in header.tensors}}
    else:
        rooms = split(header.tensors, info.layout, info.prefix or "", info.components)
    by_weight = {found.tensors["weight"]: found for found in formats.values()}
    shapes = {
        room: {
            name: logical_shape(header.tensors[key], by_weight.get(key))
            for name, key in names.items()
            if not is_companion(key)
        }
        for room, names in rooms.items()
    }
    return replace(
        info,
        tensors={room: len(names) for room, names in rooms.items()},
        parameters={room: sum(map(prod, known.values())) for room, known in shapes.items()},
        facts=facts(shapes),
    )


def _ordered(components: Iterable[str]) -> tuple[str, ...]:
    present = set(components)
    return tuple(name for name in COMPONENTS if name in present)


def _amount(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
