import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.models.text.features import (
    SharedProjection,
    SplitProjection,
    statistics_norm,
    token_norm,
)


def normalised(norm, hidden, mask):
    """The reference's layout: layers last, then flattened to column d * layers + l."""
    return torch.stack([norm(x, mask) for x in hidden.unbind(-1)], dim=-1).flatten(2)


@pytest.mark.parametrize("case", golden("text/norm_v1"))
def test_statistics_norm_matches_reference(case):
    for side in ("left", "right"):
        out = normalised(statistics_norm, case.inputs["hidden"], case.inputs[f"mask_{side}"])
        case.check(side, out)


@pytest.mark.parametrize("case", golden("text/norm_v2"))
def test_token_norm_matches_reference(case):
    case.check("left", normalised(token_norm, case.inputs["hidden"], case.inputs["mask_left"]))


def shared(case, build, strip):
    weights = strip(case.weights, "text_embedding_projection.")
    width, layers = case.inputs["hidden"].shape[2:]
    features = weights["aggregate_embed.weight"].shape[0]
    return build(lambda sizes: SharedProjection(*sizes), (width, layers, features), weights)


def split(case, build, strip):
    weights = strip(case.weights, "text_embedding_projection.")
    width, layers = case.inputs["hidden"].shape[2:]
    outs = [weights[f"{side}_aggregate_embed.bias"].numel() for side in ("video", "audio")]
    return build(lambda sizes: SplitProjection(*sizes), (width, layers, *outs), weights)


@pytest.mark.parametrize("case", golden("text/features_v1"))
def test_shared_features_match_reference(case, build, strip):
    hidden, mask = case.inputs["hidden"], case.inputs["mask_left"]
    video, audio = shared(case, build, strip)(hidden.unbind(-1), mask)
    case.check("features", video)
    assert audio is video
    assert (video[mask == 0] == 0).all()


@pytest.mark.parametrize("case", golden("text/features_v2"))
def test_split_features_match_reference(case, build, strip):
    hidden, mask = case.inputs["hidden"], case.inputs["mask_left"]
    model = split(case, build, strip)
    video, audio = model(hidden.unbind(-1), mask)
    case.check("video_features", video)
    case.check("audio_features", audio)
    padded = audio[mask == 0]
    assert torch.equal(padded, model.audio_aggregate_embed.bias.expand_as(padded))


@pytest.mark.parametrize("case", golden("text/features_v1", "text/features_v2"))
def test_the_sum_over_layers_is_the_flattened_product(case, build, strip):
    """The separable form against one large linear, in float64."""
    is_shared = case.name.endswith("v1")
    model = (shared if is_shared else split)(case, build, strip)
    hidden, mask = case.inputs["hidden"], case.inputs["mask_left"]
    norm = statistics_norm if is_shared else token_norm
    linear = model.aggregate_embed if is_shared else model.video_aggregate_embed
    flat = normalised(norm, hidden, mask).double()
    if not is_shared:
        flat = flat * (linear.out_features / hidden.shape[2]) ** 0.5
    expected = flat @ linear.weight.double().T + (0 if linear.bias is None else linear.bias)
    video, _ = model(iter(hidden.unbind(-1)), mask)
    torch.testing.assert_close(video, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [statistics_norm, token_norm])
def test_padding_may_hold_anything(norm):
    x, mask = torch.randn(2, 6, 5), torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    poisoned = x.masked_fill(mask[..., None] == 0, float("nan"))
    assert torch.equal(norm(poisoned, mask), norm(x, mask))


@pytest.mark.parametrize("states", [2, 4])
def test_wrong_number_of_hidden_states_raises(states):
    model, mask = SharedProjection(5, 3, 7), torch.ones(1, 2)
    with pytest.raises(MismatchError, match="takes 3 hidden states of width 5"):
        model([torch.randn(1, 2, 5)] * states, mask)


def test_wrong_width_raises():
    model, mask = SplitProjection(5, 3, 7, None), torch.ones(1, 2)
    with pytest.raises(MismatchError, match="found number 1 of width 4"):
        model([torch.randn(1, 2, 4)] * 3, mask)
