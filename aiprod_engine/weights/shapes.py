"""What tensor shapes show of a network's configuration, under the configuration's own names.

Each function takes the component's {name: shape} and the section known so far, and returns only
what it can see: a tensor that is missing shows nothing and is reported by strict loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UnsupportedConfig
from .containers.header import short

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Section = dict[str, Any]

MAX_LAYERS = 256  # of any list of blocks: a header cannot make us build more


def count(shapes: Shapes, start: str) -> int:
    """Number of the list `<start>0.`, `<start>1.`, ...: the largest index plus one."""
    indices = (name[len(start) :].partition(".")[0] for name in shapes if name.startswith(start))
    found = max((int(i[:9]) for i in indices if i.isascii() and i.isdigit()), default=-1) + 1
    if found > MAX_LAYERS:
        raise UnsupportedConfig(f"{short(start)} counts up to {found}; at most {MAX_LAYERS}")
    return found


def transformer(shapes: Shapes, known: Section) -> Section:
    """Sizes and switches of the transformer; heads show only where there are gates (2.3, 2.5)."""
    block = "transformer_blocks.0."
    width, channels = shapes["patchify_proj.weight"]
    rows = shapes["adaln_single.linear.weight"][0]
    gates = shapes.get(f"{block}attn1.to_gate_logits.weight")
    heads = gates[0] if gates else known.get("num_attention_heads", 1)
    shown: Section = {
        "num_layers": count(shapes, "transformer_blocks."),
        "num_attention_heads": heads,
        "in_channels": channels,
        "apply_gated_attention": gates is not None,
        "cross_attention_adaln": rows == 9 * width,  # 6 in 2.0
        "caption_proj_before_connector": "caption_projection.linear_1.weight" not in shapes,
        "ff_bias": f"{block}ff.net.0.proj.bias" in shapes,  # absent in 2.5
        "use_keyframes_abs_pos_embedding": "keyframes_abs_pos_embedding" in shapes,
    }
    if rows == 9 * width:
        shown["use_prompt_adaln_single"] = "prompt_adaln_single.linear.weight" in shapes
    if width % heads == 0:
        shown["attention_head_dim"] = width // heads
    _read(shown, "out_channels", shapes.get("proj_out.weight"), 0)
    _read(shown, "cross_attention_dim", shapes.get(f"{block}attn2.to_k.weight"), 1)
    _read(shown, "caption_channels", shapes.get("caption_projection.linear_1.weight"), 1)
    return shown | _audio_stream(shapes, block, heads)


def _audio_stream(shapes: Shapes, block: str, heads: int) -> Section:
    patchify = shapes.get("audio_patchify_proj.weight")
    if patchify is None:  # a video-only extraction
        return {}
    width, channels = patchify
    shown: Section = {
        "audio_in_channels": channels,
        "audio_num_attention_heads": heads,
        "audio_ff_bias": f"{block}audio_ff.net.0.proj.bias" in shapes,
    }
    if width % heads == 0:
        shown["audio_attention_head_dim"] = width // heads
    _read(shown, "audio_out_channels", shapes.get("audio_proj_out.weight"), 0)
    _read(shown, "audio_cross_attention_dim", shapes.get(f"{block}audio_attn2.to_k.weight"), 1)
    return shown


def text_connector(shapes: Shapes, known: Section) -> Section:
    """Connector sizes, one set per modality, and the width of the language model in 2.0."""
    shown: Section = {}
    for side, start in (("video", "connector_"), ("audio", "audio_connector_")):
        registers = shapes.get(f"{side}_embeddings_connector.learnable_registers")
        if registers is None:
            continue
        rows, width = registers
        block = f"{side}_embeddings_connector.transformer_1d_blocks."
        gates = shapes.get(f"{block}0.attn1.to_gate_logits.weight")
        common = known.get("connector_num_attention_heads")
        heads = gates[0] if gates else known.get(f"{start}num_attention_heads", common)
        shown[f"{start}num_layers"] = count(shapes, block)
        if heads and width % heads == 0:
            shown[f"{start}num_attention_heads"] = heads
            shown[f"{start}attention_head_dim"] = width // heads
        if side == "video":
            shown["connector_num_learnable_registers"] = rows
            shown["connector_apply_gated_attention"] = gates is not None
    shared = shapes.get("text_embedding_projection.aggregate_embed.weight")
    _read(shown, "caption_channels", shared, 0)
    return shown


def video_vae(shapes: Shapes, known: Section) -> Section:
    """Widths and block lists of both halves; what a block list cannot show is kept from `known`."""
    shown: Section = {}
    latent = shapes.get("per_channel_statistics.mean-of-means")
    if known.get("_class_name") == "CausalDiffusionVAE":  # 2.5: nested and always complete
        # Only some distilled files have these; no config speaks of them.
        return {"decoder": {"block_gates": "decoder.diff_blocks.0.gate_msa" in shapes}}
    _read(shown, "latent_channels", latent, 0)
    _read(shown, "encoder_base_channels", shapes.get("encoder.conv_in.conv.weight"), 0)
    _read(shown, "decoder_base_channels", shapes.get("decoder.conv_out.conv.weight"), 1)
    if any(name.startswith("decoder.") for name in shapes):
        # A config may say true although the file has no embedder: the tensors decide.
        shown["timestep_conditioning"] = "decoder.timestep_scale_multiplier" in shapes
    if blocks := _blocks(shapes, "encoder", "down_blocks"):
        shown["encoder_blocks"] = _kept(blocks, known.get("encoder_blocks"))
    if blocks := _blocks(shapes, "decoder", "up_blocks"):
        # The list is written from the pixel side, the keys count from the latent side.
        shown["decoder_blocks"] = _kept(blocks[::-1], known.get("decoder_blocks"))
    return shown


_SPANS = {2: "time", 4: "space", 8: "all"}  # stride product of a resampler


def _blocks(shapes: Shapes, half: str, blocks: str) -> list | None:
    """[name, parameters] of each block in order of execution; None if shapes do not show it."""
    width = shapes.get(f"{half}.conv_in.conv.weight", (0,))[0]
    listed = []
    for index in range(count(shapes, f"{half}.{blocks}.")):
        start = f"{half}.{blocks}.{index}."
        if layers := count(shapes, f"{start}res_blocks."):
            listed.append(["res_x", {"num_layers": layers}])
            continue
        conv = shapes.get(f"{start}conv.conv.weight")
        after = _entry_width(shapes, half, blocks, index + 1)
        if not (conv and after and width):
            return None
        is_encoder = half == "encoder"
        big, small = (after, conv[0]) if is_encoder else (conv[0], after)
        span = _SPANS.get(big // max(small, 1))
        wide, narrow = (after, width) if is_encoder else (width, after)
        if span is None or big % small or wide % narrow:
            return None
        name = f"compress_{span}_res" if is_encoder else f"compress_{span}"
        listed.append([name, {"multiplier": wide // narrow}])
        width = after
    return listed


def _entry_width(shapes: Shapes, half: str, blocks: str, index: int) -> int | None:
    """Channels that enter block `index`, or the last convolution behind all blocks."""
    start = f"{half}.{blocks}.{index}."
    names = (f"{start}res_blocks.0.conv1.conv.weight", f"{start}conv.conv.weight")
    if not any(name.startswith(start) for name in shapes):
        names = (f"{half}.conv_out.conv.weight",)
    return next((shapes[name][1] for name in names if name in shapes), None)


def _kept(shown: list, known: Any) -> list:
    """Shown blocks with the parameters that only a config states (`residual`)."""
    known = known if isinstance(known, list) else []
    stated = [e for e in known if isinstance(e, list) and len(e) == 2 and isinstance(e[1], dict)]
    by_position = [name for name, _ in stated] == [name for name, _ in shown]
    residual = {name: p["residual"] for name, p in stated if "residual" in p}
    result = []
    for index, (name, parameters) in enumerate(shown):
        kept = stated[index][1] if by_position else {}
        if not by_position and name in residual:
            kept = {"residual": residual[name]}
        result.append([name, {**kept, **parameters}])
    return result


def audio_vae(shapes: Shapes, known: Section) -> Section:  # noqa: ARG001
    """Widths and depths of the audio VAE under `model.params.ddconfig`."""
    dd: Section = {}
    first = shapes.get("encoder.conv_in.conv.weight")
    _read(dd, "ch", first, 0)
    _read(dd, "in_channels", first, 1)
    _read(dd, "z_channels", shapes.get("decoder.conv_in.conv.weight"), 1)
    _read(dd, "out_ch", shapes.get("decoder.conv_out.conv.weight"), 0)
    levels = count(shapes, "encoder.down.")
    widths = [shapes.get(f"encoder.down.{n}.block.0.conv1.conv.weight") for n in range(levels)]
    if first and levels and all(w and w[0] % first[0] == 0 for w in widths):
        dd["ch_mult"] = [w[0] // first[0] for w in widths]
    if layers := count(shapes, "encoder.down.0.block."):
        dd["num_res_blocks"] = layers
    if any(name.startswith("encoder.mid.block_") for name in shapes):
        dd["mid_block_add_attention"] = any(n.startswith("encoder.mid.attn_") for n in shapes)
    return {"model": {"params": {"ddconfig": dd}}} if dd else {}


def vocoder(shapes: Shapes, known: Section) -> Section:  # noqa: ARG001
    """Sizes of one generator (2.0) or of both (2.3, 2.5); strides and dilations never show."""
    if any(name.startswith("bwe_generator.") for name in shapes):
        return {
            "vocoder": _generator(shapes, "vocoder."),
            "bwe": _generator(shapes, "bwe_generator.") | _mel(shapes),
        }
    return _generator(shapes, "")


def _generator(shapes: Shapes, start: str) -> Section:
    shown: Section = {}
    _read(shown, "upsample_initial_channel", shapes.get(f"{start}conv_pre.weight"), 0)
    stages = count(shapes, f"{start}ups.")
    ups = [shapes.get(f"{start}ups.{n}.weight") for n in range(stages)]
    if ups and all(ups):
        shown["upsample_kernel_sizes"] = [shape[2] for shape in ups]
    per_stage = count(shapes, f"{start}resblocks.") // max(stages, 1)
    kernels = [shapes.get(f"{start}resblocks.{n}.convs1.0.weight") for n in range(per_stage)]
    if kernels and all(kernels):
        shown["resblock_kernel_sizes"] = [shape[2] for shape in kernels]
    return shown


def _mel(shapes: Shapes) -> Section:
    basis = shapes.get("mel_stft.mel_basis")
    return {"num_mels": basis[0], "n_fft": 2 * (basis[1] - 1)} if basis else {}


def gemma(shapes: Shapes, known: Section) -> Section:
    """Sizes of a Gemma decoder; Gemma 4 varies its heads per layer, so only the common ones."""
    shown: Section = {"num_hidden_layers": count(shapes, "layers.")}
    embedding = shapes.get("embed_tokens.weight")
    _read(shown, "vocab_size", embedding, 0)
    _read(shown, "hidden_size", embedding, 1)
    _read(shown, "intermediate_size", shapes.get("layers.0.mlp.gate_proj.weight"), 0)
    norm = shapes.get("layers.0.self_attn.q_norm.weight")
    query, key = (shapes.get(f"layers.0.self_attn.{n}_proj.weight") for n in "qk")
    if norm and query and key:
        shown["head_dim"] = norm[0]
        shown["num_attention_heads"] = query[0] // norm[0]
        shown["num_key_value_heads"] = key[0] // norm[0]
    text = known.get("text_config", known)
    if norm and "query_pre_attn_scalar" not in text and "layers.0.layer_scalar" not in shapes:
        shown["query_pre_attn_scalar"] = norm[0]  # so in the 12B model
    return {"text_config": shown} if "text_config" in known else shown


def gemma_vision(shapes: Shapes, known: Section) -> Section:  # noqa: ARG001
    """Sizes of the tower and of its projector; the number of heads never shows."""
    tower: Section = {}
    patches = shapes.get("vision_model.embeddings.patch_embedding.weight")
    places = shapes.get("vision_model.embeddings.position_embedding.weight")
    layers = "vision_model.encoder.layers."
    _read(tower, "hidden_size", patches, 0)
    _read(tower, "num_channels", patches, 1)
    _read(tower, "patch_size", patches, 2)
    _read(tower, "intermediate_size", shapes.get(f"{layers}0.mlp.fc1.weight"), 0)
    if patches and places:
        tower["image_size"] = math.isqrt(places[0]) * patches[2]
    if any(name.startswith(layers) for name in shapes):
        tower["num_hidden_layers"] = count(shapes, layers)
    text: Section = {}
    projection = "multi_modal_projector.mm_input_projection_weight"
    _read(text, "hidden_size", shapes.get(projection), 1)
    return {"vision_config": tower, "text_config": text}


def upsampler(shapes: Shapes, known: Section) -> Section:
    """Widths and the kind of resampling of a latent upsampler."""
    first = shapes["initial_conv.weight"]
    shown: Section = {
        "mid_channels": first[0],
        "in_channels": first[1],
        "dims": len(first) - 2,
        "num_blocks_per_stage": count(shapes, "post_upsample_res_blocks."),
    }
    rational, plain = shapes.get("upsampler.conv.weight"), shapes.get("upsampler.0.weight")
    if rational:
        factor = rational[0] // first[0]  # (3 up, 2 or 4 down) both show nine
        scale = {4: 2.0, 16: 4.0}.get(factor)
        if factor == 9:
            scale = 0.75 if known.get("spatial_scale") == 0.75 else 1.5
        shown |= {"spatial_upsample": True, "temporal_upsample": False, "rational_resampler": True}
        if scale:
            shown["spatial_scale"] = scale
    elif plain:
        factor = plain[0] // first[0]
        shown["spatial_upsample"] = factor in (4, 8)
        shown["temporal_upsample"] = factor in (2, 8)
        if factor in (4, 8):
            shown["rational_resampler"] = False
            shown["spatial_scale"] = 2.0
    return shown


def _read(shown: Section, key: str, shape: Shape | None, axis: int) -> None:
    if shape is not None and len(shape) > axis:
        shown[key] = shape[axis]


DERIVE: dict[str, Callable[[Shapes, Section], Section]] = {
    "transformer": transformer,
    "text_connector": text_connector,
    "video_encoder": video_vae,
    "video_decoder": video_vae,
    "audio_encoder": audio_vae,
    "audio_decoder": audio_vae,
    "vocoder": vocoder,
    "text_encoder": gemma,
    "text_vision": gemma_vision,
    "upsampler": upsampler,
}
