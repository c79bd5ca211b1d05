import pytest
import torch
from goldens import golden

from aiprod_engine.errors import CheckpointError
from aiprod_engine.models.text.tokenizer import Tokenizer


def tokenizers(case):
    spiece, json = (case.weights[k].numpy().tobytes() for k in ("spiece_model", "tokenizer_json"))
    return [Tokenizer.from_sentencepiece(spiece), Tokenizer.from_json(json)]


@pytest.fixture(params=["sentencepiece", "json"])
def tokenizer(request):
    (parameter,) = golden("text/tokenizer_tiny")
    return tokenizers(parameter.values[0])[request.param == "json"]


@pytest.mark.parametrize("case", golden("text/tokenizer_tiny"))
def test_ids_match_reference(case):
    for tokenizer in tokenizers(case):
        for i, prompt in enumerate(case.call["prompts"]):
            ids, mask = tokenizer.encode(prompt, case.call["max_length"])
            torch.testing.assert_close(ids, case.outputs[f"p{i}.input_ids"], rtol=0, atol=0)
            torch.testing.assert_close(mask, case.outputs[f"p{i}.attention_mask"], rtol=0, atol=0)


@pytest.mark.parametrize("case", golden("text/tokenizer_tiny"))
def test_chat_ids_match_reference(case):
    system, user = (message["content"] for message in case.call["enhance"]["messages"])
    for tokenizer in tokenizers(case):
        ids, mask = tokenizer.encode_chat(system, user)
        assert torch.equal(ids, case.outputs["enhance.input_ids"])
        assert torch.equal(mask, case.outputs["enhance.attention_mask"])


@pytest.mark.parametrize("case", golden("text/gemma4_tiny"))
def test_bos_is_prepended_for_gemma4(case, read_files):
    """The tokenizer inside the packed 2.5 file emits no <bos>."""
    tensors = read_files("files/te_bundle_25/tiny_gemma4_with_proj.safetensors")
    tokenizer = Tokenizer.from_json(tensors["tokenizer_json"].numpy().tobytes())
    for i, prompt in enumerate(case.call["prompts"]):
        ids, mask = tokenizer.encode(prompt, case.call["max_length"])
        assert torch.equal(ids, case.inputs[f"p{i}.input_ids"])
        assert torch.equal(mask, case.inputs[f"p{i}.attention_mask"])


def test_count_and_lost_text_tell_what_truncation_drops(tokenizer):
    text = "the old man walks along the beach at sunset, waves crashing"
    whole, limit = tokenizer.count(text), 6
    ids, mask = tokenizer.encode(text, limit)
    assert ids.shape == mask.shape == (1, limit)
    assert mask.sum() == limit < whole
    lost = tokenizer.lost_text(text, limit)
    assert lost
    assert tokenizer.decode(ids[0].tolist()) + lost == text
    assert tokenizer.lost_text(text, whole) == ""


def test_default_length_is_that_of_the_model(tokenizer):
    ids, mask = tokenizer.encode("hello")
    assert ids.shape == mask.shape == (1, 1024)
    assert ids.dtype == mask.dtype == torch.int64


def test_decode_skips_special_tokens(tokenizer):
    ids, _ = tokenizer.encode("caf\u00e9 \U0001f98a", 32)
    assert tokenizer.decode([*ids[0].tolist(), 1]) == "caf\u00e9 \U0001f98a"


@pytest.mark.parametrize("read", [Tokenizer.from_json, Tokenizer.from_sentencepiece])
def test_broken_tokenizer_raises(read):
    with pytest.raises(CheckpointError, match="must be a tokenizer"):
        read(b"not a tokenizer")


def test_tokenizer_of_another_family_raises():
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE

    other = Library(BPE(vocab={"<bos>": 0, "<pad>": 1}, merges=[])).to_str().encode()
    with pytest.raises(CheckpointError, match="found 1 and 0"):
        Tokenizer.from_json(other)
