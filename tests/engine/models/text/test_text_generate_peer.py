"""The published implementation of Gemma 3 (transformers) on the same tiny files: ids and logits."""

import pytest
import torch
from goldens import ROOT

from aiprod_engine.models.text.generate import Chat, Continuation, generate
from aiprod_engine.models.text.tokenizer import IMAGE
from aiprod_engine.models.text.vision import Gemma3Vision, VisionConfig
from aiprod_engine.weights import load, load_tokenizer

FOLDER = ROOT / "text/files/hf_folder"
IMAGE_TOKEN = 420
USER = "User Raw Input Prompt: a fox runs over snow."
ROWS = 4


@pytest.fixture(scope="module")
def peer():
    from transformers import Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoTokenizer, Gemma3ImageProcessor, Gemma3Processor

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    images = Gemma3ImageProcessor.from_pretrained(FOLDER, local_files_only=True)
    return Gemma3Processor(images, tokenizer, image_seq_length=ROWS)


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (50, 70, 3), generator=torch.Generator().manual_seed(0)).byte()


def rendered(user, image=""):
    """The chat template of the published model, written out."""
    return (
        f"<bos><start_of_turn>user\nWrite well.\n\n{image}{user}<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def processed(processor, image=None):
    text = rendered(USER, "" if image is None else "<start_of_image>")
    images = None if image is None else [[image.numpy()]]
    return processor(text=[text], images=images, return_tensors="pt", padding=True,
                     padding_side="left", pad_to_multiple_of=8)  # fmt: skip


@pytest.mark.parametrize("file", [FOLDER, FOLDER / "tokenizer.model"], ids=["json", "spiece"])
@pytest.mark.parametrize("has_image", [False, True])
def test_chat_ids_are_those_of_the_processor(file, has_image, processor, image):
    theirs = processed(processor, image if has_image else None)
    tokenizer = load_tokenizer(file)
    ids, mask = tokenizer.encode_chat("Write well.", USER, ROWS if has_image else 0)
    assert torch.equal(ids.masked_fill(ids == IMAGE, IMAGE_TOKEN), theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"])
    assert tokenizer.stop_ids == (1, 7)  # 7 in the tiny tokenizer, 106 in the published one


@torch.inference_mode()
def test_rows_of_a_picture_are_theirs(peer, processor, image):
    vision = load("text_vision", FOLDER)
    theirs = processed(processor, image)["pixel_values"]
    ours = vision.pixels(image)
    # both round to 8 bits after a filter in fixed point: one level at most
    assert (ours - theirs).abs().max() <= 1 / 127.5 + 1e-6
    assert (ours - theirs).abs().mean() <= 0.1 / 127.5
    rows = vision(theirs)
    torch.testing.assert_close(rows, peer.get_image_features(theirs), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_pooling_and_more_layers_are_theirs():
    from transformers import Gemma3Config, Gemma3Model

    raw = {
        "vision_config": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
                          "num_attention_heads": 3, "image_size": 84, "patch_size": 14,
                          "vision_use_head": False},
        "text_config": {"hidden_size": 20, "num_hidden_layers": 1, "vocab_size": 8},
        "mm_tokens_per_image": 9,
    }  # fmt: skip
    theirs = Gemma3Model(Gemma3Config(**raw)).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    ours = Gemma3Vision(VisionConfig.from_metadata(raw))
    state = {
        k.removeprefix("vision_tower."): v
        for k, v in theirs.state_dict().items()
        if k.startswith(("vision_tower.", "multi_modal_projector."))
    }
    ours.load_state_dict(state, strict=True)
    pixels = torch.rand(2, 3, 84, 84) * 2 - 1
    expected = theirs.get_image_features(pixels)
    assert expected.shape == (2, 9, 20)
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_image", [False, True])
@torch.inference_mode()
def test_greedy_ids_and_logits_are_theirs(has_image, peer, processor, image):
    """48 or 56 tokens of chat and 30 of answer: far beyond the window of 24."""
    given = processed(processor, image if has_image else None)
    count = 30
    theirs = peer.generate(
        **given, do_sample=False, max_new_tokens=count, return_dict_in_generate=True,
        output_logits=True, eos_token_id=-1,
    )  # fmt: skip
    expected = theirs.sequences[0, given["input_ids"].shape[1] :].tolist()
    rows = None
    if has_image:
        rows = load("text_vision", FOLDER)(given["pixel_values"])[0]
    ids, mask = load_tokenizer(FOLDER).encode_chat("Write well.", USER, ROWS if has_image else 0)
    decoder, logits = load("text_encoder", FOLDER), []

    def draw(now):
        logits.append(now)
        return int(now.argmax())

    assert (
        generate(Continuation(decoder, Chat(ids, mask, rows), count), draw, (), count) == expected
    )
    found = torch.stack(logits)
    torch.testing.assert_close(found, torch.cat(theirs.logits), rtol=1e-3, atol=1e-3)
