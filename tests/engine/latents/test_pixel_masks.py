import pytest
import torch
from goldens import golden

from aiprod_engine.errors import SizeError
from aiprod_engine.latents.regions import inpaint_mask, mask_downsample


@pytest.mark.parametrize("case", golden("conditioning/mask_downsample"))
def test_mask_video_to_token_weights(case):
    case.check("tokens", mask_downsample(case.inputs["mask"], *case.call["latent_grid"]))


def test_single_frame_mask():
    mask = torch.rand(2, 1, 1, 4, 6)
    torch.testing.assert_close(mask_downsample(mask, 1, 2, 3).mean(1), mask.mean((1, 2, 3, 4)))


@pytest.mark.parametrize(("pixel_frames", "latent_frames"), [(17, 4), (1, 2), (9, 1)])
def test_mask_frames_must_divide(pixel_frames, latent_frames):
    with pytest.raises(SizeError, match="does not divide"):
        mask_downsample(torch.zeros(1, 1, pixel_frames, 4, 4), latent_frames, 2, 2)


def test_inpaint_mask_groups_frames_causally():
    mask = torch.zeros(1, 17, 64, 96)
    mask[:, 0, :32, :32] = 1  # the first frame stands alone
    mask[:, 8, 32:, 64:] = 1  # one frame of the first group is enough
    mask[:, 9, :32, 32:48] = 1  # exactly half a cell is not above 0.5
    latent = inpaint_mask(mask)
    assert latent.shape == (1, 3, 2, 3)
    assert latent.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 1, 2]]
    assert inpaint_mask(mask, threshold=None)[0, 2, 0, 1] == 0.5
    assert inpaint_mask(mask[:, :1]).shape == (1, 1, 2, 3)


@pytest.mark.parametrize("shape", [(1, 8, 64, 64), (1, 9, 60, 64), (1, 9, 64, 33)])
def test_inpaint_mask_must_be_on_the_grid(shape):
    with pytest.raises(SizeError, match="pixel mask"):
        inpaint_mask(torch.zeros(shape))
