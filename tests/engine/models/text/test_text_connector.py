import weakref
from dataclasses import replace

import pytest
import torch
from goldens import Case, golden

from aiprod_engine.errors import MismatchError, SizeError, UnsupportedConfig
from aiprod_engine.models.text.config import ConnectorConfig, TextConnectorConfig
from aiprod_engine.models.text.connector import EmbeddingsConnector, TextConnector, rope_tables

CHECKPOINTS = golden("checkpoints/ltx2_20_tiny.expected", "checkpoints/ltx2_23_tiny.expected")


def shapes(tensors):
    return {k: list(v.shape) for k, v in tensors.items()}


@pytest.mark.parametrize("case", golden("text/connector_rope"))
def test_rope_tables_match_reference(case):
    """One float32 rounding of a frequency, at 15708 rad, moves a few entries by up to 2e-3."""
    tolerance = case.tolerance
    sizes = {"v1_30x128": (30, 128), "v2_32x128": (32, 128), "v2_audio_32x64": (32, 64)}
    for name, (heads, head_dim) in sizes.items():
        config = ConnectorConfig(heads, head_dim, 1, False, 128, case.call["max_pos"])
        for part, table in zip(
            ("cos", "sin"), rope_tables(case.inputs["positions"], config), strict=True
        ):
            expected = case.outputs[f"{name}.{part}"]
            if name == "v2_32x128":
                table = table[:, ::5]  # the fixture keeps every fifth head
            off = (table - expected).abs()
            assert off.max() <= tolerance["outlier_atol"]
            share = (off > tolerance["atol"]).float().mean()
            assert share <= tolerance["outlier_fraction"], (name, part, share)


def connector(case, build, strip):
    """The one connector of a `connector_*` fixture."""
    side = case.name.rsplit("_", 1)[1]
    weights = strip(case.weights, f"model.diffusion_model.{side}_embeddings_connector.")
    transformer = case.config["transformer"]
    widths = {
        s: transformer.get(f"{p}_num_attention_heads", transformer["connector_num_attention_heads"])
        * transformer.get(f"{p}_attention_head_dim", transformer["connector_attention_head_dim"])
        for s, p in (("video", "connector"), ("audio", "audio_connector"))
    }
    projection = (
        {f"{s}_aggregate_embed.weight": (width, 32) for s, width in widths.items()}
        if "caption_proj_before_connector" in transformer
        else {"aggregate_embed.weight": (widths["video"], 32)}
    )
    config = TextConnectorConfig.from_metadata(
        transformer, {f"text_embedding_projection.{k}": v for k, v in projection.items()}
    )
    return build(EmbeddingsConnector, getattr(config, side), weights)


def left_mask(valid, rows):
    return (torch.arange(rows) >= rows - valid).long()[None]


CONNECTORS = golden(
    "text/connector_v1_video",
    "text/connector_v1_audio",
    "text/connector_v2_video",
    "text/connector_v2_audio",
)


@pytest.mark.parametrize("case", CONNECTORS)
@pytest.mark.parametrize("form", ["padded", "trimmed", "right"])
def test_connector_matches_reference(case, build, strip, form):
    """The same context whether padding is on the left, on the right, or absent."""
    model = connector(case, build, strip)
    features, rows = case.inputs["features"], case.call["seq_len"]
    for valid in case.call["n_valid"]:
        x, mask = features, left_mask(valid, rows)
        if form != "padded":
            x = features[:, rows - valid :]
            mask = torch.ones(1, valid, dtype=torch.long)
        if form == "right":
            x = torch.cat([x, features[:, : rows - valid]], dim=1)
            mask = left_mask(valid, rows).flip(1)
        out = model(x, mask, rows)
        case.check(f"n{valid}.encoded", out[:, :: case.call["row_stride"]])
        if f"n{valid}.packed" in case.outputs:
            case.check(f"n{valid}.packed", model.pack(x, mask, rows))


@pytest.mark.parametrize("case", CONNECTORS)
def test_every_connector_weight_matters(case, build, strip):
    model = connector(case, build, strip)
    x, mask = case.inputs["features"], left_mask(37, case.call["seq_len"])
    before = model(x, mask)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter += 0.05 * (1 + torch.rand_like(parameter))
        assert not torch.allclose(model(x, mask), before, atol=1e-4), name
        parameter.copy_(kept)


def test_rows_are_rounded_up_to_whole_sets_of_registers():
    config = ConnectorConfig(2, 4, 0, False, registers=3, max_pos=64)
    model = EmbeddingsConnector(config).requires_grad_(False)
    model.learnable_registers.copy_(torch.arange(3.0)[:, None].expand(3, 8))
    packed = model.pack(torch.full((2, 4, 8), 9.0), torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]]))
    assert packed[..., 0].tolist() == [[9, 1, 2, 0, 1, 2], [9, 9, 9, 0, 1, 2]]
    assert model.pack(torch.zeros(1, 2, 8), torch.ones(1, 2), 7).shape[1] == 9
    with pytest.raises(SizeError, match="at least the 4 rows given, got 3"):
        model.pack(torch.zeros(1, 4, 8), torch.ones(1, 4), 3)


def whole(case, build, connector_part, dtype=torch.float32):
    tensors = Case(case.name.removesuffix(".expected")).tensors
    weights = {k: v.to(dtype) for k, v in connector_part(tensors).items()}
    config = TextConnectorConfig.from_metadata(case.config["transformer"], shapes(tensors))
    return build(TextConnector, config, weights)


def inputs(case):
    return (
        case.inputs["text_connector.hidden_states"],
        case.inputs["text_connector.attention_mask"],
    )


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint_connector_matches_reference(case, build, connector_part):
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    for name, x in zip(("video", "audio", "mask"), model(hidden, mask), strict=True):
        rtol, atol = case.bounds("out.text_connector")
        expected = case.outputs[f"text_connector.{name}"]
        assert (x.dtype == torch.int64) == (name == "mask")  # this file stores the mask as floats
        torch.testing.assert_close(x, expected.to(x.dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_weight_of_the_checkpoint_matters(case, build, connector_part):
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    before = torch.cat(model(hidden, mask)[:2], dim=-1)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter += 0.05 * (1 + torch.rand_like(kept))
        after = torch.cat(model(hidden, mask)[:2], dim=-1)
        assert not torch.allclose(after, before, atol=1e-5), name
        parameter.copy_(kept)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_batch_of_two_equals_two_of_one(case, build, connector_part):
    """The rows have different numbers of valid tokens and their padding on different sides."""
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    hidden = torch.cat([hidden, hidden.flip(1) + 0.1])
    mask = torch.cat([mask, mask.flip(1).roll(-1, dims=1)])
    both = model(hidden, mask)
    for row in (0, 1):
        alone = model(hidden[row : row + 1], mask[row : row + 1])
        for x, y in zip(both, alone, strict=True):
            torch.testing.assert_close(x[row : row + 1], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_trimmed_states_one_by_one_equal_the_padded_stack(case, build, connector_part):
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    valid = mask[0].bool()
    states = (x[:, valid] for x in hidden.unbind(-1))
    trimmed = model.encode(states, mask[:, valid], length=mask.shape[1])
    for x, y in zip(trimmed, model(hidden, mask), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_hidden_states_are_consumed_one_at_a_time(case, build, connector_part):
    """No state is kept: by the time one is asked for, the one before last is gone."""
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    seen = []

    def states():
        for x in hidden.unbind(-1):
            assert all(ref() is None for ref in seen[:-1])
            state = x.clone()
            seen.append(weakref.ref(state))
            yield state
            del state

    model.encode(states(), mask)
    assert len(seen) == hidden.shape[-1]


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_same_input_same_output(case, build, connector_part):
    model, arguments = whole(case, build, connector_part), inputs(case)
    assert all(map(torch.equal, model(*arguments), model(*arguments)))


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_bfloat16_stays_near_float32(case, build, connector_part):
    """5 % of the norm: two blocks of width 16 to 32, each tensor rounded to 8 bits."""
    hidden, mask = inputs(case)
    exact = whole(case, build, connector_part)(hidden, mask)
    half = whole(case, build, connector_part, torch.bfloat16)(hidden.bfloat16(), mask)
    for a, b in zip(exact[:2], half[:2], strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).norm() <= 0.05 * a.norm()


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_video_alone_gives_the_same_video(case, build, connector_part):
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    weights = {k: v for k, v in model.state_dict().items() if "audio_" not in k}
    video_only = build(TextConnector, replace(model.config, audio=None), weights)
    video, audio, _ = video_only(hidden, mask)
    assert audio is None
    assert torch.equal(video, model(hidden, mask)[0])


def test_stack_of_another_text_encoder_raises(build, connector_part):
    case = CHECKPOINTS[0].values[0]
    model, (hidden, mask) = whole(case, build, connector_part), inputs(case)
    with pytest.raises(MismatchError, match="takes 3 hidden states of width 24, found only 2"):
        model(hidden[..., :2], mask)


V20 = {"caption_channels": 3840, "connector_positional_embedding_max_pos": [4096]}
V23 = {
    **V20,
    "connector_num_attention_heads": 32,
    "connector_num_layers": 8,
    "audio_connector_attention_head_dim": 64,
    "audio_connector_num_attention_heads": 32,
    "connector_apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "caption_proj_input_norm": False,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "text_encoder_norm_type": "PER_TOKEN_RMS",
}


@pytest.mark.parametrize(
    ("name", "section"), [("text-2.0", V20), ("text-2.3", V23), ("text-2.5", V23)]
)
def test_keys_equal_the_full_size_file(name, section, manifest, connector_part):
    file = manifest(name)
    config = TextConnectorConfig.from_metadata(section, file)
    assert (config.width, config.layers) == (3840, 49)
    with torch.device("meta"):
        model = TextConnector(config)
    assert shapes(model.state_dict()) == connector_part(file)
    assert_full_size_forward(model, config)


def assert_full_size_forward(model, config):
    """On the meta device: shapes, and that no tensor is made on another device."""
    states = [torch.empty(1, 50, config.width, device="meta") for _ in range(config.layers)]
    mask = torch.ones(1, 50, dtype=torch.long, device="meta")
    video, audio, ones = model.encode(states, mask, length=1024)
    assert video.shape == (1, 1024, config.video.width)
    assert audio.shape == (1, 1024, config.audio.width)
    assert {x.device.type for x in (video, audio, ones)} == {"meta"}


P20 = {"text_embedding_projection.aggregate_embed.weight": (3840, 188160)}
P23 = {
    "text_embedding_projection.video_aggregate_embed.weight": (4096, 188160),
    "text_embedding_projection.audio_aggregate_embed.weight": (2048, 188160),
}


@pytest.mark.parametrize(
    ("section", "projections", "message"),
    [
        ({**V20, "rope_type": "axial"}, P20, "rope_type must be 'split' or 'interleaved'"),
        ({**V20, "frequencies_precision": "float16"}, P20, "must be 'float64' or 'float32'"),
        ({**V20, "use_embeddings_connector": False}, P20, "embeddings_connector must be True"),
        ({**V20, "connector_positional_embedding_max_pos": [20, 20]}, P20, "hold one number"),
        ({**V20, "connector_num_attention_heads": 32}, P20, "32 x 128 wide"),
        ({**V23, "audio_connector_num_attention_heads": 16}, P23, "yields 2048 features"),
        ({**V23, "caption_proj_input_norm": True}, P23, "caption_proj_input_norm must be False"),
        ({**V23, "text_encoder_norm_type": "layer"}, P23, "must be 'per_token_rms'"),
        ({**V23, "caption_channels": 1000}, P23, "multiple of 1000 input columns"),
        (V20, P23, "configuration of 2.0 and tensors of 2.3"),
        (V23, P20, "configuration of 2.3 and tensors of 2.0"),
        (V20, {}, "found none"),
    ],
)
def test_config_outside_what_is_implemented_raises(section, projections, message):
    with pytest.raises(UnsupportedConfig, match=message):
        TextConnectorConfig.from_metadata(section, projections)


def test_settings_of_no_published_file_are_read():
    section = {**V20, "rope_type": "interleaved", "frequencies_precision": "float32"}
    section |= {"connector_ff_bias": False, "connector_norm_output": False}
    config = TextConnectorConfig.from_metadata(section, P20).video
    assert (config.interleaved, config.float64_grid, config.ff_bias) == (True, False, False)
    with torch.device("meta"):
        names = EmbeddingsConnector(config).state_dict()
    assert not any("ff.net" in name and name.endswith("bias") for name in names)


def test_interleaved_rotation_is_split_rotation_of_reordered_columns():
    """Rotating (2i, 2i + 1) with the rows of to_q, to_k in pairs equals (i, i + head_dim / 2)."""
    heads, head_dim = 3, 6
    split = ConnectorConfig(heads, head_dim, 1, True, registers=4, max_pos=64)
    model = EmbeddingsConnector(split).requires_grad_(False)
    other = EmbeddingsConnector(replace(split, interleaved=True)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    within = torch.arange(head_dim).view(2, -1).T.flatten()  # 0 3 1 4 2 5
    order = (torch.arange(heads)[:, None] * head_dim + within).flatten()
    reordered = (".to_q.", ".to_k.", ".q_norm.", ".k_norm.")
    state = {
        name: value[order] if any(part in name for part in reordered) else value
        for name, value in model.state_dict().items()
    }
    other.load_state_dict(state)
    x, mask = torch.randn(2, 7, 18, generator=generator), torch.ones(2, 7)
    torch.testing.assert_close(other(x, mask), model(x, mask), rtol=1e-4, atol=1e-5)


def test_grid_in_float32_stays_near_that_in_float64():
    """Angles reach 15708, so a grid in float32 moves a cosine by up to 5e-3."""
    exact = ConnectorConfig(4, 8, 1, False, registers=128, max_pos=4096)
    positions = torch.arange(1024)
    a, _ = rope_tables(positions, exact)
    b, _ = rope_tables(positions, replace(exact, float64_grid=False))
    assert 0 < (a - b).abs().max() < 5e-3


def test_absent_keys_mean_the_published_values():
    """The reference's own defaults would be one position and interleaved rotation."""
    config = TextConnectorConfig.from_metadata({}, P20)
    assert config.video == ConnectorConfig(30, 128, 2, False, registers=128, max_pos=4096)
    assert config.audio == config.video
    assert TextConnectorConfig.from_metadata(V23, dict([*P23.items()][:1])).audio is None
