"""Rotary tables and their application."""

import pytest
import torch
from goldens import golden

from aiprod_engine.models.transformer.config import RopeConfig, TransformerConfig
from aiprod_engine.models.transformer.rope import frequencies, rope_table


def rope_config(case) -> RopeConfig:
    section = case.config["transformer"]
    return RopeConfig(
        dim=case.call["dim"],
        heads=case.call["heads"],
        max_pos=tuple(case.call["max_pos"]),
        theta=case.call["theta"],
        float64_grid=section["frequencies_precision"] == "float64",
        interleaved=section["rope_type"] == "interleaved",
    )


def as_stored(table, interleaved):
    """Interleaved fixtures hold (B, T, dim) with every entry twice, split ones our layout."""
    if not interleaved:
        return table
    return table.transpose(1, 2).flatten(2).repeat_interleave(2, dim=-1)


@pytest.mark.parametrize("case", golden("transformer/rope_*"))
def test_tables_match_the_reference(case):
    config = rope_config(case)
    rope = rope_table(case.inputs["positions"], config, torch.float32)
    case.check("freq_grid", frequencies(config))
    case.check("cos", as_stored(rope.cos, config.interleaved))
    case.check("sin", as_stored(rope.sin, config.interleaved))


@pytest.mark.parametrize(
    "case",
    golden(
        "transformer/rope_split_video",
        "transformer/rope_split_audio",
        "transformer/rope_interleaved_video",
    ),
)
def test_rotation_matches_the_reference(case):
    config = rope_config(case)
    rope = rope_table(case.inputs["positions"], config, torch.float32)
    x = case.inputs["x"].unflatten(-1, (config.heads, -1)).transpose(1, 2)
    case.check("x_rotated", rope.apply(x).transpose(1, 2).flatten(2))


def test_published_frequencies_run_from_half_pi_to_theta_half_pi():
    config = TransformerConfig()
    grid = frequencies(config.self_rope(config.video))
    assert grid.shape == (682,)
    assert grid[0].item() == pytest.approx(torch.pi / 2)
    assert grid[-1].item() == pytest.approx(15707.96, abs=0.01)
    assert frequencies(config.cross_rope()).shape == (1024,)


def test_cross_attention_uses_the_common_time_limit():
    config = TransformerConfig(
        positional_embedding_max_pos=(16, 512, 768), audio_positional_embedding_max_pos=(24,)
    )
    assert config.cross_rope().max_pos == (24,)


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
def test_rotation_keeps_length_and_depends_on_distance_only(rope_type):
    config = TransformerConfig(
        num_attention_heads=2, audio_attention_head_dim=6, rope_type=rope_type
    ).cross_rope()
    start = torch.tensor([0.0, 1.0, 5.0, 6.0])
    bounds = torch.stack([start, start + 0.5], -1)[None, None]  # (1, 1, 4, 2)
    rope = rope_table(bounds, config, torch.float32)
    q, k = torch.randn(2, 1, 2, 1, 6).expand(-1, -1, -1, 4, -1)
    q, k = rope.apply(q), rope.apply(k)
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[..., :1].expand(-1, -1, 4))
    near, far = (q[:, :, 0] * k[:, :, 1]).sum(-1), (q[:, :, 2] * k[:, :, 3]).sum(-1)
    # Angles reach 1e4, where one float32 rounding is 1e-3.
    torch.testing.assert_close(near, far, rtol=0, atol=0.02)


def test_table_is_cast_last():
    config = TransformerConfig(num_attention_heads=2, audio_attention_head_dim=8).cross_rope()
    bounds = torch.rand(1, 1, 5, 2) * 10
    fine = rope_table(bounds, config, torch.float32)
    coarse = rope_table(bounds, config, torch.bfloat16)
    assert torch.equal(coarse.cos, fine.cos.bfloat16())
    assert torch.equal(coarse.sin, fine.sin.bfloat16())
