"""An idea becomes a prompt: the request, the cleaning, and what happens without an answer."""

import logging

import pytest
import torch
from goldens import ROOT

from aiprod_engine.errors import CheckpointError, MismatchError, SizeError
from aiprod_engine.models.text.generate import Sampling
from aiprod_engine.models.text.tokenizer import IMAGE, Tokenizer
from aiprod_engine.pipelines.enhance import Idea, Writing, cleaned, enhance, look_at, write
from aiprod_engine.pipelines.networks import Networks
from aiprod_engine.weights import load, load_tokenizer

GEMMA = ROOT / "text/files/hf_folder"
SHORT = Writing(max_tokens=12)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GEMMA)


@pytest.fixture(scope="module")
def encoder():
    return load("text_encoder", GEMMA)


@pytest.fixture
def image():
    return torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0)).byte()


class Answering(Tokenizer):
    """The tiny tokenizer, except that every answer decodes to `answer`."""

    def __init__(self, tokenizer, answer):
        self.__dict__ |= tokenizer.__dict__
        self.answer = answer

    def decode(self, _):
        return self.answer


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("\u201cIt\u2019s\u00a0so\u201d \u2014 1\u20132 \u22125 6\u2032", "It's so\" - 1-2 -5 6'"),
        ("**1. \n A fox \n", "A fox \n"),
        ("\u00c9t\u00e9", "\u00c9t\u00e9"),
        ("42 -- !", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_cleaned(raw, expected):
    assert cleaned(raw) == expected


def text_of(tokenizer, idea):
    return tokenizer.decode([i for i in idea.chat(tokenizer).ids[0].tolist() if i != IMAGE])


def test_the_request_without_and_with_a_first_frame(tokenizer):
    plain = Idea("  a red fox ").chat(tokenizer)
    assert plain.image is None
    assert plain.ids.shape[1] % 8 == 0
    text = text_of(tokenizer, Idea("  a red fox "))
    assert text.endswith("\n\nuser prompt:   a red fox<end_of_turn>\n<start_of_turn>model\n")
    rows = torch.zeros(5, 32)
    seen = Idea("a red fox", rows).chat(tokenizer)
    assert seen.image is rows
    assert (seen.ids == IMAGE).sum() == 5
    text = text_of(tokenizer, Idea("a red fox", rows))
    assert "\n\nUser Raw Input Prompt: a red fox.<end_of_turn>\n" in text


def test_every_form_and_version_has_its_own_instructions(tokenizer):
    rows = torch.zeros(4, 32)
    ideas = [Idea("x", i, v) for i in (None, rows) for v in ("2.0", "2.5")]
    assert len({text_of(tokenizer, idea).partition("\n\n")[0] for idea in ideas}) == 4
    assert torch.equal(
        Idea("x", None, "2.0").chat(tokenizer).ids, Idea("x", None, "2.3").chat(tokenizer).ids
    )
    for idea in ideas:  # instructions are plain text, and none is taken for a control token
        assert text_of(tokenizer, idea).isascii()
        assert text_of(tokenizer, idea).count("<start_of_turn>") == 2


def test_same_seed_same_text(tokenizer, encoder):
    idea = Idea("a red fox runs over snow")
    one = write(tokenizer, encoder, idea, SHORT)
    assert write(tokenizer, encoder, idea, SHORT) == one
    others = {write(tokenizer, encoder, idea, Writing(12, seed=seed)) for seed in range(3)}
    assert len(others) > 1
    greedy = Writing(12, Sampling(temperature=0), seed=1)
    assert write(tokenizer, encoder, idea, greedy) == write(
        tokenizer, encoder, idea, Writing(12, Sampling(temperature=0), seed=2)
    )


def test_writing_draws_from_its_own_generator(tokenizer, encoder):
    before = torch.get_rng_state()
    write(tokenizer, encoder, Idea("a fox"), SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_answer_is_cleaned_and_an_empty_one_keeps_the_idea(tokenizer, encoder):
    def answered(answer):
        return write(Answering(tokenizer, answer), encoder, Idea(" a fox"), Writing(1))

    assert answered("- \u201cA fox\u201d runs.") == 'A fox" runs.'
    assert answered("...") == answered("") == " a fox"


def test_progress_cancel_and_a_cut_answer(tokenizer, encoder, caplog):
    counts = []
    with caplog.at_level(logging.WARNING):
        write(tokenizer, encoder, Idea("a fox"), Writing(3, seed=0), counts.append)
    assert counts == [0, 1, 2, 3]
    assert "cut after 3 tokens; raise max_tokens" in caplog.text

    def cancel(count):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write(tokenizer, encoder, Idea("a fox"), SHORT, cancel)


def test_the_first_frame_changes_what_is_written(tokenizer, encoder, image):
    vision = load("text_vision", GEMMA)
    rows, other = look_at(vision, image), look_at(vision, 255 - image)
    assert rows.shape == (4, 32)
    greedy = Writing(20, Sampling(temperature=0))
    texts = [write(tokenizer, encoder, Idea("a fox", r), greedy) for r in (None, rows, other * 9)]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("version", ["20", "23"])
def test_enhance_over_networks(version, image):
    networks = Networks.of(checkpoint_of(version), GEMMA)
    counts = []
    text = enhance(networks, "a fox", None, SHORT, counts.append)
    assert text
    assert counts[0] == 0
    assert enhance(networks, "a fox", image, SHORT)


def checkpoint_of(version):
    return ROOT / f"checkpoints/ltx2_{version}_tiny.safetensors"


def test_a_picture_needs_an_encoder_that_sees(tmp_path, image):
    """Text alone works with a file that holds no vision tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(ROOT / "text/files/comfy_single/tiny_gemma_comfy.safetensors")
    blind = tmp_path / "blind.safetensors"
    kept = {k: v for k, v in tensors.items() if not k.startswith(("vision_", "multi_"))}
    save_file(kept, blind)
    networks = Networks.of(checkpoint_of("23"), blind)
    assert enhance(networks, "a fox", None, SHORT)
    with pytest.raises(
        CheckpointError, match=r"blind\.safetensors has none; choose a Gemma 3 file"
    ):
        enhance(networks, "a fox", image, SHORT)


def test_gemma_4_is_refused(tokenizer):
    file = ROOT / "text/files/te_bundle_25/tiny_gemma4_with_proj.safetensors"
    with pytest.raises(MismatchError, match="written by a Gemma 3 text encoder"):
        write(load_tokenizer(file), load("text_encoder", file), Idea("a fox"), SHORT)
    with pytest.raises(CheckpointError, match="gemma4_12b"):
        load("text_vision", file)


def test_a_length_of_nothing_raises():
    with pytest.raises(SizeError, match="max_tokens must be at least 1, got 0"):
        Writing(0)
