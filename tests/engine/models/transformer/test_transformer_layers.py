"""Single layers: timestep embedding, attention and its masks, GELU networks, the block."""

import math

import pytest
import torch
from goldens import golden

from aiprod_engine.models.transformer.adaln import AdaLN, sinusoid
from aiprod_engine.models.transformer.attention import Attention, strength_bias, text_bias
from aiprod_engine.models.transformer.block import Block, CrossInputs, StreamInputs
from aiprod_engine.models.transformer.config import TransformerConfig
from aiprod_engine.models.transformer.mlp import CaptionProjection, FeedForward
from aiprod_engine.models.transformer.perturbations import BlockKeep
from aiprod_engine.models.transformer.rope import Rope

ROOT = "model.diffusion_model."
BLOCK = ROOT + "transformer_blocks.0."


def config_of(case):
    return TransformerConfig.from_metadata(case.config["transformer"])


def rope_of(tensors, name, config):
    cos, sin = tensors[f"{name}cos"], tensors[f"{name}sin"]
    interleaved = config.rope_type == "interleaved"
    if interleaved:  # stored as (B, T, dim) with every entry twice
        heads = config.num_attention_heads
        cos, sin = (t[..., ::2].unflatten(-1, (heads, -1)).transpose(1, 2) for t in (cos, sin))
    return Rope(cos, sin, interleaved)


@pytest.mark.parametrize("case", golden("transformer/timestep_adaln"))
def test_timestep_embedding(case, load_module):
    config, t = config_of(case), case.inputs["timesteps"]
    adaln = load_module(
        lambda: AdaLN(config.video.dim, case.call["coefficient"]),
        case.weights,
        ROOT + "adaln_single.",
    )
    modulation, embedded = adaln(t[:, None], torch.float32)
    case.check("sinusoid", sinusoid(t))
    case.check("embedded", embedded[:, 0])
    case.check("modulation", modulation.flatten(1))


@pytest.mark.parametrize("case", golden("transformer/caption_projection"))
def test_caption_projection(case, load_module):
    config = config_of(case)
    projection = load_module(
        lambda: CaptionProjection(config.caption_channels, config.video.dim),
        case.weights,
        ROOT + "caption_projection.",
    )
    case.check("y", projection(case.inputs["caption"]))


@pytest.mark.parametrize("case", golden("text/caption_projection_v1"))
def test_caption_projection_of_both_streams(case, load_module):
    for stream, prefix in (("video", ""), ("audio", "audio_")):
        root = f"{ROOT}{prefix}caption_projection."
        dim, channels = case.weights[root + "linear_1.weight"].shape
        projection = load_module(
            lambda d=dim, c=channels: CaptionProjection(c, d), case.weights, root
        )
        case.check(stream, projection(case.inputs["context"]))


@pytest.mark.parametrize("case", golden("transformer/feed_forward"))
def test_feed_forward(case, load_module):
    dim = config_of(case).video.dim
    layer = load_module(lambda: FeedForward(dim, bias=True), case.weights, BLOCK + "ff.")
    case.check("y", layer(case.inputs["x"]))


def attention(case, name, load_module):
    c = config_of(case)
    shapes = {
        "attn1": (c.video.dim, c.video.dim, c.video.head_dim),
        "attn2": (c.video.dim, c.video.dim, c.video.head_dim),
        "audio_to_video_attn": (c.video.dim, c.audio.dim, c.audio.head_dim),
    }
    dim, context_dim, head_dim = shapes[name]
    options = {"eps": c.norm_eps, "gated": c.apply_gated_attention}
    return load_module(
        lambda: Attention(dim, context_dim, c.num_attention_heads, head_dim, **options),
        case.weights,
        f"{BLOCK}{name}.",
    )


@pytest.mark.parametrize("case", golden("transformer/attn_self_*"))
def test_self_attention(case, load_module):
    layer = attention(case, "attn1", load_module)
    rope = rope_of(case.inputs, "", config_of(case))
    case.check("y", layer(case.inputs["x"], mask=case.inputs.get("mask"), rope=rope))


@pytest.mark.parametrize("case", golden("transformer/attn_text_masked"))
def test_text_attention(case, load_module):
    layer = attention(case, "attn2", load_module)
    case.check("y", layer(case.inputs["x"], case.inputs["context"], case.inputs["mask"]))


@pytest.mark.parametrize("case", golden("transformer/attn_audio_to_video"))
def test_audio_to_video_attention(case, load_module):
    layer, config = attention(case, "audio_to_video_attn", load_module), config_of(case)
    rope, key_rope = rope_of(case.inputs, "q_", config), rope_of(case.inputs, "k_", config)
    case.check("y", layer(case.inputs["x"], case.inputs["context"], rope=rope, key_rope=key_rope))


@pytest.mark.parametrize("case", golden("transformer/attn_perturbed"))
def test_perturbed_attention(case, load_module):
    layer, x = attention(case, "attn1", load_module), case.inputs["x"]
    rope = rope_of(case.inputs, "", config_of(case))
    case.check("y", layer(x, rope=rope, keep=case.inputs["keep"]))
    case.check("y_all_perturbed", layer(x, rope=rope, keep=False))
    none_kept = layer(x, rope=rope, keep=torch.zeros(2, 1, 1))
    torch.testing.assert_close(none_kept, layer(x, rope=rope, keep=False))


def stream_inputs(tensors, config):
    prompt = tensors.get("prompt_modulation")
    return StreamInputs(
        rope=rope_of(tensors, "pe.", config),
        modulation=tensors["modulation"].unflatten(-1, (config.block_rows, -1)),
        context=tensors["context"],
        prompt=None if prompt is None else prompt.unflatten(-1, (2, -1)),
        cross=CrossInputs(
            rope=rope_of(tensors, "cross_pe.", config),
            scale_shift=tensors["cross_scale_shift"].unflatten(-1, (4, -1)),
            gate=tensors["cross_gate"][:, :, None],
        ),
    )


@pytest.mark.parametrize("case", golden("transformer/block_*"))
def test_block(case, load_module):
    config = config_of(case)
    block = load_module(lambda: Block(config), case.weights, BLOCK)
    video, audio = case.group("in.video."), case.group("in.audio.")
    vx, ax = block(
        video["x"],
        audio["x"],
        stream_inputs(video, config),
        stream_inputs(audio, config),
        BlockKeep(),
    )
    case.check("video.x", vx)
    case.check("audio.x", ax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strengths_become_logarithms(dtype):
    bias = strength_bias(torch.tensor([[[0.0, 0.5, 1.0]]]), dtype)
    assert bias.shape == (1, 1, 1, 3)
    assert bias.dtype == dtype
    expected = torch.tensor([torch.finfo(dtype).min, math.log(0.5), 0.0], dtype=dtype)
    assert torch.equal(bias[0, 0, 0], expected)
    assert strength_bias(None, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_masks(dtype):
    bias = text_bias(torch.tensor([[1, 0]]), dtype)
    assert torch.equal(bias, torch.tensor([[[[0.0, -torch.finfo(dtype).max]]]], dtype=dtype))
    assert torch.equal(bias, text_bias(torch.tensor([[True, False]]), dtype))
    additive = torch.tensor([[[[0.0, -2.5]]]])
    assert torch.equal(text_bias(additive, dtype), additive.to(dtype))
    assert text_bias(None, dtype) is None
