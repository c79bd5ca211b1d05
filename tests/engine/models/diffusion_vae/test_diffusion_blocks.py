"""Parts of the diffusion decoder against diffusers 0.42.1, and the windows against a plain rule."""

import pytest
import torch
from goldens import golden

from aiprod_engine.models.diffusion_vae.blocks import Attention, Upsample
from aiprod_engine.models.diffusion_vae.config import StageConfig, UpsampleConfig, head_parts
from aiprod_engine.models.diffusion_vae.neighborhood import attend, tiles_of


@pytest.mark.parametrize("case", golden("video_vae/diffvae_neighborhood_attention"))
def test_attention_matches_reference(case):
    config, weights = case.config, case.group("w.attn.")
    rows = {
        end: torch.cat([weights.pop(f"to_{part}.{end}") for part in "qkv"])
        for end in ("weight", "bias")
    }
    stage = StageConfig(config["dim"], 1, tuple(config["kernel_size"]))
    attention = Attention(stage, config["head_dim"]).requires_grad_(False)
    attention.load_state_dict(weights | {f"qkv.{end}": value for end, value in rows.items()})
    x = case.inputs["x"]
    for name, value in zip("qkv", attention.project(x, torch.nn.Identity()), strict=True):
        case.check(name, value)
    case.check("y", attention.proj(attention(x, torch.nn.Identity())))


@pytest.mark.parametrize("case", golden("video_vae/diffvae_upsample"))
@pytest.mark.parametrize("piece", [1, 1 << 22])
def test_upsample_matches_reference(case, piece, monkeypatch):
    monkeypatch.setattr("aiprod_engine.models.diffusion_vae.blocks.PIECE", piece)
    for entry in case.call["cases"]:
        tag, x = entry["tag"], case.inputs[entry["tag"]]
        width = x.shape[-1]
        config = UpsampleConfig(width, width // entry["reduction"], tuple(entry["stride"]))
        upsample = Upsample(config).requires_grad_(False)
        upsample.load_state_dict(case.group(f"w.{tag}."))
        case.check(f"{tag}_drop", upsample(x))
        case.check(f"{tag}_keep", upsample(x, leads=False))


def plain_attention(q, k, v, window):
    """Every query over the cells of its window, one by one."""
    out = torch.empty_like(q)
    grid = q.shape[1:4]
    for place in torch.cartesian_prod(*(torch.arange(side) for side in grid)).tolist():
        starts = [
            min(max(at - side // 2, 0), length - side)
            for at, side, length in zip(place, window, grid, strict=True)
        ]
        near = tuple(slice(a, a + side) for a, side in zip(starts, window, strict=True))
        keys, values = (x[(slice(None), *near)].flatten(1, 3) for x in (k, v))
        query = q[(slice(None), *place)]  # (B, heads, d)
        weights = torch.einsum("bhd,bnhd->bhn", query, keys).softmax(-1)
        out[(slice(None), *place)] = torch.einsum("bhn,bnhd->bhd", weights, values)
    return out


@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((3, 7, 7), (3, 7, 7)),
        ((5, 9, 17), (3, 5, 7)),
        ((9, 8, 11), (5, 3, 1)),
        ((1, 20, 10), (1, 11, 3)),
        ((12, 3, 26), (11, 3, 11)),
    ],
)
@pytest.mark.parametrize("gathered", [1, 1 << 25])
def test_windows_are_shifted_inward_at_borders(grid, window, gathered, monkeypatch):
    monkeypatch.setattr("aiprod_engine.models.diffusion_vae.neighborhood._GATHERED", gathered)
    q, k, v = torch.randn(3, 2, *grid, 2, 4, dtype=torch.float64)
    expected = plain_attention(q, k, v, window)
    torch.testing.assert_close(attend(q, k, v, window), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "window", "size"), [(40, 11, 4), (13, 5, 8), (7, 7, 8)])
def test_tiles_cover_each_query_once(length, window, size):
    alike = tiles_of(length, window, size)
    covered = [query + i for axis in alike for query in axis.queries for i in range(axis.size)]
    assert sorted(covered) == list(range(length))
    assert len(alike) <= 2 * -(-window // size) + 2


def test_a_head_turns_with_time_rows_and_columns():
    assert head_parts(64) == (16, 24, 24)
    assert head_parts(16) == (4, 6, 6)
