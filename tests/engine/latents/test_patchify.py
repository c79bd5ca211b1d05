import pytest
import torch
from goldens import golden

from aiprod_engine.latents.patchify import (
    patchify_audio,
    patchify_video,
    tokens_of,
    unpatchify_audio,
    unpatchify_video,
)
from aiprod_engine.latents.positions import cell_bounds


@pytest.mark.parametrize("case", golden("conditioning/patchify_video"))
@pytest.mark.parametrize("patch", [1, 2])
def test_video_order_and_bounds(case, patch):
    latent = case.inputs[f"latent.p{patch}"]
    tokens = patchify_video(latent, patch)
    case.check(f"tokens.p{patch}", tokens)
    bounds = cell_bounds(*latent.shape[2:], patch).expand(latent.shape[0], -1, -1, -1)
    case.check(f"bounds.p{patch}", bounds.float())
    back = unpatchify_video(tokens, *latent.shape[2:], patch)
    torch.testing.assert_close(back, latent, rtol=0, atol=0)
    if patch == 1:
        case.check("roundtrip.p1", back)


@pytest.mark.parametrize("case", golden("conditioning/patchify_audio"))
def test_audio_order(case):
    latent = case.inputs["latent"]
    tokens = patchify_audio(latent)
    case.check("tokens", tokens)
    case.check("roundtrip", unpatchify_audio(tokens, latent.shape[1], latent.shape[3]))


def test_axes_of_the_latent_tell_the_stream():
    video, audio = torch.randn(1, 4, 2, 3, 5), torch.randn(1, 2, 7, 3)
    assert tokens_of(video).shape == (1, 30, 4)
    assert tokens_of(audio).shape == (1, 7, 6)
