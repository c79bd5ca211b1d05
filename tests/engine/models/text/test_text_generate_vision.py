"""What the decoder sees of a picture, by itself."""

import json

import pytest
import torch
from goldens import Case

from aiprod_engine.errors import CheckpointError, UnsupportedConfig
from aiprod_engine.models.text.vision import Gemma3Vision, VisionConfig
from aiprod_engine.weights import configuration, load

SIZES = {
    "vision_config": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
                      "num_attention_heads": 3, "image_size": 56, "patch_size": 14},
    "mm_tokens_per_image": 4,
    "text_config": {"hidden_size": 20},
}  # fmt: skip
FILES = "files/comfy_single/tiny_gemma_comfy.safetensors"


@pytest.fixture
def vision():
    """Two layers, 4 x 4 patches, 2 x 2 rows; norms and places too are random."""
    model = Gemma3Vision(VisionConfig.from_metadata(SIZES)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def pixels():
    return torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_every_weight_matters(vision, pixels):
    before = vision(pixels)
    for name, parameter in vision.named_parameters():
        if name.endswith("k_proj.bias"):
            continue  # adds the same to every score of a query
        kept = parameter.clone()
        parameter += 0.1 + 0.1 * torch.rand_like(parameter)
        assert not torch.allclose(vision(pixels), before, atol=1e-4), name
        parameter.copy_(kept)


def test_batch_of_two_equals_two_of_one(vision, pixels):
    other = pixels.flip(-1)
    both = vision(torch.cat([pixels, other]))
    assert both.shape == (2, 4, 20)
    torch.testing.assert_close(both[:1], vision(pixels))
    torch.testing.assert_close(both[1:], vision(other))


def test_bfloat16_stays_near_float32(vision, pixels):
    """Four times the error of rounding the weights alone."""
    exact = vision(pixels)
    half = vision.bfloat16()(pixels.bfloat16())
    rounded = vision.float()(pixels)
    assert half.dtype == torch.bfloat16
    assert (exact - half.float()).norm() <= 4 * (exact - rounded).norm()


def test_a_picture_is_squashed_to_the_square_and_its_range(vision):
    image = torch.zeros(20, 70, 3, dtype=torch.uint8)
    image[:, 35:] = 255
    pixels = vision.pixels(image)
    assert pixels.shape == (1, 3, 56, 56)
    assert pixels[..., :24].eq(-1).all()
    assert pixels[..., 32:].eq(1).all()
    assert vision.bfloat16().pixels(image).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("gemma3-12b-text", "vision_tower.vision_model."),
        ("gemma3-12b-text-comfy", "vision_model."),
    ],
)
def test_keys_equal_the_full_size_file(name, tower, manifest, strip):
    with torch.device("meta"):
        model = Gemma3Vision(VisionConfig.from_metadata({}))
    found, projector = manifest(name), "multi_modal_projector."
    expected = {f"vision_model.{k}": v for k, v in strip(found, tower).items()}
    expected |= {f"{projector}{k}": v for k, v in strip(found, projector).items()}
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    assert len(expected) == 439
    rows = model(torch.zeros(1, 3, 896, 896, device="meta"))
    assert rows.shape == (1, 256, 3840)


@pytest.fixture
def write(tmp_path, read_files):
    """`write(rename key, metadata)`: a file with the tiny single file's tensors."""
    from safetensors.torch import save_file

    def make(rename=lambda key: key, metadata=None):
        tensors = {rename(k): v for k, v in read_files(FILES).items()}
        tensors.pop(None, None)
        save_file(tensors, tmp_path / "gemma.safetensors", metadata)
        return tmp_path / "gemma.safetensors"

    return make


CONFIG = {"config.json": json.dumps(Case("text/gemma3_tiny").config)}


@pytest.mark.parametrize(
    "prefixes",
    [
        ("vision_model.", "multi_modal_projector.", "model."),
        ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."),
        ("model.vision_tower.vision_model.", "model.multi_modal_projector.",
         "model.language_model."),
        ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model."),
    ],
    ids=["single", "hub", "transformers 4", "transformers 5"],
)  # fmt: skip
def test_every_layout_loads_the_same(prefixes, write, read_files):
    def rename(key):
        for start, new in zip(
            ("vision_model.", "multi_modal_projector.", "model."), prefixes, strict=True
        ):
            if key.startswith(start):
                return new + key.removeprefix(start)
        return key

    file = write(rename, CONFIG)
    model = load("text_vision", file)
    for name, tensor in read_files(FILES).items():
        if name.startswith(("vision_model.", "multi_modal_projector.")):
            assert torch.equal(model.state_dict()[name], tensor)
    assert len(load("text_encoder", file).state_dict()) == 2 + 7 * 13  # as without a picture


def test_shapes_stand_in_for_a_config(write):
    found = configuration("text_vision", write())
    stated = configuration("text_vision", write(metadata=CONFIG))
    assert (found.heads, stated.heads) == (16, 2)  # heads show nowhere: the published number
    assert (found.tokens, found.image_size, found.text_width) == (4, 28, 32)
    assert (stated.tokens, stated.image_size, stated.text_width) == (4, 28, 32)


def test_a_file_without_vision_tensors_says_so(write):
    file = write(lambda key: None if key.startswith(("vision", "multi")) else key)
    with pytest.raises(CheckpointError, match="has none; choose a Gemma 3 file that has them"):
        load("text_vision", file)
    load("text_encoder", file)


def test_a_missing_tensor_raises(write):
    file = write(lambda key: None if key.endswith("fc2.bias") else key, CONFIG)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors: .*fc2\.bias"):
        load("text_vision", file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma4"}, "model_type must be 'gemma3'"),
        ({"vision_config": {"model_type": "clip"}}, "siglip_vision_model"),
        ({"vision_config": {"vision_use_head": True}}, "vision_use_head must be False"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {"num_channels": 1}}, "num_channels must be 3"),
        ({"vision_config": {"num_attention_heads": 7}}, "multiple of its heads"),
        ({"vision_config": {"image_size": 900}}, "one of the patch"),
        ({"mm_tokens_per_image": 200}, "must be a square whose root divides 64"),
        ({"mm_tokens_per_image": 81}, "must be a square whose root divides 64"),
    ],
)
def test_config_outside_what_is_implemented_raises(change, message):
    with pytest.raises(UnsupportedConfig, match=message):
        VisionConfig.from_metadata(change)
